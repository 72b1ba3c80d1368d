"""Segmentation checkpoints of other projects: recognised by their keys, converted, reported.

Known are CoinCheung/BiSeNet (V1, with today's gate or the older one), MMSegmentation's BiSeNetV1,
and DeepLabV2 of the AdaptSegNet family. ImageNet weights of torchvision are recognised too, and
said where they belong. Files are read with ``weights_only``: nothing in them is executed.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from edgeuda.errors import ModelError
from edgeuda.labels import SPACES, LabelSpace
from edgeuda.models.checkpoint import build, require_finite
from edgeuda.models.encoders import Triple
from edgeuda.models.network import Network
from edgeuda.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, Preprocessing

DEEPEST = 6
"""Levels of dictionaries and wrappers in which a network is looked for."""
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Upstream:
    """A project's network.

    Attributes:
        name: For people.
        architecture: The registered one that computes the same.
        marks: Keys that such a checkpoint has.
        without: Keys that it lacks.
        rename: Turns one of its keys into ours; None for one that plays no part.
        classifier: The key, in our names, whose first dimension is the number of classes.
        mean: Input statistics, RGB in the [0, 1] range.
        std: Likewise.
        first_bgr: Our key of the convolution whose input is BGR there, if it is.
        remark: What a user has to know.
    """

    name: str
    architecture: str
    marks: tuple[str, ...]
    without: tuple[str, ...]
    rename: Callable[[str], str | None]
    classifier: str
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    first_bgr: tuple[str, ...] = ()
    remark: str = ""


@dataclass(frozen=True)
class Imported:
    """A converted checkpoint.

    Attributes:
        model: The network, in eval mode.
        spec: Its spec, with the input statistics that belong to the weights.
        origin: Where it came from.
        matched: Keys of the file that were taken, with ours.
        left_out: Keys of the file that play no part.
        new: Keys of ours that the file has not, left as they are initialised.
    """

    model: Network
    spec: ModelSpec
    origin: Upstream
    matched: Mapping[str, str]
    left_out: tuple[str, ...]
    new: tuple[str, ...]


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors in a ``.pth``, ``.pt`` or ``.safetensors`` file; nothing is executed.

    Those in dictionaries of dictionaries are called by all their keys: ``state_dict.conv1.weight``.

    Raises:
        ModelError: If the file is missing, damaged, needs more than tensors and plain values, or
            holds no tensor.
    """
    if not path.is_file():
        msg = f"{path}: expected a checkpoint, found no file"
        raise ModelError(msg)
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        needs = re.search(r"GLOBAL (\S+)|`?([\w.]+)`? (?:was not an allowed|is not)", str(err))
        what = next((name for name in needs.groups() if name), "") if needs else ""
        msg = (
            f"{path}: needs more than tensors ({what or 'code of its own'}), and nothing in a "
            "checkpoint is executed here. Where it was made, save the weights alone: "
            "torch.save(model.state_dict(), FILE)"
        )
        raise ModelError(msg) from err
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as err:
        msg = f"{path}: expected a checkpoint, found a file that cannot be read as one ({err})"
        raise ModelError(msg) from err
    if not isinstance(found, dict):
        msg = f"{path}: expected a state dict, found {type(found).__name__}"
        raise ModelError(msg)
    state = dict(_tensors(found))
    if not state:
        msg = f"{path}: expected tensors by name, found {', '.join(map(str, found)) or 'nothing'}"
        raise ModelError(msg)
    return state


def _tensors(
    found: dict[Any, Any], prefix: str = "", level: int = 0
) -> Iterator[tuple[str, Tensor]]:
    for key, value in found.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict) and level < DEEPEST:
            yield from _tensors(value, f"{prefix}{key}.", level + 1)


