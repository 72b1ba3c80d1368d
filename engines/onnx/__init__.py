"""ONNX graphs as this project writes and reads them: operators, heads, metadata, sessions.

No torch: a vehicle reads graphs too. Calibration and every runtime build on it.
"""
