"""BiSeNet V1 with standard batch norm and ReLU, made to export and to fuse for INT8.

Structure: Yu et al., "BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation",
ECCV 2018, with the feature fusion module of later public versions (one 1x1 convolution, batch norm
and sigmoid in the attention) and bilinear up-sampling by fixed factors, ``align_corners=False``.
`BiSeNetPaperGate` and `BiSeNetReluGate` differ in that attention alone; they are for weights that
were trained elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeuda.models.encoders import RESNET18, first_modules, load_encoder, make_encoder
from edgeuda.models.network import Logits, Network, scaled


class ConvBnRelu(nn.Sequential):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class AttentionRefinement(nn.Module):
    """ARM: a convolution whose channels are gated by their global mean."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = ConvBnRelu(inputs, outputs, 3)
        self.gate = nn.Sequential(
            nn.Conv2d(outputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, inputs, H, W]`` to ``[N, outputs, H, W]``."""
        u: Tensor = self.conv(x)
        gate: Tensor = self.gate(u.mean((2, 3), keepdim=True))
        return u * gate


class ContextPath(nn.Module):
    """A pretrained trunk with attention refinement and global context."""

    def __init__(self, width: float, encoder: str) -> None:
        super().__init__()
        self.trunk, (c16, c32) = make_encoder(encoder, width)
        c = scaled(128, width)
        self.arm16 = AttentionRefinement(c16, c)
        self.arm32 = AttentionRefinement(c32, c)
        self.head16 = ConvBnRelu(c, c, 3)
        self.head32 = ConvBnRelu(c, c, 3)
        self.context = ConvBnRelu(c32, c, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the context features at 1/8 and 1/16, ``[N, 128 * width, ...]``."""
        f16, f32 = self.trunk(x)
        c32 = self.arm32(f32) + self.context(f32.mean((2, 3), keepdim=True))
        c16 = self.head32(F.interpolate(c32, scale_factor=2.0, mode="nearest"))
        g16 = self.arm16(f16) + c16
        c8 = self.head16(F.interpolate(g16, scale_factor=2.0, mode="nearest"))
        return c8, c16


class SpatialPath(nn.Sequential):
    """Three stride-2 convolutions and a 1x1: detail at 1/8."""

    def __init__(self, width: float) -> None:
        c = scaled(64, width)
        super().__init__(
            ConvBnRelu(3, c, 7, 2),
            ConvBnRelu(c, c, 3, 2),
            ConvBnRelu(c, c, 3, 2),
            ConvBnRelu(c, scaled(128, width), 1),
        )


def normalised_gate(channels: int) -> nn.Sequential:
    """Return 1x1 convolution, batch norm and sigmoid: what is quantized and fused well."""
    c = channels
    return nn.Sequential(nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c), nn.Sigmoid())


def paper_gate(channels: int) -> nn.Sequential:
    """Return the published gate: two 1x1 convolutions with a quarter of the channels between."""
    c = channels
    return nn.Sequential(
        nn.Conv2d(c, c // 4, 1, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(c // 4, c, 1, bias=False),
        nn.Sigmoid(),
    )


def relu_gate(channels: int) -> nn.Sequential:
    """Return the gate with a ReLU before the sigmoid, whose range is then 0.5 to 1."""
    convolution, norm, sigmoid = normalised_gate(channels)
    return nn.Sequential(convolution, norm, nn.ReLU(inplace=True), sigmoid)


class FeatureFusion(nn.Module):
    """FFM: concatenation, 1x1 convolution, and a residual channel gate."""

    def __init__(self, width: float, gate: Callable[[int], nn.Sequential]) -> None:
        super().__init__()
        c = 2 * scaled(128, width)
        self.conv = ConvBnRelu(c, c, 1)
        self.gate = gate(c)

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        """Fuse two ``[N, 128 * width, H, W]`` maps into ``[N, 256 * width, H, W]``."""
        u: Tensor = self.conv(torch.cat((spatial, context), 1))
        gate: Tensor = self.gate(u.mean((2, 3), keepdim=True))
        return u + u * gate


class ScoreHead(nn.Module):
    """Classifier: 3x3 convolution, 1x1 to the classes, bilinear up-sampling by ``factor``."""

    def __init__(self, inputs: int, middle: int, classes: int, factor: int) -> None:
        super().__init__()
        self.conv = ConvBnRelu(inputs, middle, 3)
        self.classifier = nn.Conv2d(middle, classes, 1)
        self.factor = float(factor)

    def forward(self, x: Tensor, upsample: bool = True) -> Tensor:
        """Map ``[N, inputs, H, W]`` to ``[N, classes, H * factor, W * factor]``, or to H x W."""
        z: Tensor = self.classifier(self.conv(x))
        if not upsample:
            return z
        return F.interpolate(z, scale_factor=self.factor, mode="bilinear", align_corners=False)


class BiSeNet(Network):
    """BiSeNet V1 over a trunk of choice.

    Args:
        classes: Number of classes K.
        width: Multiplier of every channel count but those of an encoder that has its own; 1.0 with
            ResNet-18 is the published network (13.3 M parameters for inference at K = 19), 0.5 a
            quarter of its work.
        encoder: Trunk of the context path, see `edgeuda.models.encoders.make_encoder`.
    """

    heads = ("main", "aux8", "aux16")
    head_weights = (1.0, 1.0, 1.0)
    base_rate = ("context.", "spatial.")
    pooled = "context.context"
    gate: ClassVar = staticmethod(normalised_gate)

    def __init__(self, classes: int, width: float = 1.0, encoder: str = RESNET18) -> None:
        super().__init__()
        c = scaled(128, width)
        self.channels = 2 * c
        self.encoder = encoder
        self.context = ContextPath(width, encoder)
        self.spatial = SpatialPath(width)
        self.fusion = FeatureFusion(width, self.gate)
        self.main = ScoreHead(2 * c, 2 * c, classes, 8)
        self.aux8 = ScoreHead(c, c // 2, classes, 8)
        self.aux16 = ScoreHead(c, c // 2, classes, 16)
        own = set() if encoder == RESNET18 else set(self.context.trunk.modules())
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module not in own:  # timm's are initialised
                nn.init.kaiming_normal_(module.weight, a=1.0)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, aux: bool = False, upsample: bool = True) -> Logits:
        """Segment normalised images; low-resolution logits are 1/8, those of the last head 1/16."""
        c8, c16 = self.context(x)
        features = self.fusion(self.spatial(x), c8)
        main = self.main(features, upsample)
        if not aux:
            return Logits(main)
        return Logits(main, (self.aux8(c8, upsample), self.aux16(c16, upsample)), features)

    def freeze(self, stride: int) -> None:
        """Let the context path's trunk down to a stride be; its batch norms keep counting."""
        for module in first_modules(self.context.trunk, stride) if stride else ():
            module.requires_grad_(False)

    def load_pretrained(self, weights: str) -> None:
        """Fill the context path's trunk, see `load_encoder`."""
        load_encoder(self.context.trunk, self.encoder, weights)


class BiSeNetPaperGate(BiSeNet):
    """BiSeNet with the published attention in its feature fusion, as in the TUFL release."""

    gate: ClassVar = staticmethod(paper_gate)


class BiSeNetReluGate(BiSeNet):
    """BiSeNet with MMSegmentation's attention in its feature fusion."""

    gate: ClassVar = staticmethod(relu_gate)
