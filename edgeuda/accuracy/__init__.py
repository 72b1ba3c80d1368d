"""How good a network's labels are: confusion matrices, IoU, outlines, uncertainty.

NumPy only, so that a vehicle can score what it runs. Below it lie `edgeuda.data` and
`edgeuda.labels`; nothing here trains, times or draws.
"""
