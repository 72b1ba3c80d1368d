"""What of each result the page shows: its figures, the peer of each, and its limit.

Limits are goals of this project; where none was set, there is none. A figure without a record in
benchmarks/results is not written down anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

Payload = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One figure of a result.

    Attributes:
        what: Names it; results of other processors have the same name.
        value: As it is compared with the limit.
        shown: As the page shows it.
        peer: What it is measured against.
        limit: The most it may be, or with ``least`` the least; None where no goal was set.
        least: Whether more is better.
    """

    what: str
    value: float
    shown: str
    peer: str = ""
    limit: float | None = None
    least: bool = False

    @property
    def missed(self) -> bool:
        """Whether it is beyond its limit."""
        if self.limit is None:
            return False
        return self.value < self.limit if self.least else self.value > self.limit


def ratio(what: str, value: float, peer: str, limit: float | None, of: str = "") -> Figure:
    """Return a ratio of times to a peer's."""
    return Figure(what, value, f"{value:.2f}{f' ({of})' if of else ''}", peer, limit)


def cores(count: int) -> str:
    """Return so many threads in words."""
    return f"{count} thread{'s' * (count > 1)}"


def range_collection(found: Payload) -> Iterator[Figure]:
    """Time to that of ONNX Runtime's percentile calibrator, and memory."""
    for row in found["results"]:
        ours = row["ours"]
        where = f"{row['height']}x{row['width']}, {row['frames']} frames"
        old = "threads" not in row  # with entropy, and once each
        threads = "" if old else f", {cores(row['threads'])}"
        peak = ours["peak_mib"] if old else max(ours["peak_mib"])
        limit = 2048 if row["height"] == 1024 else None
        yield Figure(f"peak memory, {where}{threads}", peak, f"{peak} MiB", limit=limit)
        if "times_as_fast_as_one_thread" in ours:
            value = ours["fastest_frames_as_fast_as_one_thread"]
            whole = ours["times_as_fast_as_one_thread"]["median"]
            shown = f"{value:.2f} times as fast at best, {whole:.2f} with other work beside"
            yield Figure(f"two cores, {where}", value, shown, "one core", 2.0, least=True)
        for key, title in (
            ("ort-percentile", "onnxruntime, percentile"), ("ort-entropy", "onnxruntime, entropy"),
            ("nncf", "NNCF, all of quantize"),
        ):  # fmt: skip
            if key not in row:
                continue
            if old:
                seconds, theirs = ours["seconds"], row[key]["seconds"]
                value, unit = seconds / theirs, "s"
            else:  # with one thread by the processor's time, which other work changes less
                clock = "cpu_seconds" if row["threads"] == 1 else "seconds"
                seconds, theirs = (median(row[one][clock]) for one in ("ours", key))
                value = row[f"ours_to_{key}"][clock]["median"]
                unit = "s of CPU" if row["threads"] == 1 else "s"
            what = f"time of ranges{' with rule entropy' if old else ''}, {where}{threads}"
            limit = 1.0 if key == "ort-percentile" and not old else None
            yield ratio(what, value, title, limit, f"{seconds:.1f} to {theirs:.1f} {unit}")


def training_step(found: Payload) -> Iterator[Figure]:
    """Steps to the passes in them; old results have two stages and no encoders."""
    if "runs" in found:
        for run in found["runs"]:
            for stage, row in run["steps"].items():
                size = "{}x{}, width {:g}".format(
                    *run["settings"]["size"], run["settings"]["width"]
                )
                threads = cores(run["settings"]["threads"])
                what = f"a step of {stage.replace(' ', '')}, resnet18, {size}, {threads}"
                limit = 1.15 if stage == "stage 2" else None
                ms = f"{row['step_ms']:.0f} ms"
                yield ratio(what, row["ratio"], "forward and backward", limit, ms)
        return
    settings = found["settings"]
    size = "{}x{}, width {:g}".format(*settings["size"], settings["width"])
    for row in found["steps"]:
        both = row["stage"] == "distil"
        value = row["ratio_to_all" if both else "ratio"]["median"]
        what = f"a step of {row['stage']}, {row['encoder']}, {size}, {cores(settings['threads'])}"
        peer = "all passes of its three networks" if both else "forward and backward"
        step = row["median_cpu_ms" if row["ratios_of"] == "cpu" else "median_ms"]["step"]
        limit = 1.15 if both or row["stage"] == "stage2" else None
        yield ratio(what, value, peer, limit, f"{step:.0f} ms")
    for row in found["arithmetic"]:
        for name, to in row["to_float32"].items():
            if name != "float32":
                what = f"forward and backward in {name}, {row['encoder']}, {size}"
                yield ratio(what, to["median"], "float32", None)


