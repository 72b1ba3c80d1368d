"""Trackers take what the log says, change nothing, go on after a stop, and may fail."""

import csv
import json
import logging
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeuda.errors import ConfigError, DependencyError
from edgeuda.labels import SPACES
from edgeuda.methods.base import Losses
from edgeuda.records.identity import MODEL_FILE
from edgeuda.records.tracking import TRACKERS_FILE, TrackersRecord
from edgeuda.street import write_dataset
from edgeuda.training import runs, tracker_kinds, trainer
from edgeuda.training.compare import Track, compare, load_plan
from edgeuda.training.pipeline import RunOptions, adapt, train_source
from edgeuda.training.recipe import load_recipe
from edgeuda.training.tracker_kinds import without_secrets
from edgeuda.training.trackers import PICTURES, StageTrackers, Tracking, flat, scalars
from edgeuda.training.trainer import read_log
from edgeuda.training.watch import read_signals

SIZE = (64, 128)
SPACE = SPACES["camvid-11"]
ALL = ("tensorboard", "csv", "mlflow", "wandb")
TINY = (
    "model.width=0.125", "model.input=[64, 128]", "geometry.crop=[64, 128]", "precision=32-true",
    "source.steps=6", "source.batch=2", "source.checkpoint_every=4", "source.log_every=1",
    'stages=["stage1", "stage2"]', "stage1.steps=6", "stage1.batch=2", "stage1.log_every=1",
    "stage1.checkpoint_every=4", "stage2.steps=4", "stage2.batch=2", "stage2.log_every=2",
    "monitor.frames=4", "monitor.every=3", "monitor.on_collapse=continue",
)  # fmt: skip
SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
    "MLFLOW_TRACKING_TOKEN": "hush-hush",
}


@pytest.fixture(scope="module", autouse=True)
def environment():
    """Nothing of the machine's own settings, and keys that must not leave the process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(("WANDB_", "MLFLOW_")):
                patch.delenv(name)
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for role, domain, seed in (("source", "simulator", 0), ("target", "camera", 1000)):
        write_dataset(root / role, domain, 6, seed, *SIZE, SPACE)
    return root


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "source"
    train_source(load_recipe("small", TINY), data / "source", None, RunOptions(out))
    return out


def adapted(data, trained, out, trackers=(), resume=False, *more):
    recipe = load_recipe("small", (*TINY, *more))
    options = RunOptions(out, resume, trackers=trackers)
    adapt(recipe, trained, data / "source", data / "target", options)
    return out


def seeded():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - what a library may draw from
    torch.manual_seed(1)


def streams():
    state = np.random.get_state()  # noqa: NPY002
    return random.getstate(), state[1].tolist(), state[2], torch.get_rng_state().tolist()


@pytest.fixture(scope="module")
def plain(data, trained, tmp_path_factory):
    seeded()
    return adapted(data, trained, tmp_path_factory.mktemp("plain") / "run"), streams()


@pytest.fixture(scope="module")
def tracked(data, trained, tmp_path_factory):
    for module in ("tensorboard", "mlflow", "sqlalchemy", "wandb"):
        pytest.importorskip(module)
    seeded()
    return adapted(data, trained, tmp_path_factory.mktemp("tracked") / "run", ALL), streams()


def expected(stage):
    """What of the log a tracker has to hold: values by name and step, from the JSON alone."""
    found = {}
    for line in read_log(stage):
        step = line["step"]
        for name in ("supervised", "target", "mix"):
            if name in line:
                found[f"loss/{name}", step] = line[name]
        found["loss/total", step] = line["loss"]
        for name in ("keep", "keep_fixed", "trust", "lr", "waiting"):
            if name in line:
                found[name, step] = line[name]
        for name, value in zip(SPACE.classes, line["thresholds"], strict=True):
            found[f"thresholds/{name}", step] = value
    for line in read_signals(stage):
        for name in ("entropy", "confidence", "flip_agreement", "divergence"):
            found[f"signals/{name}", line["step"]] = line[name]
        found["histogram/road", line["step"]] = line["histogram"][SPACE.classes.index("road")]
        found["signals/alarm", line["step"]] = float(line["alarm"] is not None)
    return found


def require_all(values, stage, precision=1e-6):
    """Each value once, as the log has it."""
    counts = Counter((name, step) for name, step, _ in values)
    assert set(counts.values()) == {1}
    found = {(name, step): value for name, step, value in values}
    wanted = expected(stage)
    assert wanted.keys() <= found.keys()
    for key, value in wanted.items():
        if key == ("waiting", 5):  # of the first try, which took another time
            continue
        assert found[key] == pytest.approx(value, rel=precision), key
    assert {name for name, _ in found} - {name for name, _ in wanted} <= {
        "images_per_second", "signals/view_agreement", "signals/start_agreement",
        "signals/neighbourhood_density", *(f"histogram/{name}" for name in SPACE.classes),
    }  # fmt: skip


# What is in each tracker, read back with its own library.


def in_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), {"scalars": 0, "images": 0}, purge_orphaned_data=False)
    return found.Reload()


def tensorboard_values(folder):
    events = in_tensorboard(folder)
    return [
        (tag, event.step, event.value)
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
    ]


def csv_values(folder):
    with (folder / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [
        (name, int(row["step"]), float(value))
        for row in rows
        for name, value in row.items()
        if value and name != "step"
    ]


def mlflow_client(out):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{out / 'logs/mlflow/mlflow.db'}")


def mlflow_runs(client):
    (experiment,) = [e for e in client.search_experiments() if e.name == "edgeuda"]
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def mlflow_values(client, run):
    return [
        (name, entry.step, entry.value)
        for name in run.data.metrics
        for entry in client.get_metric_history(run.info.run_id, name)
    ]


def wandb_records(out):
    """The runs of a folder, each with the records of its files in order: LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2 as messages

    found = {}
    for path in sorted((out / "logs/wandb").glob("offline-run-*/*.wandb")):
        content, at, part = path.read_bytes(), 7, b""
        while at + 7 <= len(content):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            _, length, kind = struct.unpack("<IHB", content[at : at + 7])
            part += content[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last part
                record = messages.Record()
                record.ParseFromString(part)
                found.setdefault(path.stem, []).append(record)
                part = b""
    return found


def wandb_values(records):
    found = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = {i.key or ".".join(i.nested_key): i.value_json for i in record.history.item}
            found += [
                (name, int(items["_step"]), json.loads(value))
                for name, value in items.items()
                if not name.startswith("_")
            ]
    return found


@contextmanager
def stopped_in_step_6(monkeypatch):
    whole = trainer.schedule_factor

    def stop(step, settings):
        if step == 5:
            raise KeyboardInterrupt
        return whole(step, settings)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "schedule_factor", stop)
        with pytest.raises(KeyboardInterrupt):
            yield


