"""ImageNet weights of the ResNet-18 trunk, from a local file or torch's hub cache."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from edgeuda.errors import ConfigError, ModelError
from edgeuda.files import sha256
from edgeuda.models.bisenet import ResNet18

HUB_FILE = "resnet18-f37072fd.pth"
"""Torchvision's name; the eight hex digits are the beginning of the file's SHA-256."""


def load_trunk(trunk: ResNet18, weights: str) -> None:
    """Fill a trunk with pretrained weights, in place.

    Args:
        trunk: The context path's ResNet-18, width 1.0.
        weights: ``"none"`` leaves the random initialisation; ``"imagenet"`` takes the file from
            torch's hub cache, its hash checked; anything else is a path to a state dict with
            torchvision's keys (``.safetensors``, or ``.pth`` read without executing anything).

    Raises:
        ConfigError: If the trunk's width is not 1.0.
        ModelError: If the file is missing, damaged, or holds another network.
    """
    if weights == "none":
        return
    if trunk.conv1.out_channels != 64:
        msg = (
            f"Pretrained weights fit width 1.0 only, this trunk starts with "
            f"{trunk.conv1.out_channels} channels. Set model.width = 1.0, or "
            'model.pretrained = "none"'
        )
        raise ConfigError(msg)
    path = (
        Path(torch.hub.get_dir()) / "checkpoints" / HUB_FILE
        if weights == "imagenet"
        else Path(weights)
    )
    if not path.is_file():
        msg = (
            f"{path}: expected ImageNet weights of ResNet-18, found no file. Put torchvision's "
            f'{HUB_FILE} there, name a file in model.pretrained, or set it to "none"'
        )
        raise ModelError(msg)
    if path.name == HUB_FILE and not sha256(path).startswith("f37072fd"):
        msg = f"{path}: SHA-256 does not begin with f37072fd; the download is damaged"
        raise ModelError(msg)
    state = _read(path)
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    wanted = trunk.state_dict()
    # Old files lack the counters of batch norm; they play no part with a fixed momentum.
    missing = {k for k in wanted.keys() - state.keys() if not k.endswith("num_batches_tracked")}
    wrong = {k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape}
    extra = state.keys() - wanted.keys()
    if missing or wrong or extra:
        msg = (
            f"{path}: expected the keys of torchvision's resnet18; {len(missing)} missing, "
            f"{len(extra)} unknown, {len(wrong)} of another shape "
            f"(for example {sorted(missing | extra | wrong)[0]!r})"
        )
        raise ModelError(msg)
    trunk.load_state_dict(state, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:
        msg = f"{path}: expected a state dict, found a file that cannot be read as one ({err})"
        raise ModelError(msg) from err
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        msg = f"{path}: expected a state dict of tensors, found {type(state).__name__}"
        raise ModelError(msg)
    return state