def loader(found: Payload) -> Iterator[Figure]:
    """Waiting for images."""
    for row in found["rows"]:
        what = "waiting for images, {}x{} JPEG, {} workers".format(*found["files"], row["workers"])
        limit = 0.05 if row["workers"] == 2 else None
        shown = f"{100 * row['waiting']:.1f} % of {row['step_seconds']:.1f} s a step"
        yield Figure(what, row["waiting"], shown, limit=limit)


def evaluation(found: Payload) -> Iterator[Figure]:
    """Scoring label maps, and whole evaluations."""
    if "scorers" not in found:
        value = 1 / found["ratio_to_cityscapesscripts"]["median"]
        ms = 1e3 * found["seconds_per_image"]["ours"]
        yield ratio("scoring label maps", value, "cityscapesscripts", None, f"{ms:.0f} ms an image")
        return
    scorers = found["scorers"]
    yield ratio(
        "scoring label maps", scorers["ours_to_cityscapesscripts"]["median"], "cityscapesscripts",
        None, f"{scorers['cpu_ms_per_image']['ours']:.0f} ms an image",
    )  # fmt: skip
    network = found["network"]
    for row in found["whole"]:
        what = "evaluate {}, {}x{}, width {:g}, {}".format(
            row["precision"].upper(), *network["input"], network["width"], cores(network["threads"])
        )
        ratios, ms = row["evaluate_to_inference"], row["thread_ms_per_image"]["evaluate"]
        both = (
            f"{ratios['wall']['median']:.2f} by the clock, {ratios['cpu']['median']:.2f} of all CPU"
        )
        yield Figure(
            f"{what}, calling thread", ratios["thread"]["median"],
            f"{ratios['thread']['median']:.2f} ({ms:.0f} ms an image; {both})",
            "its inference alone", 1.1,
        )  # fmt: skip


def cluster(found: Payload) -> Iterator[Figure]:
    """Processor time of a frame in workers; what the clock says depends on what else runs."""
    what = "evaluate, {}x{} JPEG, network {}x{}, 1 thread a worker".format(
        *found["file_size"], *found["size"]
    )
    for workers, ms in found["cpu_ms_per_frame"].items():
        many = "2 workers" if workers == "2" else "1 worker"
        yield Figure(f"{what}, {many}", ms, f"{ms:.0f} ms of CPU a frame")


def curation(found: Payload) -> Iterator[Figure]:
    """Processor time of a frame that is taken from footage, by what is done with it."""
    for what, ms in found["cpu_ms"].items():
        size = "{}x{}".format(*found["file_size"])
        yield Figure(f"data frames, {size} JPEG, {what}", ms, f"{ms:.1f} ms of CPU a frame")
    share = found["kept_share_below_which_two_maps_cost_less"]
    what = "data frames, share of kept frames below which reading them twice costs less"
    yield Figure(what, share, f"{100 * share:.0f} %")


def int8(found: Payload) -> Iterator[Figure]:
    """FP32 to INT8, and to OpenVINO's."""
    for row in found["results"]:
        for at in row["latency"]:
            where = "{}x{}, width {:g}, {}".format(
                row["height"], row["columns"], row["width"], cores(at["threads"])
            )
            ms = at["median_ms"]
            value = at["fp32_to_int8"]
            shown = f"{value:.2f} times as fast ({ms['onnxruntime INT8']:.1f} ms)"
            yield Figure(f"INT8, {where}", value, shown, "FP32, onnxruntime", least=True)
            value = at.get("int8_to_openvino", at.get("int8_to_openvino_int8"))
            if value is not None:
                yield ratio(f"INT8, {where}", value, "INT8, OpenVINO at its best", None)


