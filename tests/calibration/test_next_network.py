"""The next network: adapted beside old frames, compared, refused or packed with its lineage."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import edgeuda
from calibration.api import calibrate, half
from calibration.next_network import BUNDLE, update
from calibration.same_forms import forms_of, make_forms
from cli.app import app
from edgeuda.data.frames import frame_folder
from edgeuda.decision import judge_update
from edgeuda.errors import BundleError, DataError, OutputExistsError, ParityError
from edgeuda.files import read_json, sha256
from edgeuda.records.reference import Reference, reference_path
from edgeuda.records.tradeoff import Figure
from edgeuda.records.update import UpdateRecord
from edgeuda.street import write_dataset
from engines import installation
from engines.api import export
from engines.bundle import open_bundle
from engines.bundle_model import CURRENT
from engines.onnx.metadata import IDENTITY_KEY
from engines.packing import pack

BRIEF = {
    "model.width": 0.125, "model.input": [64, 96], "geometry.crop": [64, 96], "source.steps": 60,
    "source.batch": 4, "stages": ["adabn", "stage1"], "adabn.batches": 2, "adabn.batch": 2,
    "stage1.steps": 2, "stage1.batch": 2, "monitor.frames": 2,
}  # fmt: skip
MODELS = ("net.onnx", "net-int8.onnx")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A trained network in a bundle, and frames of the camera: old ones, new ones, labelled."""
    root = tmp_path_factory.mktemp("last")
    space = edgeuda.label_space("camvid-11")
    for name, domain, count, seed in (
        ("source", "simulator", 4, 0), ("old", "simulator", 6, 50), ("new", "camera", 5, 80),
    ):  # fmt: skip
        write_dataset(root / name, domain, count, seed, 64, 96, space)
    edgeuda.train(root / "source", root / "run", recipe="small", settings=BRIEF)
    models = [root / name for name in MODELS]
    export(root / "run", root / "old", models[0], head="scores", frames=2, confidence=True)
    calibrate(models[0], root / "old", models[1], frames=4)
    (root / "LICENCE.txt").write_text("for tests")
    pack(models, root / "last.edgeuda", licences=[root / "LICENCE.txt"], acceptance=root / "old")
    for name in ("old", "new"):  # of each two frames are labelled, of which one is footage too
        labelled = root / f"{name}-labels"
        for kind in ("images", "labels"):
            (labelled / kind).mkdir(parents=True)
            for frame in ("000000.png", "000001.png"):
                shutil.copy(root / name / kind / frame, labelled / kind)
            (root / name / kind / "000001.png").unlink()
        shutil.copy(root / name / "dataset.json", labelled)
    return root


def adapting(made, calls=None):
    def adapt(new, replay, out):
        if calls is not None:
            calls.append((new, replay))
        settings = {name: BRIEF[name] for name in BRIEF if name.partition(".")[0] != "model"}
        return edgeuda.adapt(
            made / "run", made / "source", new, out, recipe="small", settings=settings,
            resume=True, replay=replay.footage, replay_share=replay.share,
        )  # fmt: skip

    return adapt


def updated(made, out, **changed):
    given = {"adapt": adapting(made), "frames": 4, "sources": [made / "source"], **changed}
    return update(made / "last.edgeuda", made / "run", made / "old", made / "new", out, **given)


@pytest.fixture(scope="module")
def done(made, tmp_path_factory):
    """An update without labels."""
    out = tmp_path_factory.mktemp("update") / "next"
    return out, updated(made, out)


def test_the_next_bundle_has_the_forms_of_the_last_and_its_lineage(made, done):
    out, record = done
    last, found = (open_bundle(path) for path in (made / "last.edgeuda", out / BUNDLE))
    names = {f"models/{name}" for name in MODELS}
    assert names == {one.name for one in found.of("model")} == {o.name for o in last.of("model")}
    for one in found.of("model"):
        assert one.about == last.members[one.name].about
        assert one.sha256 != last.members[one.name].sha256
    assert found.read("licences/LICENCE.txt") == b"for tests"
    assert [one.name for one in found.of("recipe")] == ["recipe/recipe.toml"]
    lineage = found.manifest.lineage
    learned = lineage.learned
    assert lineage == record.lineage
    assert lineage.parent == sha256(made / "last.edgeuda") == record.last.sha256
    assert lineage.network == sha256(out / "adapted/model.safetensors") == record.networks[1]
    (parent,) = lineage.ancestors
    assert (parent.bundle, parent.network) == (lineage.parent, record.networks[0])
    assert parent.created == last.manifest.created
    assert (learned.old.count, learned.new.count, learned.replay_share) == (5, 4, 0.5)
    listed = found.read(learned.old.file).decode().split()
    assert listed == [f"{number:06d}.png" for number in (0, 2, 3, 4, 5)]
    assert learned.recipe_sha256 == read_json(out / "adapted/run.json")["recipe_sha256"]
    frames = [one for one in found.of("acceptance") if "model" not in one.about]
    assert len(frames) == 4
    assert record.bundle.sha256 == sha256(out / BUNDLE)
    assert UpdateRecord.read(out / UpdateRecord.FILE) == record