# Tests


def test_training_is_the_same_to_the_byte_and_no_random_number_is_drawn(plain, tracked):
    (without, drawn), (with_, also) = plain, tracked
    for stage in ("stage1", "stage2", "."):
        files = (without / stage / MODEL_FILE, with_ / stage / MODEL_FILE)
        assert files[0].read_bytes() == files[1].read_bytes()
    assert drawn == also
    assert not (without / "logs").exists()
    assert not (without / "stage1" / TRACKERS_FILE).exists()


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_tensorboard_has_every_figure_the_pictures_and_the_recipe(tracked, stage):
    out, _ = tracked
    folder = out / "logs/tensorboard" / stage
    require_all(tensorboard_values(folder), out / stage)
    events = in_tensorboard(folder)
    kinds = {f"{kind}/{n}" for kind in ("examples",) for n in range(3)}
    kinds |= {f"mixed/{n}" for n in range(2)} if stage == "stage2" else set()
    assert set(events.Tags()["images"]) == kinds
    assert [e.step for e in events.Images("examples/0")] == [
        m["step"] for m in read_signals(out / stage)
    ]
    assert (events.Images("examples/0")[0].height, events.Images("examples/0")[0].width) == SIZE
    if stage == "stage2":  # with its labels at its right
        assert {(e.height, e.width) for e in events.Images("mixed/1")} == {(64, 256)}
    content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    assert b"stage1.target_weight" in content


def test_the_csv_table_has_every_figure(tracked):
    out, _ = tracked
    for stage in ("stage1", "stage2"):
        require_all(csv_values(out / "logs/csv" / stage), out / stage, 1e-12)


def test_mlflow_without_a_server_keeps_a_database_in_the_run_folder(tracked):
    out, _ = tracked
    client = mlflow_client(out)
    found = mlflow_runs(client)
    assert set(found) == {"run/stage1", "run/stage2"}
    for stage in ("stage1", "stage2"):
        run = found[f"run/{stage}"]
        require_all(mlflow_values(client, run), out / stage, 1e-12)
        assert run.info.status == "FINISHED"
        assert run.data.params["stage1.steps"] == "6"
        assert run.data.params["name"] == "small"
    artifacts = client.list_artifacts(found["run/stage2"].info.run_id, "images")
    names = {Path(file.path).name.split("+")[0] for file in artifacts}
    assert {"examples~0", "mixed~0"} <= names