def encoders(found: Payload) -> Iterator[Figure]:
    """INT8 to FP32 of each encoder."""
    for width, rows in found["widths"].items():
        for row in rows:
            value = row["speed_of_int8"]
            what = f"INT8, {row['encoder']}, width {width}, {cores(found['threads'])}"
            shown = f"{value:.2f} times as fast ({1e3 * row['int8_seconds'][1]:.0f} ms)"
            yield Figure(what, value, shown, "FP32", least=True)


def heads(found: Payload) -> Iterator[Figure]:
    """Latency of the other heads to that of labels."""
    for row in found["results"]:
        for at in row["latency"]:
            for head in ("scores", "labels_low"):
                what = "head {}, {}x{}, width {:g}, {}".format(
                    head, row["height"], row["columns"], row["width"], cores(at["threads"])
                )
                ms = f"{at['median_ms'][head]:.1f} ms"
                yield ratio(what, at["to_labels"][head], "head labels", None, ms)


def confidence(found: Payload) -> Iterator[Figure]:
    """A frame whose confidence and features are asked for, to one of a graph without them."""
    for row in found["results"]:
        # With one thread by the processor's time, which other work changes less.
        clock = "cpu" if row["threads"] == 1 else "wall"
        for form in row["forms"]:
            for caller, limit in (("asked", 1.03), ("not asked", None)):
                what = "{}, head {} {}, {}x{}, width {:g}, {}".format(
                    caller, form["head"], form["precision"], row["rows"], row["columns"],
                    row["width"], cores(row["threads"]),
                )  # fmt: skip
                found_ratio = form["to_without"][clock][caller]
                low, high = found_ratio["quartiles"]
                shown = f"{found_ratio['median']:.3f} ({low:.3f} to {high:.3f})"
                yield Figure(what, found_ratio["median"], shown, "without", limit)


def reference(found: Payload) -> Iterator[Figure]:
    """Size of what is kept of normal frames."""
    for row in found["results"]:
        shown = f"{row['kilobytes']:.0f} kB, {row['kilobytes_in_a_bundle']:.0f} kB in a bundle"
        what = f"{row['frames']} frames, {row['classes']} classes, {row['channels']} features"
        yield Figure(what, row["kilobytes"], shown)


def watch(found: Payload) -> Iterator[Figure]:
    """When a change is noticed, and how often none was."""
    for row in found["results"]:
        first = row["watch"]["first_seconds"]
        shown = "no alarm" if first is None else f"{first:.0f} s, {row['watch']['kind']}"
        yield Figure(f"{row['drive']}, {row['change']}", -1.0 if first is None else first, shown)


def term_gradients(found: Payload) -> Iterator[Figure]:
    """What each term of a loss does to the weights."""
    for row in found["stages"]:
        for name, term in row["terms"].items():
            what = f"{row['run'].split('-')[0]} with {', '.join(row['terms'])}: {name}"
            shown = f"{100 * term['share']:.1f} % of the norms, cosine {term['cosine']:.2f}"
            yield Figure(what, term["share"], shown)


def keep(found: Payload) -> Iterator[Figure]:
    """How hard the frames are that are kept, and what is in them."""
    for row in found["results"]:
        shown = (
            f"{row['miou']:.1f} mIoU, {100 * row['rare_share']:.1f} % of rare classes, "
            f"{row['stretches']} stretches"
        )
        what = f"{row['frames']}: {row['count']} of {found['played']} frames"
        yield Figure(f"{' and '.join(found['drives'])}, {what}", row["miou"], shown)


def kept_adaptation(found: Payload) -> Iterator[Figure]:
    """What adapting to kept frames gains."""
    for row in found["results"]:
        if row["frames"] != "none":
            spread = "" if row["stdev"] is None else f" ± {row['stdev']:.1f}"
            what = f"{found['track']}, {row['method']} on {row['frames']} frames"
            shown = f"{row['mean']:.1f} mIoU{spread}"
            yield Figure(f"{what}, scored on {row['scored_on']}", row["mean"], shown, least=True)


