"""Untrained networks and smooth frames: enough where weights play no part.

Batch norms take their statistics from smooth random images, so that activations are of a sane size.
Latency does not depend on the weights; agreement does, and a trained network's is higher.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeuda.data.images import Image, resize_image, write_image
from edgeuda.labels import SPACES
from edgeuda.spec import ModelSpec, Preprocessing

if TYPE_CHECKING:
    from edgeuda.models.network import Network


def spec_of(
    rows: int, columns: int, width: float = 1.0, space: str = "cityscapes-19",
    encoder: str = "resnet18",
) -> ModelSpec:  # fmt: skip
    """Return the spec of a BiSeNet."""
    return ModelSpec("bisenet", width, SPACES[space], Preprocessing(rows, columns), encoder)


def network(spec: ModelSpec) -> Network:
    """Return a network with random weights and sane statistics."""
    import torch
    from torch import nn

    from edgeuda.models.bisenet import BiSeNet

    torch.manual_seed(0)
    model = BiSeNet(len(spec.label_space), spec.width, spec.encoder)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # plain average over the batches
    size = spec.preprocessing
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (size.mean, size.std))
    images = torch.from_numpy(np.stack(smooth_images(8, 256, 512))).permute(0, 3, 1, 2)
    with torch.no_grad():
        for batch in images.split(4):
            model((batch.float() / 255 - mean) / std)
    return model.eval()


def smooth_images(count: int, rows: int, columns: int) -> list[Image]:
    """Return images without edges: noise alone would leave no pixel confident."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 8, 16, 3), np.uint8)
    return [resize_image(image, rows, columns) for image in coarse]


def smooth_files(folder: Path, count: int, rows: int, columns: int) -> list[Path]:
    """Write such images."""
    paths = [folder / f"{number:04d}.png" for number in range(count)]
    for path, image in zip(paths, smooth_images(count, rows, columns), strict=True):
        write_image(path, image)
    return paths
