"""ONNX export, runners, latency and the report: what happens between checkpoint and decision."""