def frame_path(found: Payload) -> Iterator[Figure]:
    """Our own code beside inference."""
    for row in found["results"]:
        for model in row["models"]:
            value = model["own_share_of_fp32_inference"]
            what = "resize and upsample, {}x{}, {}, {}".format(
                *row["input"], model["model"], cores(row["threads"])
            )
            yield Figure(what, value, f"{100 * value:.2f} %", "FP32 inference")


def footage_index(found: Payload) -> Iterator[Figure]:
    """Seconds and memory of a listing."""
    for way, row in found["ways"].items():
        seconds, memory = found["entries"] / row["entries_per_second"], row["memory_kib"] / 1024
        shown = f"{seconds:.1f} s, {memory:.0f} MiB"
        yield Figure(f"listing {found['entries']:,} files, {way}", seconds, shown)


def footage_start(found: Payload) -> Iterator[Figure]:
    """Starts among more and more files, and pseudo-labels."""
    for row in found["footage"]:
        seconds = row["calibrate_starts_cpu_seconds"]
        shown = f"{seconds:.1f} s of CPU; a listing takes a process to {row['peak_kib'] >> 10} MiB"
        yield Figure(f"calibrate begins among {row['frames']:,} frames", seconds, shown)
    value = found["pseudo_label"]["ratio_cpu"]
    yield ratio("pseudo-label, CPU", value, "reading and predicting", None)


def self_training(found: Payload) -> Iterator[Figure]:
    """Selection, the pass, ranking and pasting."""
    threads = cores(found["threads"])
    faster = found["selection"]["ratio"]
    yield Figure(
        f"instance-adaptive labels, {threads}", faster, f"{faster:.1f} times as fast",
        "numpy.quantile by class", least=True,
    )  # fmt: skip
    yield ratio(f"a pass of pseudo-labels, {threads}", found["pass"]["ratio"], "prediction", None)
    yield ratio(f"LSE's ranking, {threads}", found["ranking"]["ratio"], "prediction", None)
    ms = found["pasting_ms"]
    yield Figure(f"pasting on 1024x2048, {threads}", ms, f"{ms:.0f} ms")


def threshold_update(found: Payload) -> Iterator[Figure]:
    """The update to a sort."""
    for row in found["cases"]:
        value = row["times_faster"]
        what = f"threshold update, {row['pixels']:,} pixels, {row['classes']} classes"
        shown = f"{value:.1f} times as fast ({row['update_ms']:.1f} ms)"
        yield Figure(what, value, shown, "a sort by class", least=True)


def street_renderer(found: Payload) -> Iterator[Figure]:
    """Images per second."""
    for name, row in found["domains"].items():
        what = "rendering {}, {}x{}".format(name, *found["size"])
        yield Figure(what, row["median"], f"{row['median']:.1f} images/s of a core", least=True)


def batch_norm_on_graph(found: Payload) -> Iterator[Figure]:
    """Scores by how frames are batched."""
    for row in found["rows"]:
        shown = f"{row['mean']:.1f} ± {row['stdev']:.1f} mIoU"
        yield Figure(f"--adapt-bn, {row['name']}", row["mean"], shown, least=True)


def stream_adaptation(found: Payload) -> Iterator[Figure]:
    """What a drive's statistics gain and cost, and what the rule does with spoiled drives."""
    for row in found.get("sweep", ()):
        gains = row["gains"]
        mean = sum(gains) / len(gains)
        what = (
            f"{row['network']}, {row['drive']}, {row['layers']}, prior {row['prior']:g}, "
            f"{row['frames']} frames"
        )
        yield Figure(what, mean, f"{mean:+.2f} points", "doing nothing", least=True)
    for row in found.get("rule_summary", ()):
        what = f"candidates, least {row['threshold']} {row['least']:g}"
        shown = (
            f"{row['worse, refused']} of {row['worse, refused'] + row['worse, taken']} worse ones "
            f"refused, {row['other, refused']} of {row['other, refused'] + row['other, taken']} "
            "others"
        )
        yield Figure(what, row["worse, taken"], shown)
    for row in () if "sweep" in found else found["results"]:
        for where, scored in row["after"].items():
            how = row.get("workstation", f"adapted to {row['drive']}")
            before = row.get("nothing", {}).get(where, {}).get("miou")
            peer = "" if before is None else f"doing nothing, {before:.1f} mIoU"
            limit = None
            value = scored["miou"]
            if before is not None and (row["drive"], where) == ("day", "held"):
                limit = before - 0.3
            what = f"{row['network']}, {how}, {where}"
            yield Figure(what, value, f"{value:.1f} mIoU", peer, limit, least=True)


