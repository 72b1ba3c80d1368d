"""FCN8s on VGG16, padded so that every scale fits the input to the pixel.

Source: Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015. The
published network pads the first convolution by 100 pixels and crops afterwards; here each
convolution keeps its size, which gives the same layers and weights without shifts between scales.
The fixed bilinear deconvolutions are bilinear up-sampling.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from edgeuda.models.network import Logits, Network, scaled
from edgeuda.models.network import upsample as to_full
from edgeuda.models.pretrained import read_weights, require_full_width, take

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of VGG16's five stages; a pooling follows each."""


class FCN8s(Network):
    """VGG16 with its classifier as convolutions, and skips from pool3 and pool4.

    It has no batch norm: AdaBN and domain-specific statistics do nothing for it.

    Args:
        classes: Number of classes K.
        width: Multiplier of every channel count.
    """

    heads = ("main",)
    head_weights = (1.0,)
    base_rate = ("features.", "fc6.", "fc7.")

    def __init__(self, classes: int, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for channels, count in STAGES:
            for _ in range(count):
                outputs = scaled(channels, width)
                layers += [nn.Conv2d(inputs, outputs, 3, 1, 1), nn.ReLU(inplace=True)]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)  # numbered as in torchvision
        self.channels = scaled(4096, width)
        self.fc6 = nn.Conv2d(inputs, self.channels, 7, 1, 3)
        self.fc7 = nn.Conv2d(self.channels, self.channels, 1)
        self.dropout = nn.Dropout2d(0.5)
        self.main = nn.Conv2d(self.channels, classes, 1)
        self.pool4 = nn.Conv2d(scaled(512, width), classes, 1)
        self.pool3 = nn.Conv2d(scaled(256, width), classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.main.weight, std=0.01)

    def forward(self, x: Tensor, aux: bool = False, upsample: bool = True) -> Logits:
        """Segment normalised images; low-resolution logits are 1/8."""
        pools = []
        y = x
        for layer in self.features:
            y = layer(y)
            if isinstance(layer, nn.MaxPool2d):
                pools.append(y)
        y = self.dropout(F.relu(self.fc6(y), inplace=True))
        features = self.dropout(F.relu(self.fc7(y), inplace=True))
        # The published factors keep the skips of a new network quiet.
        z = _double(self.main(features)) + self.pool4(0.01 * pools[3])
        z = _double(z) + self.pool3(0.0001 * pools[2])
        if upsample:
            z = to_full(z, (x.shape[2], x.shape[3]))
        return Logits(z, (), features if aux else None)

    def load_pretrained(self, weights: str) -> None:
        """Fill the trunk from torchvision's VGG16 with its classifier, see `read_weights`."""
        if weights == "none":
            return
        require_full_width(self.channels == 4096)
        state = read_weights(weights, "vgg16-397923af.pth")
        names = {"classifier.0": ("fc6", (7, 7)), "classifier.3": ("fc7", (1, 1))}
        found = {key: value for key, value in state.items() if key.startswith("features.")}
        for old, (new, kernel) in names.items():
            if f"{old}.weight" in state:
                matrix = state[f"{old}.weight"]
                found[f"{new}.weight"] = matrix.reshape(matrix.shape[0], -1, *kernel)
                found[f"{new}.bias"] = state[f"{old}.bias"]
        trunk = nn.ModuleDict({"features": self.features, "fc6": self.fc6, "fc7": self.fc7})
        take(trunk, found, f"{weights}: expected the keys of torchvision's vgg16")


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
