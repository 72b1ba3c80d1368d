"""TensorRT 8.6 to 11 and TensorRT-RTX: found, engines built, kept on disk and run.

On top of `engines.onnx` and `engines.cuda`.
"""
