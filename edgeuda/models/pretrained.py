"""ImageNet weights of trunks, from a local file or torch's hub cache."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeuda.errors import ConfigError, ModelError
from edgeuda.files import sha256
from edgeuda.models.resnet import ResNet


def load_resnet(trunk: ResNet, weights: str, hub_file: str) -> None:
    """Fill a ResNet trunk with pretrained weights, in place.

    Args:
        trunk: Of width 1.0.
        weights: See `read_weights`; the keys are those of torchvision.
        hub_file: Name of torchvision's file.

    Raises:
        ConfigError: If the trunk's width is not 1.0.
        ModelError: If the file is missing, damaged, or holds another network.
    """
    if weights == "none":
        return
    require_full_width(trunk.conv1.out_channels == 64)
    state = read_weights(weights, hub_file)
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    take(trunk, state, f"{weights}: expected the keys of torchvision's {hub_file.split('-')[0]}")


def require_full_width(full: bool) -> None:
    """Refuse pretrained weights for a network with fewer channels."""
    if not full:
        msg = (
            "Pretrained weights fit width 1.0 only. Set model.width = 1.0, or "
            'model.pretrained = "none"'
        )
        raise ConfigError(msg)


def read_weights(weights: str, hub_file: str) -> dict[str, Tensor]:
    """Read a state dict.

    Args:
        weights: ``"imagenet"`` takes ``hub_file`` from torch's hub cache; anything else is a path
            (``.safetensors``, or ``.pth`` read without executing anything).
        hub_file: Torchvision's name; the eight hex digits are the beginning of its SHA-256, which
            is checked.

    Raises:
        ModelError: If the file is missing or damaged.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / hub_file if weights == "imagenet" else Path(weights)
    if not path.is_file():
        msg = (
            f"{path}: expected ImageNet weights, found no file. Put torchvision's {hub_file} "
            'there, name a file in model.pretrained, or set it to "none"'
        )
        raise ModelError(msg)
    digits = hub_file.removesuffix(".pth").rsplit("-", 1)[-1]
    if (
        path.name == hub_file
        and re.fullmatch("[0-9a-f]{8}", digits)
        and not sha256(path).startswith(digits)
    ):
        msg = f"{path}: SHA-256 does not begin with {digits}; the download is damaged"
        raise ModelError(msg)
    return _read(path)


def take(module: nn.Module, state: dict[str, Tensor], expected: str) -> None:
    """Load a state dict whose keys and shapes must be the module's.

    Raises:
        ModelError: If they are not; the message begins with ``expected``.
    """
    wanted = module.state_dict()
    # Old files lack the counters of batch norm; they play no part with a fixed momentum.
    missing = {k for k in wanted.keys() - state.keys() if not k.endswith("num_batches_tracked")}
    wrong = {k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape}
    extra = state.keys() - wanted.keys()
    if missing or wrong or extra:
        msg = (
            f"{expected}; {len(missing)} missing, {len(extra)} unknown, {len(wrong)} of another "
            f"shape (for example {sorted(missing | extra | wrong)[0]!r})"
        )
        raise ModelError(msg)
    module.load_state_dict(state, strict=False)


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
