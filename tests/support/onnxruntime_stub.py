"""ONNX Runtime as on a machine with GPUs."""

import onnxruntime as ort

Session = ort.InferenceSession
CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))


class Pretended:
    """ONNX Runtime's session on the CPU, which says that it is on other providers."""

    says, asked, options = (CPU,), [], []
    fails = None

    def __init__(self, model, options=None, providers=(), **how):
        names = [one if isinstance(one, str) else one[0] for one in providers]
        if names != [CPU]:
            Pretended.asked.append((providers, how))
            if self.fails:
                raise RuntimeError(self.fails)
        self.real = Session(model, options, providers=[CPU])
        self.on_gpu = names != [CPU]

    def get_providers(self):
        return list(self.says) if self.on_gpu else [CPU]

    def __getattr__(self, name):
        return getattr(self.real, name)
