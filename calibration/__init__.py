"""INT8: ranges collected on target frames, rules, and where quantization goes per runtime."""
