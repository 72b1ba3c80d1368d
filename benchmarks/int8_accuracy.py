"""INT8 against FP32 on adapted networks: rules, calibration domains, recovery.

One exported network per seed. Source frames and target frames are folders of images; --data is
labelled. Scores are those of the network as deployed.
"""

from __future__ import annotations

import argparse
import importlib.util
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from benchmarks.turns import say
from calibration.finetune import Rounding, Tuning, tune
from calibration.options import Options
from calibration.quantize import calibrate
from calibration.source import confusion_of, load_fp32
from edgeuda.accuracy.evaluation import iou_of, miou_of
from edgeuda.data.folders import LabelledFolder, labelled_folder, spread
from edgeuda.data.images import list_images
from edgeuda.records.calibration import Range
from edgeuda.spec import ModelSpec

NEEDS = "extras train and quantize, exported networks, frames and labelled images"
QUICK = {"rows": "ort-x86, max", "frames": 4}
RULES = ("max", "percentile", "frame-percentile", "mse", "entropy")


def tuner(state: Path, seed: int, task):
    """Adapt the fine-tuning to what calibration asks for."""
    rounding = Rounding(task.inputs, task.limits, frozenset(task.convs), task.unsigned)
    tuned = tune(task.model, task.scores, rounding, task.frames, Tuning(seed=seed), state)
    return tuned.constants, {name: Range(*ends) for name, ends in tuned.ranges.items()}


def rows(finetune: bool, part: str) -> dict[str, tuple[Options, str]]:
    """Options and calibration frames of each row."""
    found = {}
    for rule in RULES:
        found[f"ort-x86, {rule}"] = Options("ort-x86", rule, threads=1), "target"
    plain = Options("ort-x86", threads=1)
    found |= {
        "ort-x86, percentile, source frames": (plain, "source"),
        "ort-x86, percentile, mixed frames": (plain, "mixed"),
        "ort-x86, max, source frames": (replace(plain, rule="max"), "source"),
        "ort-x86, percentile, equalized": (replace(plain, equalize=True), "target"),
        "ort-x86, percentile, biases corrected": (replace(plain, correct_biases=True), "target"),
    }
    if finetune:
        found["ort-x86, percentile, fine-tuned 200 steps"] = plain, "target"
    for rule in RULES:
        found[f"tensorrt, {rule}"] = Options("tensorrt", rule, threads=1), "target"
    if importlib.util.find_spec("modelopt") is not None:
        for rule in ("max", "entropy"):
            how = Options("tensorrt", rule, threads=1, quantizer="modelopt")
            found[f"tensorrt by nvidia-modelopt, {rule}"] = how, "target"
    return {name: row for name, row in found.items() if part in name}


def score(model: onnx.ModelProto, spec: ModelSpec, data: LabelledFolder) -> dict:
    counts = confusion_of(model, data, spec, threads=1)
    iou = {n: round(100 * v, 2) for n, v in zip(data.space.classes, iou_of(counts), strict=True)
           if not np.isnan(v)}  # fmt: skip
    return {"miou": round(100 * miou_of(counts), 3), "iou": iou}


def rows_of(model: Path, seed: int, given: argparse.Namespace) -> dict[str, dict]:
    fp32, spec = load_fp32(model)
    data = labelled_folder(given.data, spec.label_space)
    target, source = (spread(list_images(f), given.frames) for f in (given.target, given.source))
    pools = {
        "target": target,
        "source": source,
        "mixed": spread(target, given.frames // 2) + spread(source, given.frames // 2),
    }
    results = {"FP32": score(fp32, spec, data)}
    for name, (settings, pool) in rows(given.finetune, given.rows).items():
        key = "".join(c if c.isalnum() else "-" for c in name)
        out = given.work / f"{model.stem}-{key}.onnx"
        ranges = given.work / f"{model.stem}-{pool}{'-even' * settings.equalize}.npz"
        fine = "fine-tuned" in name
        record = calibrate(
            model, pools[pool], out, settings, judged=target, ranges=ranges,
            tune=partial(tuner, given.work / f"{key}.pt", seed) if fine else None,
        )  # fmt: skip
        results[name] = score(onnx.load(out), spec, data) | {
            "agreement": round(100 * record.agreement, 3),
            "worst_frame": round(100 * min(record.acceptance.frame_agreement), 3),
            "accepted": record.acceptance.accepted,
            "int8_convs": record.int8_convs,
            "convs": record.convs,
        }
        say(model.stem, name, results[name]["miou"], results[name]["agreement"])
    return results


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, action="append", required=True)
    for name in ("source", "target", "data", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--finetune", action="store_true", help="fine-tuned rows too (minutes)")
    parser.add_argument("--rows", default="", help="only rows whose name has this in it")
    parser.add_argument("--frames", type=int, default=64, help="to calibrate on")


def measure(given: argparse.Namespace) -> dict:
    given.work.mkdir(parents=True, exist_ok=True)
    runs = [rows_of(model, seed, given) for seed, model in enumerate(given.model)]
    summary = []
    for name in runs[0]:
        row: dict = {"name": name, "miou": [run[name]["miou"] for run in runs]}
        row["iou"] = {c: [run[name]["iou"].get(c) for run in runs] for c in runs[0][name]["iou"]}
        if name != "FP32":
            drops = [run[name]["miou"] - run["FP32"]["miou"] for run in runs]
            row |= {
                "change": [round(d, 3) for d in drops],
                "change_mean": round(float(np.mean(drops)), 3),
                "change_stdev": round(float(np.std(drops, ddof=1)), 3) if len(drops) > 1 else None,
            }
            for key in ("agreement", "worst_frame", "accepted", "int8_convs", "convs"):
                row[key] = [run[name][key] for run in runs]
        summary.append(row)
    return {
        "schema": "edgeuda.benchmark.int8-accuracy/1",
        "models": [model.stem for model in given.model],
        "frames": given.frames,
        "rows": summary,
    }
