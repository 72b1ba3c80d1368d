"""How fast a model is on this machine: load patterns, stages of a frame, the whole way of a frame.

Measures `engines.runner.Runner`s of any runtime and writes `edgeuda.records.bench`.
"""
