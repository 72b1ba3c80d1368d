"""ResNet trunks with the parameter names of torchvision.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; dilated as in Chen et
al., "DeepLab", TPAMI 2018.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from edgeuda.models.network import scaled


class BasicBlock(nn.Module):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, inputs: int, middle: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, middle, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.downsample = _shortcut(inputs, middle, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, inputs, H, W]`` to ``[N, middle, H/stride, W/stride]``."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.downsample(x), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 (which has the stride, as in torchvision), 1x1 to four times the channels."""

    expansion = 4
    stride_first = False

    def __init__(self, inputs: int, middle: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        outputs = middle * self.expansion
        first, second = (stride, 1) if self.stride_first else (1, stride)
        self.conv1 = nn.Conv2d(inputs, middle, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, second, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, inputs, H, W]`` to ``[N, 4 * middle, H/stride, W/stride]``."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.downsample(x), inplace=True)


class CaffeBottleneck(Bottleneck):
    """The block of the first release: the stride is in the first 1x1 convolution."""

    stride_first = True


class ResNet(nn.Module):
    """A trunk without its classifier.

    Args:
        block: Kind of block.
        depths: Blocks in each of the four layers.
        width: Multiplier of the channel counts.
        dilations: Of the four layers; one that dilates keeps its input's resolution.
        first_dilates: Whether the first block of a layer dilates as the others do; else it takes
            the dilation of the layer before, as in torchvision.

    Attributes:
        channels: Of the two feature maps that `forward` returns.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        width: float = 1.0,
        dilations: tuple[int, int, int, int] = (1, 1, 1, 1),
        first_dilates: bool = False,
    ) -> None:
        super().__init__()
        stem = scaled(64, width)
        self.conv1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = stem
        for layer, (depth, dilation) in enumerate(zip(depths, dilations, strict=True)):
            middle = scaled(64 << layer, width)
            outputs = middle * block.expansion
            before = dilation if first_dilates else dilations[max(0, layer - 1)]
            first = block(inputs, middle, 2 if layer and dilation == 1 else 1, before)
            rest = [block(outputs, middle, 1, dilation) for _ in range(depth - 1)]
            setattr(self, f"layer{layer + 1}", nn.Sequential(first, *rest))
            inputs = outputs
        third, last = (scaled(c, width) * block.expansion for c in (256, 512))
        self.channels = third, last

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of the last two layers: 1/16 and 1/32, or both 1/8 if dilated."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        third: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return third, self.layer4(third)


def resnet18(width: float = 1.0) -> ResNet:
    """Return the ResNet-18 trunk: 256 and 512 channels times ``width``."""
    return ResNet(BasicBlock, (2, 2, 2, 2), width)


def resnet101(
    width: float = 1.0, block: type[Bottleneck] = Bottleneck, first_dilates: bool = False
) -> ResNet:
    """Return the ResNet-101 trunk dilated by 2 and 4: 1024 and 2048 channels times ``width``."""
    return ResNet(block, (3, 4, 23, 3), width, (1, 1, 2, 4), first_dilates)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
