"""Sweeps and the demo that are killed at any change of the disk end as if they had not been."""

from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

from calibration import quantize, tradeoff
from calibration.tradeoff import sweep
from calibration.variants import Sweep, SweptNetwork
from cli.verbs import demo as verb
from edgeuda.decision import Budget
from edgeuda.street import write_dataset
from engines.bench.load import Load
from engines.bench.measure import bench
from engines.onnx_export import export_onnx
from interruptions import TIMES, changes_made, require_same
from tiny_models import SPEC, random_frames, random_network, write_frames

MEASURED = ("*/bench.json", "*/bench.samples.npz")
"""Files that hold nothing but times."""
TIMED = TIMES | {
    "total_ms", "dominated_by", "int8", "machine", "fallbacks",
    "taken", "equal", "beyond", "fastest", "best",  # with the latencies that decided
}  # fmt: skip
"""Of a sweep's record: what follows from times."""


DATA = (
    ("source", "simulator", 0), ("target", "camera", 100_000), ("test", "camera", 200_000),
)  # fmt: skip


@pytest.fixture
def one_time(monkeypatch):
    """A record's time is in its checksum, which the model beside it holds; benchmarks are short."""
    for module in (quantize, tradeoff):
        monkeypatch.setattr(module, "now_utc", lambda: "2026-01-01T00:00:00+00:00")
    monkeypatch.setattr(tradeoff, "bench", partial(bench, warmup_seconds=0.0))


@pytest.mark.slow
@pytest.mark.usefixtures("one_time")
def test_a_sweep_ends_as_if_it_had_not_been_killed(tmp_path):
    frames = write_frames(tmp_path / "images", random_frames(4, 40, 80))

    def export(path, size, head):
        fed = replace(SPEC, preprocessing=replace(SPEC.preprocessing, height=32, width=64))
        export_onnx(random_network(), fed, path, head=head, frames=random_frames(1, 90, 200))

    what = Sweep(
        [SweptNetwork("a", SPEC.width, "0" * 64, (32, 64), export)], [], ["fp32", "int8"],
        ["labels"], ["cpu"], frames, frames, None, Load(samples=33), repeats=1, threads=1,
    )  # fmt: skip
    require_same(lambda out: sweep(what, out, Budget(1000)), tmp_path, 5, TIMED, MEASURED)


def test_measurements_that_are_put_aside_stay_together(tmp_path):
    """Killed at any change, both files are where they were or both are put aside, once."""

    def work(out):
        path = out / "results" / "bench.json"
        if not path.exists():
            return
        tradeoff._keep_earlier(path, out / ".earlier")

    def beginning(out):
        (out / "results").mkdir(parents=True)
        (out / "results" / "bench.json").write_text("record")
        (out / "results" / "bench.samples.npz").write_text("samples")

    beginning(tmp_path / "counted")
    total = changes_made(lambda: work(tmp_path / "counted"), tmp_path)
    assert total > 4
    for at in range(1, total + 1):
        out = tmp_path / f"{at}"
        beginning(out)
        with suppress(KeyboardInterrupt):
            changes_made(lambda out=out: work(out), tmp_path, at)
        work(out)
        kept = {p.name: p.read_text() for p in (out / ".earlier" / "1").iterdir()}
        assert kept == {"bench.json": "record", "bench.samples.npz": "samples"}, at
        assert [p.name for p in (out / ".earlier").iterdir()] == ["1"]


@pytest.mark.slow
@pytest.mark.usefixtures("one_time")
def test_the_demo_ends_as_if_it_had_not_been_killed(tmp_path, monkeypatch):
    """At changes of its disk from training to the report; rendering has a test of its own.

    Which variant is taken follows from times, and with it the frames that are drawn.
    """
    monkeypatch.setattr(verb, "SIZE", (32, 64))
    monkeypatch.setattr(verb, "os", SimpleNamespace(sched_getaffinity=lambda _: {0}))
    stages = ("source", "stage1", "stage2")
    tiny = [
        "model.width=0.125", "model.input=[32, 64]", "geometry.crop=[32, 64]",
        "precision=32-true", "adabn.batches=1", "adabn.batch=2", "monitor.frames=2",
        *(f"{name}.{key}" for name in stages for key in ("steps=2", "batch=2", "warmup=0")),
        *(f"{name}.lr=1e-4" for name in stages),  # without a warm-up some processors diverge
    ]  # fmt: skip

    rendered = tmp_path.with_name(f"{tmp_path.name}-rendered")
    for role, domain, start in DATA:
        write_dataset(rendered / role, domain, 16, start, 32, 64, SPEC.label_space)

    def work(out):
        out.mkdir(exist_ok=True)
        if not (out / "data").exists():
            (out / "data").symlink_to(rendered)
        verb.demo(out, "small", tiny, resume=True, images=16, samples=33)

    chosen = {"choice", "keeps_deadline", "accurate_enough"}
    drawn = ("report.*", "first-look/report.*", "tradeoff/results/frames-*", *MEASURED)
    require_same(work, tmp_path, 5, TIMED | chosen, drawn)