def test_wandb_works_offline_and_sends_no_command_line(tracked):
    out, _ = tracked
    stages = {}
    for records in wandb_records(out).values():
        (name,) = {r.run.display_name for r in records if r.WhichOneof("record_type") == "run"}
        stages[name] = records
    assert set(stages) == {"run/stage1", "run/stage2"}
    for stage in ("stage1", "stage2"):
        values = wandb_values(stages[f"run/{stage}"])
        pictures = [v for v in values if v[0].split("/")[0].split(".")[0] in ("examples", "mixed")]
        assert pictures
        require_all([v for v in values if v not in pictures], out / stage, 1e-12)
    for record in stages["run/stage1"]:
        if record.WhichOneof("record_type") == "run":
            assert (record.run.project, record.run.host) == ("edgeuda", "withheld")
    assert not list((out / "logs/wandb").rglob("wandb-metadata.json"))


def test_no_key_is_written(tracked):
    out, _ = tracked
    for path in [path for path in out.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        assert not [name for name, value in SECRETS.items() if value.encode() in content], path


def test_what_each_tracker_was_given_is_recorded(tracked):
    out, _ = tracked
    record = TrackersRecord.read(out / "stage1" / TRACKERS_FILE)
    assert [run.tracker for run in record.runs] == list(ALL)
    assert {run.step for run in record.runs} == {6}
    assert not any(run.failed for run in record.runs)


def test_a_resumed_stage_goes_on_in_the_same_runs_and_no_step_is_doubled(
    data, trained, plain, tmp_path, monkeypatch
):
    """It stops in step 6 with a checkpoint of step 4: step 5 was given, and is trained again."""
    for module in ("tensorboard", "mlflow", "sqlalchemy", "wandb"):
        pytest.importorskip(module)
    out = tmp_path / "run"
    with stopped_in_step_6(monkeypatch):
        adapted(data, trained, out, ALL)
    before = TrackersRecord.read(out / "stage1" / TRACKERS_FILE)
    assert {run.step for run in before.runs} == {5}
    with (out / "logs/csv/stage1/metrics.csv").open("a") as table:
        table.write("0.25,0.5,")  # as a kill would leave it
    status = mlflow_runs(mlflow_client(out))["run/stage1"].info.status
    assert status == "KILLED"
    adapted(data, trained, out, ALL, True)
    assert (out / MODEL_FILE).read_bytes() == (plain[0] / MODEL_FILE).read_bytes()
    after = TrackersRecord.read(out / "stage1" / TRACKERS_FILE)
    assert [run.run for run in after.runs] == [run.run for run in before.runs]
    stage = out / "stage1"
    require_all(tensorboard_values(out / "logs/tensorboard/stage1"), stage)
    require_all(csv_values(out / "logs/csv/stage1"), stage, 1e-12)
    client = mlflow_client(out)
    run = mlflow_runs(client)["run/stage1"]
    assert run.info.status == "FINISHED"
    require_all(mlflow_values(client, run), stage, 1e-12)
    both = [records for name, records in wandb_records(out).items() if before.runs[3].run in name]
    values = [v for records in both for v in wandb_values(records) if "examples" not in v[0]]
    require_all(values, stage, 1e-12)


def test_a_tracker_that_fails_is_let_go_and_training_goes_on(
    data, trained, plain, tmp_path, monkeypatch, caplog
):
    whole = tracker_kinds.Csv.log_metrics

    def full(self, metrics, step=None):
        if step == 3:
            msg = "http://me:sesame@tracker/?token=abc: no room, hush-hush\nmore"
            raise OSError(msg)
        whole(self, metrics, step)

    monkeypatch.setattr(tracker_kinds.Csv, "log_metrics", full)
    out = adapted(data, trained, tmp_path / "run", ("csv",))
    assert (out / MODEL_FILE).read_bytes() == (plain[0] / MODEL_FILE).read_bytes()
    said = [r.getMessage() for r in caplog.records if "takes nothing more" in r.getMessage()]
    assert len([line for line in said if line.startswith("stage1")]) == 1
    (run,) = TrackersRecord.read(out / "stage1" / TRACKERS_FILE).runs
    assert run.failed == ["step 3: http://***@tracker/?token=*** no room, ***"]
    assert max(step for _, step, _ in csv_values(out / "logs/csv/stage1")) == 2


def test_a_tracker_that_comes_later_says_what_it_lacks(
    data, trained, tmp_path, monkeypatch, caplog
):
    with stopped_in_step_6(monkeypatch):
        adapted(data, trained, tmp_path / "run")
    adapted(data, trained, tmp_path / "run", ("csv",), True)
    assert "tracker csv has nothing of the first 4 steps" in caplog.text
    values = csv_values(tmp_path / "run/logs/csv/stage1")
    assert {step for name, step, _ in values if name == "loss/total"} == {5, 6}


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_is_an_error_before_anything_is_made(name, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DependencyError, match=rf"edgeuda\[{name}\]"):
        runs.train(data / "source", tmp_path / "run", log=["csv", name])
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused(data, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        runs.train(data / "source", tmp_path / "run", log=["tensorbord"])
    assert not (tmp_path / "run").exists()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_a_server_that_does_not_answer_is_an_error_before_training(data, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:sesame@127.0.0.1:{free_port()}/?k=abc")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI") as caught:
        runs.train(data / "source", tmp_path / "run", log=["mlflow"])
    assert "sesame" not in str(caught.value)
    assert "abc" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A real MLflow server on the loopback device."""
    for module in ("flask", "mlflow", "pandas"):
        pytest.importorskip(module, reason="mlflow server needs it")
    port = free_port()
    log = (tmp_path / "server.log").open("w")
    process = subprocess.Popen(
        [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
            "--workers", "1", "--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}",
            "--artifacts-destination", (tmp_path / "artifacts").as_uri(),
        ],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"{uri}/health", timeout=5):
                    break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.5)
        else:
            pytest.fail((tmp_path / "server.log").read_text())
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri, process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


@pytest.mark.slow  # the server takes ten seconds and more to start
def test_a_real_mlflow_server_takes_a_run_and_may_go_away(
    server, data, trained, plain, tmp_path, monkeypatch, caplog
):
    from mlflow import MlflowClient

    uri, process = server
    caplog.set_level(logging.INFO, "edgeuda.training.trackers")
    out = adapted(data, trained, tmp_path / "run", ("mlflow",))
    assert f"Tracker mlflow: at {uri}" in caplog.text
    client = MlflowClient(tracking_uri=uri)
    found = mlflow_runs(client)
    for stage in ("stage1", "stage2"):
        require_all(mlflow_values(client, found[f"run/{stage}"]), out / stage, 1e-12)
        assert found[f"run/{stage}"].info.status == "FINISHED"
    assert client.list_artifacts(found["run/stage2"].info.run_id, "images")
    assert not (out / "logs").exists()

    whole = tracker_kinds.Mlflow.log_metrics

    def gone(self, metrics, step=None):
        if step == 3 and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        whole(self, metrics, step)

    monkeypatch.setattr(tracker_kinds.Mlflow, "log_metrics", gone)
    again = adapted(data, trained, tmp_path / "again", ("mlflow",))
    assert (again / MODEL_FILE).read_bytes() == (plain[0] / MODEL_FILE).read_bytes()
    (run,) = TrackersRecord.read(again / "stage1" / TRACKERS_FILE).runs
    assert run.step == 3
    assert len(run.failed) == 1
    assert caplog.text.count("stage1: tracker mlflow takes nothing more") == 1


def test_a_comparison_names_its_runs_by_seed_and_stage(data, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text("[source-only]\nstages = []\n")
    variants = load_plan(str(plan), "small", (*TINY, "source.steps=2", "stages=[]"))
    track = Track(data / "source", data / "target", data / "target")
    compare(variants, track, [0], tmp_path / "out", trackers=["csv"])
    (table,) = (tmp_path / "out/logs/csv").rglob("metrics.csv")
    stage = table.parent.relative_to(tmp_path / "out/logs/csv")
    assert (tmp_path / "out/runs" / stage / MODEL_FILE).exists()
    assert len({step for _, step, _ in csv_values(table.parent)}) == 2


def test_pictures_come_at_most_so_often(tmp_path):
    steps = 1000
    trackers = StageTrackers(tmp_path, SPACE, steps, 0)
    due = [step for step in range(0, steps + 1, 10) if trackers._due("mixed", step)]
    assert len(due) == PICTURES + 1  # the first and the last step among them
    assert (due[0], due[-1]) == (0, steps)
    resumed = StageTrackers(tmp_path, SPACE, steps, 500)
    assert [s for s in range(510, steps + 1, 10) if resumed._due("mixed", s)] == [
        step for step in due if step > 500
    ]


def test_names_of_figures_and_settings():
    line = {"step": 4, "loss": 3.0, "mix": 1.0, "keep": 0.5, "overlap": [0.1, 0.2], "seconds": 9}
    assert scalars(line, Losses({"mix": torch.ones(())}).terms, ["road", "sky"]) == {
        "loss/total": 3.0, "loss/mix": 1.0, "keep": 0.5, "overlap/road": 0.1, "overlap/sky": 0.2,
    }  # fmt: skip
    assert flat({"a": {"b": 1, "c": [1, 2]}, "d": None}) == {"a.b": 1, "a.c": "[1, 2]", "d": None}


def test_stages_have_the_names_of_their_folders(tmp_path):
    tracking = Tracking(("csv",), tmp_path)
    assert tracking.stage(tmp_path) == "source"
    assert tracking.stage(tmp_path / "hiast/round1") == "hiast/round1"


def test_secrets_are_left_out_of_what_is_said():
    said = without_secrets(f"https://a:b@host/x?token=c&d=e: {SECRETS['WANDB_API_KEY']}")
    assert said == "https://***@host/x?token=***&d=*** ***"
