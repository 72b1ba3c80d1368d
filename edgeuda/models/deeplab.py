"""DeepLabV2 on a dilated ResNet-101, as domain adaptation has used it since AdaptSegNet.

Source: Chen et al., "DeepLab", TPAMI 2018; Tsai et al., "Learning to Adapt Structured Output Space
for Semantic Segmentation", CVPR 2018. Features are 1/8 of the input to the pixel and logits are
up-sampled with ``align_corners=False``; the released codes pool with ``ceil_mode`` and align
corners, so their checkpoints come out shifted by part of a pixel here.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from edgeuda.models.network import Logits, Network
from edgeuda.models.network import upsample as to_full
from edgeuda.models.pretrained import load_resnet
from edgeuda.models.resnet import Bottleneck, CaffeBottleneck, resnet101


class DilatedSum(nn.ModuleList):
    """Classifier: the sum of dilated 3x3 convolutions straight to the classes."""

    def __init__(self, inputs: int, classes: int, dilations: tuple[int, ...]) -> None:
        super().__init__(nn.Conv2d(inputs, classes, 3, 1, d, d) for d in dilations)
        for convolution in self:
            assert isinstance(convolution, nn.Conv2d)
            nn.init.normal_(convolution.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, inputs, h, w]`` to ``[N, classes, h, w]``."""
        first, *rest = (convolution(x) for convolution in self)
        for z in rest:
            first = first + z
        total: Tensor = first
        return total


class DeepLabV2(Network):
    """The network of HIAST and IAST: one head, dilations 6, 12, 18 and 24.

    The trunk's batch norms keep their affine parameters, as in the published codes; see
    `learn_affine`.

    Args:
        classes: Number of classes K.
        width: Multiplier of every channel count.
    """

    heads: tuple[str, ...] = ("main",)
    head_weights: tuple[float, ...] = (1.0,)
    base_rate = ("resnet.",)
    dilations: ClassVar[tuple[int, ...]] = (6, 12, 18, 24)
    block: ClassVar[type[Bottleneck]] = Bottleneck
    first_dilates: ClassVar = False
    """HIAST and IAST dilate the last two layers by 1, 2, 2 ... and 2, 4, 4 ..."""

    def __init__(self, classes: int, width: float = 1.0) -> None:
        super().__init__()
        self.resnet = resnet101(width, self.block, self.first_dilates)
        self.channels = self.resnet.channels[1]
        self.main = DilatedSum(self.channels, classes, self.dilations)
        if "aux" in self.heads:
            self.aux = DilatedSum(self.resnet.channels[0], classes, self.dilations)
        for module in self.resnet.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)

    def forward(self, x: Tensor, aux: bool = False, upsample: bool = True) -> Logits:
        """Segment normalised images; low-resolution logits are 1/8."""
        third, features = self.resnet(x)
        heads = [self.main(features)]
        if aux and "aux" in self.heads:
            heads.append(self.aux(third))
        if upsample:
            heads = [to_full(z, (x.shape[2], x.shape[3])) for z in heads]
        return Logits(heads[0], tuple(heads[1:]), features if aux else None)

    def load_pretrained(self, weights: str) -> None:
        """Fill the ResNet-101, see `load_resnet`."""
        load_resnet(self.resnet, weights, "resnet101-63fe2227.pth")


class EvenlyDilatedDeepLabV2(DeepLabV2):
    """What ``"deeplabv2-r101"`` was in files of earlier versions: the first blocks dilate too."""

    first_dilates: ClassVar = True


class MultiLevelDeepLabV2(EvenlyDilatedDeepLabV2):
    """The network of AdaptSegNet and SIM: an auxiliary head, dilations 6 and 12 only.

    The released code names four dilations but returns after the second. Its trunk dilates the first
    block of a layer as the others.
    """

    heads = ("main", "aux")
    head_weights = (1.0, 0.1)
    dilations: ClassVar = (6, 12)


class SingleLevelDeepLabV2(EvenlyDilatedDeepLabV2):
    """The network of LSE: that of AdaptSegNet without its auxiliary head."""

    dilations: ClassVar = (6, 12)


class CaffeMultiLevelDeepLabV2(MultiLevelDeepLabV2):
    """`MultiLevelDeepLabV2` with the stride where the Caffe weights have it."""

    block: ClassVar = CaffeBottleneck
