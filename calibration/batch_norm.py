"""Batch-norm statistics estimated anew on an exported graph: AdaBN on the vehicle, without torch.

Source: Li et al., "Revisiting Batch Normalization for Practical Domain Adaptation", 2016; with a
prior, Schneider et al., "Improving robustness against common corruptions by covariate shift
adaptation", NeurIPS 2020.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from calibration.frames import Frames
from edgeuda.errors import ConfigError, DataError, ModelError, require
from edgeuda.records.names import ProviderName
from engines.onnx.graphs import metadata_of
from engines.onnx.metadata import BATCH_NORM_KEY, FoldedNorm, norms_of, norms_to_json
from engines.onnx.session import open_session
from engines.onnx.weights import constants_of, with_constants

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger(__name__)

MERGED = ".reparam_conv.weight"
"""End of the names of RepVGG's and MobileOne's convolutions, each a sum of normalised branches."""
BATCH = 4
LEAST_VARIANCE = 1e-3
"""Share of its old variance below which a layer's new statistics are not to be trusted: the same
bound as in training (`edgeuda.methods.adabn`)."""

Doubles = npt.NDArray[np.float64]


def adapt_batch_norm(
    model: onnx.ModelProto,
    frames: Frames,
    origin: str,
    *,
    batch: int = BATCH,
    seed: int | None = 0,
    prior: float = 0.0,
    layers: Sequence[str] = ("*",),
    threads: int | None = None,
    device: ProviderName = "cpu",
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[onnx.ModelProto, list[str]]:
    """Replace the statistics folded into a graph by those of frames.

    Every normalisation takes the statistics of its batch, as in training, and the averages over the
    batches are folded back; weights, factors and summands stay. What remains of the frames after
    the last whole batch is left out, as a batch of one has no statistics behind a global mean.

    With a prior N and n frames, means and variances are n / (N + n) of the new ones and the rest of
    the old ones (Schneider et al., section 3), in what is folded back and in each normalisation on
    the way: what a layer is estimated on is what it will be given.

    Args:
        model: An FP32 graph written by `export_onnx`, with the batch norms it folded.
        frames: New footage, at least two frames.
        origin: Names the file in errors.
        batch: Frames per batch, at least 2; no more than there are.
        seed: Of the order of the frames; None keeps it. Batches of neighbouring frames, which are
            alike, cost a third of the gain.
        prior: Frames that the old statistics count for, 0 or more.
        layers: Patterns (``*`` and ``?``) of weight names; other layers normalise, and stay, as
            they are.
        threads: As in `open_session`.
        device: As in `open_session`.
        progress: Called with batches done and batches to do.

    Returns:
        The graph with other weights and biases, and the names of layers that kept theirs, because
        over the frames their variance is next to nothing.

    Raises:
        DataError: If there are fewer than two frames.
        ModelError: If the graph does not say which batch norms were folded into it.
    """
    if not prior >= 0:
        msg = f"`prior`: expected a number of frames, 0 or more, found {prior}"
        raise ConfigError(msg)
    norms = norms_of(metadata_of(model), origin)
    constants = constants_of(model)
    convs = {
        node.input[1]: node
        for node in model.graph.node
        if node.op_type == "Conv" and node.input[1] in norms
    }
    norms = {name: norm for name, norm in norms.items() if name in convs}
    merged = sum(name.endswith(MERGED) for name in constants)
    if merged:
        logger.warning(
            "%s: %d convolutions are several branches in one and keep the statistics of training. "
            "To renew those too, run stage adabn (edgeuda adapt) before the export",
            origin,
            merged,
        )
    if not norms:
        msg = f"{origin}: none of its convolutions carries a folded batch norm"
        raise ModelError(msg)
    every = norms
    norms = {
        name: norm for name, norm in norms.items() if any(fnmatch(name, one) for one in layers)
    }
    if not norms:
        msg = (
            f"{origin}: expected a batch norm of {', '.join(layers)}, found only others, for "
            f"example {', '.join(list(every)[:3])}"
        )
        raise ConfigError(msg)
    batch = min(batch, len(frames))
    if batch < 2:
        msg = (
            f"{origin}: estimating batch-norm statistics takes at least two frames, "
            f"found {len(frames)}"
        )
        raise DataError(msg)
    names = [f"{name}{suffix}" for name in norms for suffix in (_MEAN, _VARIANCE)]
    batches = len(frames) // batch
    share = batch * batches / (batch * batches + prior)
    session = open_session(
        _normalising_by_batch(model, norms, convs, share).SerializeToString(),
        threads=threads,
        device=device,
    )
    sizes = dict.fromkeys(norms, 0)
    sums: dict[str, Doubles] = {name: np.zeros(()) for name in names}
    order = np.arange(len(frames))
    if seed is not None:
        order = np.random.default_rng(seed).permutation(order)
    for number in range(batches):
        chosen = order[number * batch : (number + 1) * batch]
        images = np.concatenate([frames[int(position)] for position in chosen])
        outputs = session.run([*names, *(f"{name}{_SIZE}" for name in norms)], {"image": images})
        for name, value in zip(names, outputs, strict=False):
            sums[name] = sums[name] + value.reshape(-1).astype(np.float64)
        sizes = {
            name: int(np.prod(shape[[0, 2, 3]]))
            for name, shape in zip(norms, outputs[len(names) :], strict=True)
        }
        progress(number + 1, batches)

    changed: dict[str, npt.NDArray[np.float32]] = {}
    renewed, kept = {}, []
    for name, norm in norms.items():
        gamma, old = norm.gamma.astype(np.float64), norm.variance.astype(np.float64)
        deviation = np.sqrt(old + norm.epsilon)
        alive = gamma != 0
        unscale = np.divide(deviation, gamma, out=np.zeros_like(gamma), where=alive)
        size = sizes[name]
        unbiased = sums[f"{name}{_VARIANCE}"] / batches * size / max(size - 1, 1)
        variance = np.where(alive, unbiased * unscale**2, old)
        if variance.mean() < LEAST_VARIANCE * old.mean():
            kept.append(name)
            continue
        variance = share * variance + (1 - share) * old
        ratio = deviation / np.sqrt(variance + norm.epsilon)
        changed[name] = (constants[name] * ratio.reshape(-1, 1, 1, 1)).astype(np.float32)
        mean = share * sums[f"{name}{_MEAN}"] / batches
        mean = mean + (1 - share) * _old_mean(norm, constants[convs[name].input[2]])
        bias = norm.beta - mean * ratio
        changed[convs[name].input[2]] = bias.astype(np.float32)
        renewed[name] = replace(norm, variance=variance.astype(np.float32))
    adapted = with_constants(model, changed)
    for entry in adapted.metadata_props:
        if entry.key == BATCH_NORM_KEY:
            entry.value = norms_to_json({**every, **renewed})
    return adapted, kept


_MEAN, _VARIANCE, _SIZE = ".batch_mean", ".batch_variance", ".batch_size"
_SHARE = "edgeuda.share"


def _old_mean(norm: FoldedNorm, bias: npt.NDArray[np.float32]) -> Doubles:
    """Return the mean that a folded convolution subtracts, of what it computes without its bias."""
    return np.asarray(norm.beta.astype(np.float64) - bias)


def _normalising_by_batch(
    model: onnx.ModelProto,
    norms: Mapping[str, FoldedNorm],
    convs: Mapping[str, onnx.NodeProto],
    share: float,
) -> onnx.ModelProto:
    """Return the graph whose folded normalisations use, and put out, statistics of the batch.

    A folded convolution computes ``u = (gamma / s) z`` for the convolution's own ``z``. Normalised
    by its batch and scaled that is ``|gamma| (u - mean u) / sqrt(var u + epsilon gamma^2 / s^2)``.
    With a share below 1 mean and variance are that much of the batch's and the rest of the old
    ones; what is put out are the batch's.
    """
    onnx = require("onnx", "quantize")
    helper = onnx.helper
    added: dict[str, npt.NDArray[np.float32] | npt.NDArray[np.int64]] = {
        "edgeuda.axes": np.array([0, 2, 3]), _SHARE: np.array(share, np.float32)
    }  # fmt: skip
    variant = with_constants(model, added)
    variant.graph.ClearField("value_info")
    del variant.graph.output[:]
    constants = constants_of(model)
    nodes = []
    for node in variant.graph.node:
        nodes.append(node)
        if node.op_type != "Conv" or node.input[1] not in norms:
            continue
        name, result = node.input[1], node.output[0]
        norm = norms[name]
        gamma = np.abs(norm.gamma.astype(np.float64)).reshape(1, -1, 1, 1)
        variance = norm.variance.astype(np.float64).reshape(1, -1, 1, 1)
        stabiliser = norm.epsilon * gamma**2 / (variance + norm.epsilon)
        added[f"{name}.gamma"] = gamma.astype(np.float32)
        added[f"{name}.beta"] = norm.beta.reshape(1, -1, 1, 1)
        # A dead channel has neither product nor variance; anything above zero will do.
        added[f"{name}.stabiliser"] = np.where(gamma > 0, stabiliser, 1).astype(np.float32)
        raw, mean, spread = f"{name}.raw", f"{name}{_MEAN}", f"{name}{_VARIANCE}"
        centred, square = f"{name}.centred", f"{name}.square"
        shifted, blending = centred, []
        if share < 1:
            old = {
                _MEAN: _old_mean(norm, constants[node.input[2]]).reshape(1, -1, 1, 1),
                _VARIANCE: gamma**2 * variance / (variance + norm.epsilon),
            }
            for suffix, value in old.items():
                scaled_down, rest = f"{name}{suffix}.share", f"{name}{suffix}.rest"
                added[rest] = ((1 - share) * value).astype(np.float32)
                blending += [
                    helper.make_node("Mul", [f"{name}{suffix}", _SHARE], [scaled_down]),
                    helper.make_node("Add", [scaled_down, rest], [f"{name}{suffix}.blended"]),
                ]
            mean, spread, shifted = f"{mean}.blended", f"{spread}.blended", f"{name}.shifted"
            blending.append(helper.make_node("Sub", [raw, mean], [shifted]))
        node.output[0] = raw
        del node.input[2:]
        stable, root = f"{name}.stable", f"{name}.root"
        scaled, normal = f"{name}.scaled", f"{name}.normal"
        nodes += [
            helper.make_node("ReduceMean", [raw, "edgeuda.axes"], [f"{name}{_MEAN}"]),
            helper.make_node("Shape", [raw], [f"{name}{_SIZE}"]),
            helper.make_node("Sub", [raw, f"{name}{_MEAN}"], [centred]),
            helper.make_node("Mul", [centred, centred], [square]),
            helper.make_node("ReduceMean", [square, "edgeuda.axes"], [f"{name}{_VARIANCE}"]),
            *blending,
            helper.make_node("Add", [spread, f"{name}.stabiliser"], [stable]),
            helper.make_node("Sqrt", [stable], [root]),
            helper.make_node("Div", [f"{name}.gamma", root], [scaled]),
            helper.make_node("Mul", [shifted, scaled], [normal]),
            helper.make_node("Add", [normal, f"{name}.beta"], [result]),
        ]
        for suffix, kind in ((_MEAN, "FLOAT"), (_VARIANCE, "FLOAT"), (_SIZE, "INT64")):
            variant.graph.output.append(
                helper.make_tensor_value_info(
                    f"{name}{suffix}", getattr(onnx.TensorProto, kind), None
                )
            )
    del variant.graph.node[:]
    variant.graph.node.extend(nodes)
    return with_constants(variant, added)
