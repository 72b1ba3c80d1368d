"""ImageNet weights of trunks: from a file, or downloaded to the usual cache and checked."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeuda.errors import ConfigError, ModelError
from edgeuda.files import sha256
from edgeuda.models.resnet import ResNet

logger = logging.getLogger(__name__)

TORCHVISION = "https://download.pytorch.org/models/"
HUB_ENDPOINT: str | None = None
"""Another Hugging Face hub than that of the environment's ``HF_ENDPOINT``."""


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
        weights: ``"imagenet"`` takes torchvision's ``hub_file`` from torch's hub cache, where it is
            downloaded to first; anything else is a path (``.safetensors``, or ``.pth`` read without
            executing anything).
        hub_file: Torchvision's name; the eight hex digits are the beginning of its SHA-256, which
            is checked.

    Raises:
        ModelError: If the file is missing, damaged, or cannot be downloaded.
    """
    return from_url(TORCHVISION + hub_file) if weights == "imagenet" else read_file(Path(weights))


def from_url(url: str, instead: str = "") -> dict[str, Tensor]:
    """Read a state dict from torch's hub cache, where it is downloaded to first.

    Args:
        url: Its last part ends in the first hex digits of the SHA-256 where that is checked.
        instead: What else to do offline, begun with a comma.

    Raises:
        ModelError: If it cannot be downloaded, or is damaged.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        logger.info("Downloading %s to %s", url, path)
        try:
            # To a temporary name, with a progress bar; moved when its digest is right.
            torch.hub.download_url_to_file(url, str(path), _digits(path), progress=True)
        except (OSError, RuntimeError) as err:
            raise ModelError(_offline(url, path, err, instead)) from err
    return read_file(path)


def from_hub(repository: str, name: str, instead: str = "") -> dict[str, Tensor]:
    """Read a state dict from the Hugging Face cache, where it is downloaded to first.

    Args:
        repository: For example ``"timm/repvgg_a0.rvgg_in1k"``.
        name: File in it.
        instead: What else to do offline, begun with a comma.

    Raises:
        ModelError: If it cannot be downloaded, or is damaged.
    """
    import huggingface_hub as hub  # comes with timm; its import takes a while

    repository, _, revision = repository.partition("@")
    cached = hub.try_to_load_from_cache(repository, name, revision=revision or None)
    if not isinstance(cached, str):
        try:
            cached = hub.hf_hub_download(
                repository, name, revision=revision or None, endpoint=HUB_ENDPOINT
            )
        except (OSError, ValueError) as err:  # its own errors are OSErrors
            url = hub.hf_hub_url(repository, name, revision=revision or None)
            place = Path(hub.constants.HF_HUB_CACHE)
            raise ModelError(_offline(url, place, err, instead)) from err
    path = Path(cached)
    digest = path.resolve().name  # large files lie in the cache under their SHA-256
    if not re.fullmatch("[0-9a-f]{64}", digest):
        logger.warning("%s: the cache does not say its SHA-256; it is not checked", path)
    elif sha256(path) != digest:
        msg = (
            f"{path}: expected SHA-256 {digest}, the download is damaged. Remove "
            f"{path.resolve()} and try again"
        )
        raise ModelError(msg)
    return _read(path)


def read_file(path: Path) -> dict[str, Tensor]:
    """Read a state dict, checking the digest in the name of one of torchvision's or timm's files.

    Raises:
        ModelError: If the file is missing or damaged.
    """
    if not path.is_file():
        msg = (
            f"{path}: expected a file of ImageNet weights, found none. Name one in "
            'model.pretrained, or set it to "imagenet" or "none"'
        )
        raise ModelError(msg)
    digits = _digits(path)
    if digits is not None and not sha256(path).startswith(digits):
        msg = (
            f"{path}: SHA-256 does not begin with {digits}; the download is damaged. Remove it and "
            "try again"
        )
        raise ModelError(msg)
    return _read(path)


def _digits(path: Path) -> str | None:
    """Return the first digits of the SHA-256 in a name such as ``resnet18-f37072fd.pth``."""
    found = re.fullmatch(r".*-([0-9a-f]{8,64})\.pth", path.name)
    return found[1] if found else None


def _offline(url: str, place: Path, err: Exception, instead: str) -> str:
    """Say what to do where a download failed."""
    where = f"put it there as {place}" if place.suffix else f"copy the cache {place}"
    return (
        f"{url} could not be downloaded ({' '.join(str(err).split())[:200]}). Where there is no "
        f"internet, download it elsewhere and {where}, or name the file, "
        f"`model.pretrained=FILE`{instead}; to start from random weights: `model.pretrained=none`"
    )


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
