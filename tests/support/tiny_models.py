"""Small random networks and frames for tests of export, runners and benchmarks."""

import functools
import tempfile
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from edgeuda.data.images import Image, write_image
from edgeuda.labels import SPACES
from edgeuda.models.bisenet import BiSeNet
from edgeuda.records.names import Head
from edgeuda.spec import ModelSpec, Preprocessing
from engines.machine.hardware import adds_in_32_bits, identity
from engines.onnx_export import export_onnx

SPEC = ModelSpec("bisenet", 0.125, SPACES["camvid-11"], Preprocessing(64, 128))


def random_network(spec: ModelSpec = SPEC, seed: int = 0) -> nn.Module:
    """A BiSeNet whose batch norms have random statistics, so that folding them matters."""
    torch.manual_seed(seed)
    network = BiSeNet(len(spec.label_space), spec.width)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network


def random_frames(count: int, height: int, width: int, seed: int = 0) -> list[Image]:
    """Smooth coloured noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 8, 16, 3), np.uint8)
    return [
        np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
        for image in coarse
    ]


def write_frames(folder: Path, frames: Iterable[Image]) -> list[Path]:
    """Frames as PNG files ``000.png``, ``001.png``, ... in order."""
    paths = []
    for number, frame in enumerate(frames):
        paths.append(folder / f"{number:03d}.png")
        write_image(paths[-1], frame)
    return paths


def torch_logits(network: nn.Module, images: np.ndarray, spec: ModelSpec = SPEC) -> np.ndarray:
    """The training-side formula, written out channel by channel."""
    x = images.astype(np.float64) / 255
    for channel in range(3):
        mean, std = spec.preprocessing.mean[channel], spec.preprocessing.std[channel]
        x[..., channel] = (x[..., channel] - mean) / std
    with torch.inference_mode():
        tensor = torch.from_numpy(x.astype(np.float32).transpose(0, 3, 1, 2).copy())
        return network.eval()(tensor).main.numpy()


def torch_signals(network: nn.Module, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Confidence in levels, ``[N, h, w]``, and pooled features ``[N, C]``, by the textbook."""
    pre = SPEC.preprocessing
    x = (images.astype(np.float32) / 255 - np.float32(pre.mean)) / np.float32(pre.std)
    pooled = []
    hook = network.context.context.register_forward_pre_hook(
        lambda _, inputs: pooled.append(inputs[0].numpy()[:, :, 0, 0])
    )
    with torch.inference_mode():
        tensor = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
        scores = network.eval()(tensor, upsample=False).main.numpy().astype(np.float64)
    hook.remove()
    likely = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return 255 * likely.max(1), pooled[0]


@functools.cache
def exported(head: Head = "labels", seed: int = 0, confidence: bool = False) -> bytes:
    """The ONNX file of `random_network`; exporting takes seconds, so once per test run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(
            random_network(seed=seed), SPEC, path, head=head, frames=random_frames(2, 90, 200),
            confidence=confidence,
        )  # fmt: skip
        return path.read_bytes()


WIDE_SUMS = adds_in_32_bits(identity())
"""Whether this processor adds products of bytes in 32 bits; else ONNX Runtime's sums saturate."""


def quick_first(values, quick):
    """Parameters of a test of which all but some are only run by ``make slow``."""
    return [
        value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values
    ]


class Theirs(nn.Module):
    """A network as others write them: a mapping of heads, at a quarter of the input."""

    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip
        self.out, self.side = nn.Conv2d(16, classes, 1), nn.Conv2d(16, classes, 1)

    def forward(self, x):
        y = self.body(x)
        return {"features": y, "out": self.out(y), "aux": self.side(y)}