def live(found: Payload) -> Iterator[Figure]:
    """What overlays cost, and the soak."""
    value = found["overlay"]["with_to_without"]["median"]
    yield ratio("latency with overlay video and label maps", value, "without", None)
    soak = found["soak"]
    most = soak["resident_mb"]["max"]
    what = f"resident memory over {soak['seconds'] / 60:.0f} minutes"
    yield Figure(
        what, most, f"{most:.0f} MB at most", f"{soak['resident_mb']['start']:.0f} at first"
    )


def int8_accuracy(found: Payload) -> Iterator[Figure]:
    """Change of mIoU by rule."""
    for row in found["rows"]:
        if "change_mean" in row:
            what = f"{found['models'][0].rsplit('-', 1)[0]}: {row['name']}"
            shown = f"{row['change_mean']:+.2f} points"
            if row["change_stdev"] is not None:
                shown += f" ± {row['change_stdev']:.2f}"
            yield Figure(what, row["change_mean"], shown, "FP32", least=True)


def label_free_ranking(found: Payload) -> Iterator[Figure]:
    """How signals rank."""
    for name, row in found["signals"].items():
        within = row["within"]
        shown = f"{within['mean']:.2f} ± {within['stdev']:.2f}"
        what = f"rank correlation within a stage, {name}"
        yield Figure(what, within["mean"], shown, "mIoU", least=True)


def demo(found: Payload) -> Iterator[Figure]:
    """Scores and latencies of the demo."""
    for one in found["demos"]:
        for name, total in one["total_ms"].items():
            what = f"demo, seed {one['seed']}, {name}: a frame, median and p99"
            yield Figure(what, total["50"], f"{total['50']:.1f} and {total['99']:.1f} ms")


def adaptation_tracks(found: Payload) -> Iterator[Figure]:
    """Scores of every row of a comparison."""
    for row in found["methods"]:
        if row["miou"]["mean"] is not None:
            spread = row["miou"]["stdev"]
            shown = f"{row['miou']['mean']:.1f} mIoU" + (f" ± {spread:.1f}" if spread else "")
            what = f"{found['file']}: {row['name']}"
            yield Figure(what, row["miou"]["mean"], shown, least=True)


def update(found: Payload) -> Iterator[Figure]:
    """What the next network gains at dusk and loses by day."""
    for name, change in found["change"].items():
        for time, one in change.items():
            spread = "" if one["stdev"] is None else f" ± {100 * one['stdev']:.1f}"
            shown = f"{100 * one['mean']:+.1f}{spread} points of mIoU"
            limit = -1.0 if name.startswith("replayed") and time == "day" else None
            what = f"next network, {name}: {time}"
            yield Figure(what, 100 * one["mean"], shown, "last network", limit, least=True)


FIGURES: dict[str, Callable[[Payload], Iterator[Figure]]] = {
    "range_collection": range_collection,
    "training_step": training_step,
    "loader": loader,
    "cluster": cluster,
    "curation": curation,
    "evaluation": evaluation,
    "int8": int8,
    "encoders": encoders,
    "heads": heads,
    "confidence": confidence,
    "reference": reference,
    "term_gradients": term_gradients,
    "watch": watch,
    "keep": keep,
    "kept_adaptation": kept_adaptation,
    "update": update,
    "stream_adaptation": stream_adaptation,
    "frame_path": frame_path,
    "footage_index": footage_index,
    "footage_start": footage_start,
    "self_training": self_training,
    "threshold_update": threshold_update,
    "street_renderer": street_renderer,
    "live": live,
    "batch_norm_on_graph": batch_norm_on_graph,
    "int8_accuracy": int8_accuracy,
    "label_free_ranking": label_free_ranking,
    "demo": demo,
    "adaptation_tracks": adaptation_tracks,
}
"""By benchmark, in the order of the page."""