def test_without_labels_it_is_not_judged_and_packed_all_the_same(done):
    _, record = done
    assert (record.verdict.status, record.verdict.reason) == ("not judged", "no labels")
    assert not record.overridden
    for one, frames in ((record.old, 5), (record.new, 4)):
        assert (one.frames, one.left_out, one.with_labels) == (frames, 0, None)
        said = one.without_labels
        assert said.frames == frames
        assert 0 < said.agreement < 1
        for which in range(2):
            assert sum(share[which] for share in said.classes.values()) == pytest.approx(1)
            assert 0 < said.confidence[which] < 1
    assert [one.file for one in record.int8] == ["net-int8.onnx"]


def test_what_is_normal_is_of_both_and_no_stretch_runs_from_one_to_the_other(done):
    out, _ = done
    found = Reference.read(reference_path(out / "models/net-int8.onnx"))
    assert (found.frames, found.footage) == (4, 9)
    assert [(one.first, one.frames) for one in found.stretches] == [(0, 2), (4, 2)]


@pytest.fixture(scope="module")
def scored(made, tmp_path_factory):
    """An update with labels, and what was adapted to."""
    calls, out = [], tmp_path_factory.mktemp("scored") / "next"
    record = updated(
        made, out, adapt=adapting(made, calls), sources=[made / "old-labels"], pack_anyway=True,
        **labels(made),
    )  # fmt: skip
    return out, record, calls


def labels(made):
    return {f"{name}_labels": made / f"{name}-labels" for name in ("old", "new")}


def test_what_is_scored_on_is_not_adapted_to(made, scored):
    out, record, calls = scored
    ((new, replay),) = calls
    for name, taught, one in (("old", replay.footage, record.old), ("new", new, record.new)):
        lines = taught.read_text().splitlines()[1:]
        assert f"{made / name / 'images/000000.png'}" not in lines
        assert len(lines) == one.frames == len((out / f"frames-{name}.txt").read_text().split())
        assert one.left_out == 1
        found = one.with_labels
        assert found.data.images == 2
        assert found.in_source == (2 if name == "old" else 0)
        assert found.change.value == pytest.approx(found.next.value - found.last.value)
        known = edgeuda.Evaluation.from_record(read_json(out / f"results/next-{name}.json"))
        assert known.miou == pytest.approx(found.next.value)
    assert record.verdict.old == Figure.of(record.old.with_labels.change)
    assert record.overridden == (record.verdict.status == "refused")
    assert {one.name for one in open_bundle(out / BUNDLE).of("metrics")} == {
        "metrics/next-old.json", "metrics/next-new.json"
    }  # fmt: skip


def with_change(part, value):
    """The same with another difference between the two networks."""
    change = replace(part.with_labels.change, value=value, low=value, high=value)
    return replace(part, with_labels=replace(part.with_labels, change=change))


def test_a_network_that_forgets_is_refused_unless_asked_for_and_resumed_without_training(
    made, scored, tmp_path
):
    out = tmp_path / "next"
    shutil.copytree(scored[0], out)
    (out / BUNDLE).unlink()
    record = replace(
        scored[1], bundle=None, old=with_change(scored[1].old, -0.02),
        new=with_change(scored[1].new, 0.1), int8=(),
    )  # fmt: skip
    record.write(out / UpdateRecord.FILE)
    given = {**labels(made), "sources": [made / "old-labels"], "resume": True}
    refused = updated(made, out, **given)
    assert (refused.verdict.status, refused.verdict.reason) == ("refused", "forgets")
    assert refused.bundle is None
    assert not (out / BUNDLE).exists()
    assert UpdateRecord.read(out / UpdateRecord.FILE) == refused
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.onnx")}
    more = updated(made, out, **given, most_forgotten=0.03)
    assert (more.verdict.status, more.overridden) == ("taken", False)
    assert updated(made, out, **given) == more
    (out / BUNDLE).unlink()
    anyway = updated(made, out, **given, pack_anyway=True)
    assert (anyway.verdict.status, anyway.overridden) == ("refused", True)
    assert anyway.bundle.sha256 == sha256(out / BUNDLE)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.onnx")}


