"""What training images are made to look like: colours, warps, styles, pasted regions (torch).

Methods and loaders both use it; it knows neither recipes nor losses.
"""
