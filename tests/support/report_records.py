"""Records as verbs write them, small and made up, for tests of what reads them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgeuda.accuracy.evaluation import Evaluation
from edgeuda.data.images import write_image, write_label
from edgeuda.decision import Budget, Candidate, choose
from edgeuda.files import sha256, write_json
from edgeuda.labels import SPACES
from edgeuda.spec import Preprocessing

THREE = SPACES["carla-3"]
SOURCE, STAGE2, INT8 = "a" * 64, "b" * 64, "c" * 64


def score(miou: float) -> list[list[int]]:
    """A matrix in which two classes occur, each with the given IoU, and the third never does."""
    hit = round(1000 * miou)  # each class misses as many as the other wins: IoU = hit / (2n - hit)
    n = round((1000 + hit) / 2)
    return [[hit, n - hit, 0], [n - hit, hit, 0], [0, 0, 0]]


def evaluation(
    name: str, sha: str, miou: float, precision: str = "fp32", **fields: Any
) -> dict[str, Any]:
    record = Evaluation(
        name, f"{name}.onnx", sha, "onnx", "fp32", "city/val", 40, "d" * 64, THREE,
        np.array(score(miou), np.int64),
    ).to_record()  # fmt: skip
    record["model"]["precision"] = precision
    return record | fields


def latencies(median: float) -> list[float]:
    return [median * (1 + 0.01 * (i % 7 - 3)) for i in range(140)]


def timed(name: str, sha: str, precision: str, median: float) -> dict[str, Any]:
    samples = latencies(median)
    timing = {
        "n": 140, "min": min(samples), "mean": median, "max": max(samples), "jitter": 0.1,
        "percentiles": {"50": median, "90": median * 1.02, "95": median * 1.03},
        "intervals": {"50": [median * 0.99, median * 1.01]},
    }  # fmt: skip
    return {
        "name": name, "file": f"{name}.onnx", "sha256": sha, "precision": precision,
        "head": "labels", "backend": "onnxruntime", "input": [64, 96], "size_bytes": 5_000_000,
        "stages": {"inference": timing, "total": timing}, "drift": None, "run_medians": [median],
        "deadline": None, "dropped": 0, "longest_queue": 0, "frames_per_second": 1000 / median,
        "energy_per_frame_j": None,
    }  # fmt: skip


def method(**fields: Any) -> dict[str, Any]:
    return {
        "arrival": "closed loop", "fps": None, "cameras": 1, "late_frames": None, "batch": 1,
        "preset": None, "preset_met": None, "threads": 1, "samples": 140, "repeats": 1,
        "order": "in turns", "warmup": "2 s", "warmup_rounds": [9], "warmup_seconds": [2.0],
        "warmup_stable": False, "timer": "perf_counter_ns", "frames": 8,
        "outliers": "none removed", "complete": True,
    } | fields  # fmt: skip


def bench(ratio: tuple[float, float, float] | None = (2.0, 1.9, 2.1)) -> dict[str, Any]:
    ratios = []
    if ratio:
        ratios.append(
            {
                "baseline": "stage 2", "candidate": "stage 2 INT8",
                "inference_median": ratio[0], "low": ratio[1], "high": ratio[2],
                "total_median": ratio[0], "total_low": ratio[1], "total_high": ratio[2],
                "runs": [ratio[0]],
            }
        )  # fmt: skip
    return {
        "schema": "edgeuda.bench/2",
        "created": "2025-01-02T03:04:05+00:00",
        "machine": {"board": "not available", "cpu": "Test CPU"},
        "method": method(),
        "models": [timed("stage 2", STAGE2, "fp32", 40), timed("stage 2 INT8", INT8, "int8", 20)],
        "ratios": ratios, "noise": None, "state": {}, "warnings": [], "samples": None,
    }  # fmt: skip


def write_bench(path: Path, record: dict[str, Any], **columns: Any) -> None:
    """A benchmark with its samples; ``columns`` are added to them."""
    beside = path.with_suffix(".samples.npz")
    found = {}
    for index, model in enumerate(record["models"]):
        total = np.array(latencies(model["stages"]["total"]["mean"]))
        found[f"{index}.start_s"] = np.cumsum(total) / 1e3
        found[f"{index}.total"] = total
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(beside, **found, **columns)
    write_json(path, record | {"samples": {"file": beside.name, "sha256": sha256(beside)}})


def calibration(**fields: Any) -> dict[str, Any]:
    return {
        "schema": "edgeuda.calibration/2", "runtime": "ort-x86", "rule": "percentile",
        "percentile": 99.99, "model": "a.onnx", "model_sha256": STAGE2,
        "preprocessing": Preprocessing(64, 96).to_record(), "agreement": 0.98,
        "frames": [{"name": f"{i}.png", "sha256": ""} for i in range(20)],
        "ranges": {f"tensor{i}": [0, i] for i in range(30)},
        "layers": [], "int8_convs": 0, "convs": 0, "versions": {}, "created": "",
        "convergence": [0.7, 0.8, 0.9],
        "assignment": {
            "max_drop": 0.01, "measure": "mIoU", "kept_float": ["layer1"], "convs": ["y"],
            "met": True, "effects": [], "curve": [
                {"returned": None, "int8_share": 1.0, "drop": 0.03},
                {"returned": "layer1", "int8_share": 0.9, "drop": 0.008},
            ],
        },
    } | fields  # fmt: skip


def stage(name: str = "stage 1", **fields: Any) -> dict[str, Any]:
    return {"name": name, "method": "TUFL", "curve": {"step": []}} | fields


def adaptation(*stages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"schema": "edgeuda.adaptation/1", "stages": list(stages)} | fields


def drive(**fields: Any) -> dict[str, Any]:
    return {
        "schema": "edgeuda.live/1", "created": "", "backend": "onnxruntime", "precision": "fp32",
        "execution": {}, "fallbacks": [], "seconds": 1.0, "reconnects": 0, "error": None,
        "frames": {
            "received": 7, "segmented": 5, "dropped": 2, "missed": 0, "per_second": 5.0,
        },
        "latency_ms": {
            "from": "a", "to": "b", "percentiles": {}, "resolution": "1 %", "max": 1.0,
        },
        "sinks": {}, "resident_mb": {"start": 1.0, "end": 1.0},
        "course": {"columns": ["seconds"], "rows": []},
    } | fields  # fmt: skip


def watched_drive(**fields: Any) -> dict[str, Any]:
    """A drive whose 21st window is too dark, and the last one too blurred."""
    ratios = [0.4] * 20 + [2.5, 1.8] + [0.6] * 17 + [1.2]
    return drive(
        watch={
            "per_hour": 0.1, "window": 10.0, "tested": len(ratios), "untested": 3,
            "limits": [
                {"name": "brightness", "mean": 110.0, "unit": 5.0, "limit": 5.5, "blocks": 30.0},
                {"name": "red", "mean": 100.0, "unit": 5.0, "limit": None, "blocks": 2.0},
            ],
            "alarms": [
                {"at": 105.0, "until": 115.0, "kind": "light", "apart": {"brightness": -13.75}},
                {"at": 200.0, "until": None, "kind": "blur", "apart": {"sharpness": -6.5}},
            ],
            "timeline": [
                {"seconds": 5.0 * n, "ratio": ratio, "column": "brightness"}
                for n, ratio in enumerate(ratios, 1)
            ],
        },
    ) | fields  # fmt: skip


def everything(folder: Path) -> None:
    records = [
        evaluation("stage 2 INT8", INT8, 0.546, "int8"),
        evaluation("stage 2", STAGE2, 0.55),
        evaluation("source-only", SOURCE, 0.40),
        calibration(),
        adaptation(
            stage("AdaBN"),
            stage(
                steps=3, seconds=7.2, seed=1, recipe_sha256="1" * 64,
                curve={
                    "step": [0, 1, 2], "loss": [3.0, 2.0, 1.5], "keep": [0.1, 0.2, 0.4],
                    "threshold": [[0.5] * 3, [0.6] * 3, [0.7, 0.8, 0.9]],
                },
            ),
        ),
    ]  # fmt: skip
    for index, record in enumerate(records):
        write_json(folder / f"{index}.json", record)
    write_bench(folder / "bench.json", bench())
    predictions(folder / "pred", "stage 2", [f"frame{i}.png" for i in range(9)])
    predictions(folder / "truth", "ground truth", [f"frame{i}.png" for i in range(9)])


def predictions(folder: Path, name: str, frames: list[str], seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for frame in frames:
        write_image(folder.parent / "frames" / frame, rng.integers(0, 255, (24, 32, 3), np.uint8))
        write_label(folder / frame, rng.integers(0, 3, (12, 16), np.uint8))
    write_json(
        folder / "predictions.json",
        {
            "schema": "edgeuda.predictions/1", "name": name, "model": {"file": "", "sha256": ""},
            "label_space": THREE.to_record(),
            "frames": [{"frame": f"../frames/{f}", "labels": f} for f in frames],
        },
    )  # fmt: skip


def sweep(choice: str | None = "fast") -> dict[str, Any]:
    def row(name: str, precision: str, ms: float, miou: float) -> dict[str, Any]:
        return {
            "name": name, "network": "n", "size": [64, 128], "precision": precision,
            "head": "labels", "backend": "cpu", "width": 1.0, "file": "f", "sha256": name * 9,
            "accuracy": {"value": miou, "low": miou - 0.02, "high": miou + 0.02},
            "boundary_miou": 0.31, "agreement_with_fp32": None, "change_from_fp32": None,
            "total_ms": {"50": ms, "99": ms * 1.1}, "keeps_deadline": ms < 30,
            "accurate_enough": True, "dominated_by": None,
        }  # fmt: skip

    budget = Budget(33.0 if choice else 10.0)
    measured = [
        Candidate("slow", "fp32", "n", 40, 44, 0.6), Candidate("fast", "int8", "n", 20, 22, 0.59)
    ]  # fmt: skip
    return {
        "schema": "edgeuda.tradeoff/2", "created": "2025-01-02T03:04:05+00:00", "measure": "mIoU",
        "data": {"folder": "city/val", "images": 40}, "tail": "99",
        "budget": {"latency_ms": budget.latency_ms, "min_accuracy": None},
        "choice": asdict(choose(measured, budget)),
        "variants": [row("slow", "fp32", 40, 0.6), row("fast", "int8", 20, 0.59)],
        "machine": {"cpu": "Test CPU"}, "intervals": "95 %",
    }  # fmt: skip


def rate(limit_ms: float = 33.3, share: float = 1.0, **fields: Any) -> dict[str, Any]:
    """A camera at 30 frames/s that the one INT8 model cannot follow."""
    record = bench(None)
    record["method"] = method(arrival="frame rate", fps=30.0, late_frames="queued")
    record["models"] = [
        record["models"][1]
        | {
            "deadline": {"limit_ms": limit_ms, "misses": round(140 * share), "share": share},
            "longest_queue": 138, "frames_per_second": 12.5,
            "drift": {"first": 1.0, "last": 1.894, "ratio": 1.894, "significant": False},
        }
        | fields
    ]  # fmt: skip
    return record


def comparison(**fields: Any) -> dict[str, Any]:
    def method(name: str, runs: list[float], trains_on: str = "source") -> dict[str, Any]:
        gain = [value - first for value, first in zip(runs, (50.0, 52.0, 48.0), strict=True)]
        return {
            "name": name, "stages": [], "trains_on": trains_on, "failed": {}, "gap_closed": None,
            "miou": {"runs": runs, "mean": float(np.mean(runs)), "stdev": 2.0},
            "gain": {"runs": gain, "mean": float(np.mean(gain)), "stdev": 2.0},
            "iou": {name: [40.0, 41.0, None] for name in THREE.classes},
            "seconds": [1.0] * 3, "waiting_for_data": [0.0] * 3, "signals": [None] * 3,
            "recipe_sha256": "1" * 64,
        }  # fmt: skip

    return {
        "schema": "edgeuda.comparison/1", "seeds": [0, 1, 2], "classes": list(THREE.classes),
        "images": 101,
        "methods": [
            method("source-only", [50.0, 52.0, 48.0]), method("AdaBN", [55.0, 56.0, 57.0]),
            method("oracle", [80.0, 80.0, 80.0], "oracle"),
        ],
    } | fields  # fmt: skip


def next_network(**fields: Any) -> dict[str, Any]:
    """An update of which old frames have labels, and the next network keeps what was known."""

    def estimate(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.004, "high": value + 0.004}

    def part(change: float, images: int) -> dict[str, Any]:
        return {
            "footage": "frames", "frames": 90, "left_out": 10,
            "without_labels": {
                "frames": 64, "agreement": 0.91, "confidence": [0.8, 0.85],
                "classes": {name: [0.25, 0.5] for name in THREE.classes},
            },
            "with_labels": {
                "data": {"folder": "labelled", "images": images}, "last": estimate(0.5),
                "next": estimate(0.5 + change), "change": estimate(change), "in_source": 0,
            },
        }  # fmt: skip

    listed = {"file": "files/frames-old.txt", "count": 90, "sha256": "5" * 64}
    return {
        "schema": "edgeuda.update/1", "created": "2025-01-02T03:04:05+00:00",
        "last": {"file": "last.edgeuda", "sha256": "4" * 64},
        "bundle": {"file": "next.edgeuda", "sha256": "6" * 64}, "networks": [SOURCE, STAGE2],
        "member": "net-int8.onnx", "models": ["net.onnx", "net-int8.onnx"],
        "int8": [{"file": "net-int8.onnx", "agreement": 0.98, "accepted": True, "reasons": []}],
        "old": part(-0.003, 40), "new": part(0.062, 30),
        "verdict": {
            "status": "taken", "reason": "kept", "old": {"value": -0.003, "interval": None},
            "new": {"value": 0.062, "interval": None}, "old_change": "noise",
            "new_change": "better", "most_forgotten": 0.01,
        },
        "overridden": False,
        "lineage": {
            "parent": "4" * 64, "network": STAGE2,
            "ancestors": [{"bundle": "4" * 64, "network": SOURCE, "created": "2025"}],
            "learned": {
                "old": listed, "new": listed, "replay_share": 0.5, "recipe_sha256": "1" * 64,
                "versions": {},
            },
        },
    } | fields  # fmt: skip