def test_a_stopped_update_goes_on_where_it_was(made, done, tmp_path, monkeypatch):
    out = tmp_path / "next"
    shutil.copytree(done[0], out)
    for lost in ("update.json", BUNDLE, "models/net-int8.onnx.reference.json"):
        (out / lost).unlink()
    record = updated(made, out, resume=True)
    assert record.old == done[1].old
    assert record.networks == done[1].networks
    with pytest.raises(OutputExistsError, match="exists"):
        updated(made, out)
    with pytest.raises(OutputExistsError, match="holds an update with other footage_sha256"):
        updated(made, out, resume=True, replay_share=0.25)


def test_what_does_not_belong_together_is_refused_before_anything_is_written(made, tmp_path):
    out = tmp_path / "next"
    other = tmp_path / "other"
    settings = {**BRIEF, "seed": 7, "source.steps": 1}
    edgeuda.train(made / "source", other, recipe="small", settings=settings)
    with pytest.raises(BundleError, match=r"holds the network .*Name the run that the bundle was"):
        update(made / "last.edgeuda", other, made / "old", made / "new", out, adapt=print)
    damaged = tmp_path / "damaged.edgeuda"
    content = bytearray((made / "last.edgeuda").read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(BundleError, match="Do not use it"):
        update(damaged, made / "run", made / "old", made / "new", out, adapt=print)
    with pytest.raises(DataError, match=r"all 4 frames are among the labelled images"):
        updated(made, out, new_labels=made / "new")
    assert not out.exists()


def test_a_network_without_its_run_is_refused(made, tmp_path):
    graph = onnx.load(made / MODELS[0])
    kept = [one for one in graph.metadata_props if one.key != IDENTITY_KEY]
    del graph.metadata_props[:]
    graph.metadata_props.extend(kept)
    onnx.save(graph, tmp_path / "net.onnx")
    pack([tmp_path / "net.onnx"], tmp_path / "last.edgeuda")
    with pytest.raises(BundleError, match="says which network it is"):
        update(
            tmp_path / "last.edgeuda", made / "run", made / "old", made / "new", tmp_path / "x",
            adapt=print,
        )  # fmt: skip


def test_a_demanded_signature_must_be_there(made, tmp_path):
    keys = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    from cryptography.hazmat.primitives import serialization as form

    key = keys.Ed25519PrivateKey.generate()
    (tmp_path / "key.pub").write_bytes(
        key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(BundleError, match="is not signed, and a public key was given"):
        updated(made, tmp_path / "next", public_key=tmp_path / "key.pub")


def test_a_vehicle_warns_of_a_network_of_another_descent(made, done, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(installation, "TIMED", 2)
    into = tmp_path / "vehicle"
    installation.install(made / "last.edgeuda", into, threads=1)
    event = installation.install(done[0] / BUNDLE, into, threads=1)
    assert event.parent == sha256(made / "last.edgeuda")
    assert "descends from" not in caplog.text
    assert (into / CURRENT).resolve().stem == sha256(done[0] / BUNDLE)
    stranger = tmp_path / "stranger"
    pack([made / MODELS[0]], tmp_path / "other.edgeuda")
    installation.install(tmp_path / "other.edgeuda", stranger, threads=1)
    installation.install(done[0] / BUNDLE, stranger, threads=1)
    assert f"descends from {event.parent[:12]}, and" in caplog.text
    assert [one.parent for one in installation.read(stranger).history] == [None, event.parent]


@pytest.mark.slow
def test_a_lineage_goes_back(made, done, tmp_path):
    out, _ = done
    record = update(
        out / BUNDLE, out / "adapted", made / "old", made / "new", tmp_path / "third",
        adapt=lambda new, replay, to: edgeuda.adapt(
            out / "adapted", made / "source", new, to, recipe="small",
            settings={k: v for k, v in BRIEF.items() if not k.startswith("model")},
            replay=replay.footage,
        ),
        frames=4,
    )  # fmt: skip
    assert [one.bundle for one in record.lineage.ancestors] == [
        sha256(out / BUNDLE), sha256(made / "last.edgeuda")
    ]  # fmt: skip
    assert json.loads((tmp_path / "third/adapted/run.json").read_text())["descent"][
        "ancestors_sha256"
    ][:2] == [record.networks[0], sha256(made / "run/model.safetensors")]


def figure(value, width=0.001):
    return Figure(value, (value - width, value + width))


@pytest.mark.parametrize(
    ("old", "new", "accepted", "expected"),
    [
        (figure(-0.0099), figure(0.1), True, ("taken", "kept", "worse", "better")),
        (figure(-0.0101), figure(0.1), True, ("refused", "forgets", "worse", "better")),
        (figure(-0.02, 0.05), figure(0.1), True, ("refused", "forgets", "noise", "better")),
        (figure(0.0), figure(-0.02), True, ("refused", "worse on new frames", "noise", "worse")),
        (figure(0.0), figure(-0.02, 0.05), True, ("taken", "kept", "noise", "noise")),
        (figure(0.0), None, True, ("taken", "kept", "noise", "unknown")),
        (None, figure(0.1), True, ("not judged", "no labels", "unknown", "better")),
        (None, figure(-0.1), True, ("refused", "worse on new frames", "unknown", "worse")),
        (None, None, True, ("not judged", "no labels", "unknown", "unknown")),
        (figure(0.0), None, False, ("refused", "INT8 not accepted", "noise", "unknown")),
        (Figure(float("nan")), None, True, ("not judged", "no labels", "unknown", "unknown")),
    ],
)
def test_the_verdict(old, new, accepted, expected):
    found = judge_update(old, new, 0.01, int8_accepted=accepted)
    assert (found.status, found.reason, found.old_change, found.new_change) == expected
    assert (found.old, found.new, found.most_forgotten) == (old, new, 0.01)


def test_class_shares_are_those_of_both_models(done):
    out, record = done
    found = read_json(out / "results/old.diff.json")
    shares = [(one["share"], one["now"]) for one in found["classes"].values()]
    np.testing.assert_allclose(np.sum(shares, axis=0), 1)
    assert list(record.old.without_labels.classes.values()) == shares


@pytest.mark.slow
def test_every_kind_of_form_is_made_again(made, tmp_path):
    """Half precision, INT8 for TensorRT, both at once; of heads that no FP32 form has, too."""
    whole = made / MODELS[0]
    models = [tmp_path / f"{name}.onnx" for name in ("half", "tensorrt", "both", "labels")]
    half(whole, made / "old", models[0])
    calibrate(whole, made / "old", models[1], runtime="tensorrt", frames=4)
    half(models[1], made / "old", models[2])
    exported = tmp_path / "fp32.onnx"
    export(made / "run", made / "old", exported, head="labels", frames=2)
    half(exported, made / "old", models[3])
    pack(models, tmp_path / "last.edgeuda")
    forms, network = forms_of(open_bundle(tmp_path / "last.edgeuda"))
    kinds = [(one.head, one.precision, one.runtime, one.half) for one in forms]
    assert kinds == [
        ("scores", "fp16", None, True), ("scores", "int8", "tensorrt", False),
        ("scores", "int8", "tensorrt", True), ("labels", "fp16", None, True),
    ]  # fmt: skip
    footage = frame_folder(made / "old")
    found = make_forms(made / "run", forms, footage, tmp_path / "again", frames=4)
    assert [path.name for path in found] == [path.name for path in models]
    pack(found, tmp_path / "next.edgeuda")
    again, same = forms_of(open_bundle(tmp_path / "next.edgeuda"))
    assert same == network
    assert [replace(one, reference=False) for one in again] == [
        replace(one, reference=False) for one in forms
    ]


@pytest.mark.parametrize(
    ("stages", "hinted"), [('["adabn", "stage1"]', True), ('["stage1"]', False)]
)
def test_who_forgets_is_told_what_forgets_less(made, done, monkeypatch, tmp_path, stages, hinted):
    refused = replace(done[1].verdict, status="refused", reason="forgets")
    record = replace(done[1], verdict=refused, bundle=None)
    monkeypatch.setattr("calibration.next_network.update", lambda *_, **__: record)
    given = [
        "update", "--bundle", made / "last.edgeuda", "--model", made / "run", "--source",
        made / "source", "--old", made / "old", "--new", made / "new", "--out", tmp_path / "next",
        "--set", f"stages={stages}",
    ]  # fmt: skip
    found = CliRunner().invoke(app, [str(one) for one in given])
    assert isinstance(found.exception, ParityError)
    assert ("stage 1 alone forgets less" in str(found.exception)) == hinted
