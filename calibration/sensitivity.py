"""Which layers lose by quantization, and the fastest assignment that loses little enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from calibration.acceptance import divergence
from calibration.frames import Frames
from calibration.observe import Observation, Observer
from edgeuda.records.calibration import Assignment, BlockEffect, BudgetStep
from engines.onnx.weights import multiplications

if TYPE_CHECKING:
    import onnx

Quantize = Callable[[frozenset[str]], "onnx.ModelProto"]
"""Returns the graph with Q/DQ pairs in which the convolutions named, by their output, stay float
besides those that always do."""
ScoreGraph = Callable[["onnx.ModelProto"], float]
"""Returns the mIoU, 0 to 1, of a graph on labelled images."""


def groups_of(model: onnx.ModelProto, convs: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Return the blocks of a network: output and weight of each convolution by block.

    ``layer1.0.conv1.weight`` and ``layer1.0.conv2.weight`` are of ``layer1.0``. A weight without
    dots, as other exporters write them, is a group of its own.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.output[0] in convs:
            parts = node.input[1].split(".")
            name = ".".join(parts[:-2]) if len(parts) > 2 else node.input[1]
            groups.setdefault(name, []).append((node.output[0], node.input[1]))
    return groups


def effects_of(
    model: onnx.ModelProto,
    convs: Sequence[str],
    quantize: Quantize,
    frames: Frames,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[list[BlockEffect], list[Observation]]:
    """Quantize one block at a time and compare with FP32 on frames, without labels.

    Args:
        model: The FP32 graph.
        convs: Convolutions that would be quantized, by their output.
        quantize: See `Quantize`.
        frames: Frames of the target domain; what FP32 says about them stays in memory.
        threads: As in `open_session`.
        progress: Called with groups done and groups to do.

    Returns:
        The effects, the largest divergence per multiplication first, and what FP32 says.
    """
    observe = Observer(model, threads)
    reference = [observe(frames[i]) for i in range(len(frames))]
    costs = multiplications(model)
    total = sum(costs.values())
    groups = groups_of(model, convs)
    effects = []
    for number, (name, members) in enumerate(groups.items()):
        own = frozenset(conv for conv, _ in members)
        changed, lost = _against(
            reference, Observer(quantize(frozenset(convs) - own), threads), frames
        )
        effects.append(
            BlockEffect(
                name,
                tuple(conv for conv, _ in members),
                tuple(weight for _, weight in members),
                sum(costs[conv] for conv in own) / total,
                changed,
                lost,
            )
        )
        progress(number + 1, len(groups))
    effects.sort(key=lambda effect: -effect.divergence / max(effect.share, 1e-9))
    return effects, reference


def assign(
    effects: Sequence[BlockEffect],
    quantize: Quantize,
    frames: Frames,
    reference: Sequence[Observation],
    max_drop: float,
    *,
    whole_curve: bool = False,
    score: tuple[ScoreGraph, float] | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Assignment:
    """Return blocks to float, the most harmful per multiplication first, until the budget is kept.

    Args:
        effects: In the order in which they are returned.
        quantize: See `Quantize`.
        frames: Frames of the target domain.
        reference: What FP32 says about them.
        max_drop: Budget, 0 to 1.
        whole_curve: Whether to go on to all float after the budget is kept.
        score: Where there are labels, how a graph is scored, and FP32's score: the drop is then one
            of mIoU, and else the share of pixels that change class.
        threads: As in `open_session`.
        progress: Called with groups returned and groups there are.
    """
    share = sum(effect.share for effect in effects)
    floating: frozenset[str] = frozenset()
    returned: list[str] = []
    curve: list[BudgetStep] = []
    chosen: tuple[tuple[str, ...], frozenset[str]] | None = None
    for number in range(len(effects) + 1):
        graph = quantize(floating)
        if score is None:
            drop, _ = _against(reference, Observer(graph, threads), frames)
        else:
            drop = score[1] - score[0](graph)
        curve.append(BudgetStep(returned[-1] if returned else None, share, drop))
        progress(number, len(effects))
        if chosen is None and drop <= max_drop:
            chosen = tuple(returned), floating
            if not whole_curve:
                break
        if number < len(effects):
            effect = effects[number]
            floating |= frozenset(effect.convs)
            returned.append(effect.group)
            share = max(share - effect.share, 0.0)
    kept, convs = chosen or (tuple(returned), floating)
    return Assignment(
        kept,
        convs,
        max_drop,
        "disagreement" if score is None else "mIoU",
        chosen is not None,
        tuple(effects),
        tuple(curve),
    )


def _against(
    reference: Sequence[Observation], observe: Observer, frames: Frames
) -> tuple[float, float]:
    changed, lost = [], []
    for position, fp32 in enumerate(reference):
        int8 = observe(frames[position])
        changed.append(float((fp32.labels != int8.labels).mean()))
        lost.append(divergence(fp32, int8))
    return float(np.mean(changed)), float(np.mean(lost))
