"""Segmentation of camera frames by a torch network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from edgeuda.data.images import Image, LabelMap, resize_image, resize_label
from edgeuda.spec import ModelSpec, Preprocessing


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Turn ``[N, 3, H, W]`` RGB in [0, 1] into the network's input, same shape."""
    mean = images.new_tensor(preprocessing.mean).view(1, 3, 1, 1)
    std = images.new_tensor(preprocessing.std).view(1, 3, 1, 1)
    return (images - mean) / std


def to_tensor(image: Image) -> Tensor:
    """Turn an ``[H, W, 3]`` uint8 image into a ``[3, H, W]`` float tensor in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1).float().div_(255)


@dataclass(frozen=True)
class Predictor:
    """Callable that maps a frame of any size to its label map of the same size."""

    model: nn.Module
    spec: ModelSpec

    @torch.inference_mode()
    def __call__(self, frame: Image) -> LabelMap:
        """Segment one ``[H, W, 3]`` uint8 frame; returns ``[H, W]`` uint8 ids."""
        pre = self.spec.preprocessing
        device = next(self.model.parameters()).device
        x = to_tensor(resize_image(frame, pre.height, pre.width))[None].to(device)
        labels = self.model(normalise(x, pre)).main.argmax(1)[0]
        return resize_label(labels.to(torch.uint8).cpu().numpy().astype(np.uint8), *frame.shape[:2])
