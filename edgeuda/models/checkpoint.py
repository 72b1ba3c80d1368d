"""Saving and loading of networks: safetensors with the model's spec in the header."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeuda.errors import ConfigError, ModelError, did_you_mean
from edgeuda.files import write_atomic
from edgeuda.models.bisenet import BiSeNet, BiSeNetPaperGate, BiSeNetReluGate
from edgeuda.models.custom import custom_network, is_custom
from edgeuda.models.deeplab import (
    CaffeMultiLevelDeepLabV2,
    DeepLabV2,
    EvenlyDilatedDeepLabV2,
    MultiLevelDeepLabV2,
    SingleLevelDeepLabV2,
)
from edgeuda.models.fcn import FCN8s
from edgeuda.models.network import Network
from edgeuda.records.identity import model_file
from edgeuda.spec import ModelSpec

ARCHITECTURES: dict[str, type[Network]] = {
    "bisenet": BiSeNet,
    "bisenet-paper-gate": BiSeNetPaperGate,
    "bisenet-relu-gate": BiSeNetReluGate,
    "deeplabv2-r101": DeepLabV2,
    "deeplabv2-r101-even": EvenlyDilatedDeepLabV2,
    "deeplabv2-r101-single": SingleLevelDeepLabV2,
    "deeplabv2-r101-multi": MultiLevelDeepLabV2,
    "deeplabv2-r101-multi-caffe": CaffeMultiLevelDeepLabV2,
    "fcn8s-vgg16": FCN8s,
}


def build(spec: ModelSpec) -> Network:
    """Make a randomly initialised network for a spec.

    A network of the user's own (`edgeuda.models.custom`) is a copy of the one that she registered.

    Raises:
        ConfigError: If the architecture is unknown; the message lists the known ones.
    """
    if is_custom(spec.architecture):
        return custom_network(spec.architecture)
    if spec.architecture not in ARCHITECTURES:
        hint = did_you_mean(spec.architecture, ARCHITECTURES)
        known = ", ".join(ARCHITECTURES)
        msg = f"Unknown architecture {spec.architecture!r}{hint}; known: {known}"
        raise ConfigError(msg)
    kind = ARCHITECTURES[spec.architecture]
    if issubclass(kind, BiSeNet):
        return kind(len(spec.label_space), spec.width, spec.encoder)
    return kind(len(spec.label_space), spec.width)


def save_model(model: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Write weights and spec to one ``.safetensors`` file, atomically."""
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    metadata = {"edgeuda.spec": spec.to_json()}
    write_atomic(path, lambda name: save_file(state, name, metadata))


def require_finite(state: Mapping[str, Tensor], origin: str) -> None:
    """Refuse weights that hold NaN or infinities: such a network calls every pixel one class.

    Args:
        state: Tensors by name.
        origin: Names the file in the error.

    Raises:
        ModelError: If one is not finite; it is named.
    """
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            msg = (
                f"{origin}: weights must be finite, found NaN or infinity in {name!r}. The "
                "training that made it diverged; take an earlier checkpoint"
            )
            raise ModelError(msg)


def load_model(path: Path, module: nn.Module | None = None) -> tuple[Network, ModelSpec]:
    """Read a network written by `save_model`, in eval mode, from its file or run folder.

    Args:
        path: Model file or run folder.
        module: For a network of the user's own: what `edgeuda.models.custom.wrap` returned, or an
            equal one. It is copied. None takes what was registered under the file's name.

    Raises:
        ModelError: If the file is missing, damaged, not ours, or holds another network than its
            spec says; or if it is of a network that is not known here.
    """
    file = model_file(path)
    try:
        with safe_open(file, "pt") as stored:
            spec_text = (stored.metadata() or {}).get("edgeuda.spec")
            state = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as err:
        msg = f"{file}: expected a safetensors file, found one that cannot be read ({err})"
        raise ModelError(msg) from err
    if spec_text is None:
        msg = (
            f"{file}: expected a model written by edgeuda, found a safetensors file without "
            "its 'edgeuda.spec' record"
        )
        raise ModelError(msg)
    spec = ModelSpec.from_json(spec_text, str(file))
    require_finite(state, str(file))
    model = build(spec) if module is None else copy.deepcopy(module)
    if not isinstance(model, Network):
        msg = f"{file}: expected what edgeuda.wrap returned, found a {type(model).__name__}"
        raise ModelError(msg)
    try:
        model.load_state_dict(state)
    except RuntimeError as err:
        msg = f"{file}: weights do not fit {spec.architecture} of width {spec.width}: {err}"
        raise ModelError(msg) from err
    return model.eval(), spec