def networks_in(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the networks of known projects in a checkpoint, each by what its keys begin with.

    Whatever a training code put around a network is found so: ``module.`` and ``_orig_mod.`` of
    torch's wrappers, ``model.`` beside a criterion, a moving average in a dictionary of its own.
    """
    return _parts(dict(state), lambda part: recognise(part) is not None)


def _parts(
    state: dict[str, Tensor],
    wanted: Callable[[dict[str, Tensor]], bool],
    prefix: str = "",
    level: int = 0,
) -> dict[str, dict[str, Tensor]]:
    if wanted(state):
        return {prefix: state}
    if level > DEEPEST:
        return {}
    inner: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        first, dot, rest = key.partition(".")
        if dot:
            inner.setdefault(first, {})[rest] = value
    found: dict[str, dict[str, Tensor]] = {}
    for first, part in inner.items():
        found |= _parts(part, wanted, f"{prefix}{first}.", level + 1)
    return found


def _chosen(
    path: Path, state: Mapping[str, Tensor], weights_key: str | None
) -> tuple[str, dict[str, Tensor]]:
    """Return the network of a checkpoint that is asked for, or the only one.

    Raises:
        ModelError: If there is none, or several and none is chosen.
    """
    found = networks_in(state)
    if not found:
        raise ModelError(_unknown(path, state))
    names = {prefix.rstrip(".") or "(top)": prefix for prefix in found}
    if weights_key is not None:
        prefix = names.get(weights_key.rstrip("."))
        if prefix is None:
            msg = (
                f"{path}: `weights_key` {weights_key}: holds no network there, but at "
                f"{', '.join(names)}"
            )
            raise ModelError(msg)
        return prefix, found[prefix]
    if len(found) > 1:
        msg = (
            f"{path}: holds {len(found)} networks, at {', '.join(names)}: one is probably a moving "
            "average of the other. Say which is wanted with `weights_key`"
        )
        raise ModelError(msg)
    return next(iter(found.items()))


def recognise(state: Mapping[str, Tensor]) -> Upstream | None:
    """Return the project that a state dict comes from, None if it is none that is known."""
    for origin in ORIGINS:
        if all(key in state for key in origin.marks) and not any(
            key in state for key in origin.without
        ):
            return origin
    return None


def import_checkpoint(
    path: Path, space: LabelSpace | None, size: tuple[int, int], weights_key: str | None = None
) -> Imported:
    """Convert a checkpoint of another project.

    Args:
        path: The file, see `read_state`.
        space: What its classes mean; by default Cityscapes' 19 if it has 19.
        size: Height and width of the network's input, multiples of 32.
        weights_key: Where in the file the network lies, if there are several: ``"ema"``, say.

    Raises:
        ModelError: If the file cannot be read, is not recognised, does not fit, or its weights are
            not finite.
    """
    whole = read_state(path)
    prefix, state = _chosen(path, whole, weights_key)
    require_finite(state, str(path))
    origin = recognise(state)
    assert origin is not None
    names = {key: origin.rename(key) for key in state}
    ours = {new: state[old] for old, new in names.items() if new is not None}
    if origin.classifier not in ours:
        msg = f"{path}: looks like {origin.name}, but its classifier is missing"
        raise ModelError(msg)
    classes = ours[origin.classifier].shape[0]
    space = space or SPACES["cityscapes-19"]
    if len(space) != classes:
        msg = (
            f"{path}: has {classes} classes, label space {space.name!r} has {len(space)}. "
            "Give the one it was trained on as `label_space`"
        )
        raise ModelError(msg)
    pre = Preprocessing(*size, origin.mean, origin.std)
    spec = ModelSpec(origin.architecture, 1.0, space, pre)
    model = build(spec)
    wanted = model.state_dict()
    for key in origin.first_bgr:
        ours[key] = ours[key].flip(1)
    wrong = [key for key in ours if key not in wanted or ours[key].shape != wanted[key].shape]
    missing = [key for key in wanted.keys() - ours.keys() if not key.endswith(COUNTER)]
    # Classifiers without bias, and auxiliary heads that an inference checkpoint was stripped of.
    new = tuple(sorted(key for key in missing if _is_optional(key, ours)))
    if wrong or len(new) < len(missing):
        odd = sorted(wrong) or sorted(set(missing) - set(new))
        msg = (
            f"{path}: looks like {origin.name}, but {len(wrong)} tensors have no place or another "
            f"shape and {len(missing) - len(new)} are missing (for example {odd[0]!r}). Is it "
            "another backbone or width?"
        )
        raise ModelError(msg)
    for key in new:
        if key.endswith("classifier.bias"):
            ours[key] = torch.zeros_like(wanted[key])
    model.load_state_dict({**wanted, **ours})
    matched = {old: name for old, name in names.items() if name is not None}
    left_out = [old for old, name in names.items() if name is None]
    left_out += [key for key in whole if not key.startswith(prefix)]
    return Imported(model.eval(), spec, origin, matched, tuple(left_out), new)


def _is_optional(key: str, ours: Mapping[str, Tensor]) -> bool:
    head = key.split(".")[0]
    return key.endswith("classifier.bias") or (
        head.startswith("aux") and not any(other.startswith(f"{head}.") for other in ours)
    )


_TRUNKS = (
    {"conv1.weight", "layer1.0.conv1.weight", "fc.weight"},
    {"features.0.weight", "classifier.0.weight"},
)


def _unknown(path: Path, whole: Mapping[str, Tensor]) -> str:
    trunks = _parts(dict(whole), lambda part: any(keys <= part.keys() for keys in _TRUNKS))
    state: Mapping[str, Tensor] = next(iter(trunks.values()), whole)
    if _TRUNKS[0] <= state.keys():
        deep = "layer3.22.conv3.weight" in state
        use = "--set model.architecture=deeplabv2-r101 " if deep else ""
        return (
            f"{path}: holds torchvision's ResNet{'-101' if deep else ''}, trained on ImageNet: a "
            "trunk, no segmentation network. Train with it: edgeuda train "
            f"{use}--set model.pretrained={path}"
        )
    if _TRUNKS[1] <= state.keys():
        return (
            f"{path}: holds torchvision's VGG16, trained on ImageNet: a trunk, no segmentation "
            "network. Train with it: edgeuda train --set model.architecture=fcn8s-vgg16 --set "
            f"model.pretrained={path}"
        )
    known = "; ".join(origin.name for origin in ORIGINS)
    some = ", ".join(list(state)[:3])
    return f"{path}: not recognised by its keys ({some}, ...). Known are: {known}"


def _renamer(*rules: tuple[str, str | None]) -> Callable[[str], str | None]:
    """Return a function that replaces the first prefix that matches; None leaves the key out.

    Blocks of convolution and batch norm that are called so there are items 0 and 1 here.
    """

    def rename(key: str) -> str | None:
        for pattern, replacement in rules:
            found = re.match(pattern, key)
            if found:
                if replacement is None:
                    return None
                key = found.expand(replacement) + key[found.end() :]
                break
        return re.sub(r"\.(conv|bn)\.(?=[^.]+$)", lambda item: f".{BLOCK[item[1]]}.", key)

    return rename


BLOCK = {"conv": "0", "bn": "1"}
_coincheung = _renamer(
    (r"cp\.resnet\.fc\.", None),
    (r"cp\.resnet\.", r"context.trunk."),
    (r"cp\.(arm\d+)\.conv_atten\.", r"context.\1.gate.0."),
    (r"cp\.(arm\d+)\.bn_atten\.", r"context.\1.gate.1."),
    (r"cp\.(arm\d+)\.", r"context.\1."),
    (r"cp\.conv_head(\d+)\.", r"context.head\1."),
    (r"cp\.conv_avg\.", r"context.context."),
    (r"sp\.conv1\.", r"spatial.0."),
    (r"sp\.conv2\.", r"spatial.1."),
    (r"sp\.conv3\.", r"spatial.2."),
    (r"sp\.conv_out\.", r"spatial.3."),
    (r"ffm\.convblk\.", r"fusion.conv."),
    (r"ffm\.conv1\.", r"fusion.gate.0."),
    (r"ffm\.conv2\.", r"fusion.gate.2."),
    (r"ffm\.conv\.", r"fusion.gate.0."),
    (r"ffm\.bn\.", r"fusion.gate.1."),
    (r"conv_out\.conv_out\.", r"main.classifier."),
    (r"conv_out16\.conv_out\.", r"aux8.classifier."),
    (r"conv_out32\.conv_out\.", r"aux16.classifier."),
    (r"conv_out\.", r"main."),
    (r"conv_out16\.", r"aux8."),
    (r"conv_out32\.", r"aux16."),
)
_mmseg = _renamer(
    (r"backbone\.context_path\.backbone\.", r"context.trunk."),
    (r"backbone\.context_path\.(arm\d+)\.conv_layer\.", r"context.\1.conv."),
    (r"backbone\.context_path\.(arm\d+)\.atten_conv_layer\.1\.", r"context.\1.gate."),
    (r"backbone\.context_path\.conv_head(\d+)\.", r"context.head\1."),
    (r"backbone\.context_path\.gap_conv\.1\.", r"context.context."),
    (r"backbone\.spatial_path\.layer1\.", r"spatial.0."),
    (r"backbone\.spatial_path\.layer2\.", r"spatial.1."),
    (r"backbone\.spatial_path\.layer3\.", r"spatial.2."),
    (r"backbone\.spatial_path\.layer4\.", r"spatial.3."),
    (r"backbone\.ffm\.conv1\.", r"fusion.conv."),
    (r"backbone\.ffm\.conv_atten\.0\.", r"fusion.gate."),
    (r"decode_head\.convs\.0\.", r"main.conv."),
    (r"decode_head\.conv_seg\.", r"main.classifier."),
    (r"auxiliary_head\.0\.convs\.0\.", r"aux8.conv."),
    (r"auxiliary_head\.0\.conv_seg\.", r"aux8.classifier."),
    (r"auxiliary_head\.1\.convs\.0\.", r"aux16.conv."),
    (r"auxiliary_head\.1\.conv_seg\.", r"aux16.classifier."),
)
# The released classifier returns after its second dilation: the others are trained by nothing.
_unused = (r"layer[56]\.conv2d_list\.[23]\.", None)
_trunk = (r"(?=(?:conv1|bn1|layer[1-4])\.)", r"resnet.")
CITYSCAPES_MEAN: Triple = (0.3257, 0.3690, 0.3223)
CITYSCAPES_STD: Triple = (0.2112, 0.2148, 0.2115)
CAFFE_MEAN: Triple = (122.67891434 / 255, 116.66876762 / 255, 104.00698793 / 255)
CAFFE_STD: Triple = (1 / 255, 1 / 255, 1 / 255)
SHIFT = (
    "The released code pools with ceil_mode and aligns corners; labels come out shifted by a part "
    "of an eighth here. The classifier counts two dilations, as it does in the released code"
)

ORIGINS: tuple[Upstream, ...] = (
    Upstream(
        "CoinCheung/BiSeNet V1",
        "bisenet",
        ("cp.resnet.conv1.weight", "ffm.conv.weight", "ffm.bn.weight", "conv_out.conv_out.weight"),
        (),
        _coincheung,
        "main.classifier.weight",
        CITYSCAPES_MEAN,
        CITYSCAPES_STD,
    ),
    Upstream(
        "CoinCheung/BiSeNet V1 with the published gate",
        "bisenet-paper-gate",
        ("cp.resnet.conv1.weight", "ffm.conv2.weight", "conv_out.conv_out.weight"),
        ("ffm.bn.weight",),
        _coincheung,
        "main.classifier.weight",
        CITYSCAPES_MEAN,
        CITYSCAPES_STD,
        remark="Old releases align corners when up-sampling: edges come out shifted here",
    ),
    Upstream(
        "MMSegmentation BiSeNetV1",
        "bisenet-relu-gate",
        ("backbone.context_path.backbone.conv1.weight", "decode_head.conv_seg.weight"),
        (),
        _mmseg,
        "main.classifier.weight",
    ),
    Upstream(
        "AdaptSegNet DeepLabV2, two levels",
        "deeplabv2-r101-multi-caffe",
        ("layer5.conv2d_list.0.weight", "layer6.conv2d_list.0.weight"),
        (),
        _renamer(
            _unused,
            (r"layer6\.conv2d_list\.", r"main."),
            (r"layer5\.conv2d_list\.", r"aux."),
            _trunk,
        ),
        "main.0.weight",
        CAFFE_MEAN,
        CAFFE_STD,
        ("resnet.conv1.weight",),
        SHIFT,
    ),
    Upstream(
        "AdaptSegNet DeepLabV2, one level",
        "deeplabv2-r101-multi-caffe",
        ("layer5.conv2d_list.0.weight",),
        ("layer6.conv2d_list.0.weight",),
        _renamer(_unused, (r"layer5\.conv2d_list\.", r"main."), _trunk),
        "main.0.weight",
        CAFFE_MEAN,
        CAFFE_STD,
        ("resnet.conv1.weight",),
        SHIFT,
    ),
)
"""Checkpoints that are converted."""
