"""Which network a record is of, from the training run to the verdict on the page."""

import json

import numpy as np
import pytest

from calibration.half_precision import write_half
from calibration.options import Options as Calibration
from calibration.quantize import calibrate
from edgeuda.accuracy.scoring import Subject, score
from edgeuda.data.images import read_label, write_label
from edgeuda.decision import Budget, Candidate, Figure, choose, judge_int8
from edgeuda.errors import DataError
from edgeuda.files import read_json, sha256, write_json
from edgeuda.labels import SPACES
from edgeuda.methods.registry import METHODS
from edgeuda.models.checkpoint import save_model
from edgeuda.records.adaptation import AdaptationRecord
from edgeuda.records.identity import MODEL_FILE, Identity, descent, identity_of
from edgeuda.records.run import Descent
from edgeuda.street import write_dataset
from edgeuda.training import pipeline
from edgeuda.training.pipeline import RunOptions, adapt, train_source
from edgeuda.training.recipe import load_recipe
from engines.api import export
from engines.onnx.metadata import identity_in, made_from, read_metadata
from engines.report.networks import KnownNetwork, pairs_of
from engines.report.old_records import TITLES
from engines.report.page import build_report
from engines.scoring import score_exported
from report_records import INT8, STAGE2, bench, evaluation
from tiny_models import SPEC, random_frames, random_network, write_frames

STAGES = tuple(name for name, kind in METHODS.items() if kind.adapts)
TINY = ("model.width=0.125", "model.input=[64, 128]", "geometry.crop=[64, 128]")
A, B, C = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A training and an adaptation by every stage, as the pipeline writes them, nothing learnt."""
    root = tmp_path_factory.mktemp("runs")
    for role, domain, seed in (("source", "simulator", 0), ("target", "camera", 1000)):
        write_dataset(root / role, domain, 4, seed, 64, 128, SPACES["camvid-11"])
    recipe = load_recipe("small", (*TINY, f"stages={json.dumps(STAGES)}"))
    numbers = iter(range(1, 100))

    def run(recipe, domains, job):
        save_model(random_network(domains.spec(recipe), next(numbers)), domains.spec(recipe),
                   job.folder / MODEL_FILE)  # fmt: skip

    def stage(recipe, stage, model, domains, job):
        run(recipe, domains, job)
        save_model(model, domains.spec(recipe), job.folder / "round1" / MODEL_FILE)
        save_model(model, domains.spec(recipe), job.folder / "round1" / "labeller.safetensors")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run_source", run)
        patch.setattr(pipeline, "run_stage", stage)
        patch.setattr(pipeline, "adaptation_record", lambda *_: AdaptationRecord([]))
        train_source(recipe, root / "source", None, RunOptions(root / "run"))
        domains = root / "source", root / "target"
        adapt(recipe, root / "run", *domains, RunOptions(root / "adapted"))
        again = load_recipe("small", (*TINY, 'stages=["adabn"]'))
        adapt(again, root / "adapted" / "lse", *domains, RunOptions(root / "again"))
    return root


def test_every_stage_of_the_pipeline_is_an_adaptation(runs):
    source = identity_of(runs / "run" / MODEL_FILE)
    assert (source.role, source.methods, source.parent) == ("source", ("source",), None)
    assert source.network == sha256(runs / "run" / MODEL_FILE)
    assert {"adabn", "entropy", "adversarial", "ass", "hiast", "lse", "distil"} < set(STAGES)
    for number, stage in enumerate(STAGES, 1):
        for file in (MODEL_FILE, f"round1/{MODEL_FILE}"):
            path = runs / "adapted" / stage / file
            found = identity_of(path)
            assert found.role == "adapted"
            assert found.methods == ("source", *STAGES[:number])
            assert (found.network, found.parent) == (sha256(path), source.network)
    result = identity_of(runs / "adapted" / MODEL_FILE)
    assert (result.role, result.methods) == ("adapted", ("source", *STAGES))
    assert result.recipe == read_json(runs / "adapted" / "run.json")["recipe_sha256"]


def test_a_network_descends_from_all_before_it(runs):
    found = identity_of(runs / "again" / MODEL_FILE)
    assert found.ancestors == tuple(
        sha256(path / MODEL_FILE) for path in (runs / "adapted" / "lse", runs / "run")
    )
    until = STAGES[: STAGES.index("lse") + 1]
    assert found.methods == ("source", *until, "adabn")


def test_what_is_no_network_of_a_run_has_no_identity(runs, tmp_path):
    for inside in ("adapted/hiast/round1/labeller.safetensors", "run/elsewhere/model.safetensors"):
        assert identity_of(runs / inside) is None
    copied = tmp_path / "source-only.safetensors"
    copied.write_bytes((runs / "run" / MODEL_FILE).read_bytes())
    assert identity_of(copied) is None
    assert descent(copied) == Descent([sha256(copied)])
    # what another adaptation's teacher was is no stage
    assert identity_of(runs / "adapted" / "large-0123" / MODEL_FILE) is None


def run_folder(folder, **fields):
    (folder / "stage1").mkdir(parents=True)
    for place in (folder, folder / "stage1"):
        (place / MODEL_FILE).write_bytes(b"weights")
    write_json(
        folder / "run.json",
        {"schema": "edgeuda.run/1", "verb": "adapt", "digest": B, "recipe_sha256": A, **fields},
    )
    return folder


def test_runs_of_before_did_not_record_their_parent(tmp_path):
    run = run_folder(tmp_path / "run")
    assert identity_of(run / MODEL_FILE).role == "adapted"
    found = identity_of(run / "stage1" / MODEL_FILE)
    assert (found.role, found.methods, found.ancestors) == ("adapted", ("stage1",), ())


def test_other_programs_runs_are_passed_by_and_damaged_ones_refused(tmp_path, caplog):
    other = run_folder(tmp_path / "other", schema="of/others")
    assert identity_of(other / MODEL_FILE) is None
    assert "taken for unknown" in caplog.text
    damaged = run_folder(tmp_path / "damaged", descent={"methods": 3})
    with pytest.raises(DataError, match=r"run\.json: its 'edgeuda.run/1' record is damaged"):
        identity_of(damaged / MODEL_FILE)


def test_an_identity_survives_its_text():
    made = Identity("adapted", A, ("source", "hiast"), (B, C), None)
    assert Identity.from_json(made.to_json(), "x") == made
    for damage in ({"role": "best"}, {"schema": "y"}, {"methods": 3}):
        with pytest.raises(DataError, match="x: expected an"):
            Identity.from_record(made.to_record() | damage, "x")
    for text in ("[]", "3", "{", "null"):
        with pytest.raises(DataError, match="x: expected an"):
            Identity.from_json(text, "x")


# --- what the report makes of it ---


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Frames whose labels a source-trained stand-in misses more often than an adapted one."""
    root = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    for path in write_frames(root / "images", random_frames(3, 64, 128)):
        write_label(root / "labels" / path.name, rng.integers(0, 11, (64, 128), np.uint8))
    return root


def scored(model, labelled, name, right):
    """Score a file as `evaluate` does, with a stand-in for the network that is right this often."""
    truth = iter(sorted((labelled / "labels").iterdir()))

    def predict(image):
        label = read_label(next(truth))
        rng = np.random.default_rng(1)
        return np.where(rng.random(label.shape) < right, label, (label + 1) % 11).astype(np.uint8)

    return score(Subject(predict, SPEC, model, "checkpoint"), labelled, name).to_record()


def verdicts(records, tmp_path):
    for index, record in enumerate(records):
        write_json(tmp_path / "in" / f"{index}.json", record)
    _, data, *_ = build_report([tmp_path / "in"], tmp_path / "report.html")
    report = json.loads(data.read_text(encoding="utf-8"))
    return report["verdicts"], " ".join(report["unknown"])


NAMES = [
    ("source-only", "adapted"), ("baseline", "ours"), ("before", "after"),
    ("adapted", "source-only"), ("stage 2", "stage 2"),
]  # fmt: skip


def test_the_verdict_is_the_same_whatever_the_networks_are_called(runs, labelled, tmp_path):
    said = []
    for index, (before, after) in enumerate(NAMES):
        records = [
            scored(runs / "run" / MODEL_FILE, labelled, before, 0.4),
            scored(runs / "adapted" / MODEL_FILE, labelled, after, 0.8),
        ]
        assert records[0]["identity"]["role"] == "source"
        found, unknown = verdicts(records, tmp_path / str(index))
        said.append([(v["topic"], v["status"], v["headline"]) for v in found])
        assert "titles" not in unknown
    assert said[0][0][:2] == ("Adaptation", "good")
    assert said[0][0][2].startswith("Adaptation raises mIoU")
    assert all(one == said[0] for one in said)


def test_every_stage_counts_as_adaptation(runs, labelled, tmp_path):
    before = scored(runs / "run" / MODEL_FILE, labelled, "a", 0.4)
    for stage in STAGES:
        after = scored(runs / "adapted" / stage / MODEL_FILE, labelled, "b", 0.8)
        (verdict, *_), _ = verdicts([before, after], tmp_path / stage)
        assert (verdict["topic"], verdict["status"]) == ("Adaptation", "good")


def test_a_name_that_sounds_like_a_role_is_not_taken_for_one(runs, labelled, tmp_path):
    others = [tmp_path / f"{n}.safetensors" for n in range(2)]
    for number, path in enumerate(others):
        save_model(random_network(seed=number), SPEC, path)
    records = [
        scored(others[0], labelled, "resource-only test", 0.4),
        scored(others[1], labelled, "stage 3 lighting", 0.8),
    ]
    assert "identity" not in records[0]
    (verdict,), unknown = verdicts(records, tmp_path / "report")
    assert (verdict["status"], verdict["topic"]) == ("unknown", "Verdict")
    assert "resource-only test, stage 3 lighting: no record says" in unknown
    assert "stated, not judged" in unknown


def test_titles_of_old_records_are_a_fallback_that_is_said(runs, labelled, tmp_path):
    records = [
        scored(runs / "run" / MODEL_FILE, labelled, "source-only", 0.4),
        scored(runs / "adapted" / MODEL_FILE, labelled, "stage 2", 0.8),
    ]
    for record in records:
        del record["identity"]
    (verdict, *_), unknown = verdicts(records, tmp_path)
    assert (verdict["topic"], verdict["status"]) == ("Adaptation", "good")
    assert "source-only and stage 2 are taken for the network before and after" in unknown
    assert {METHODS[stage].label for stage in ("source", *STAGES)} <= set(TITLES)


def known(role, network, *ancestors):
    return KnownNetwork(network, Identity(role, network, (role,), ancestors), network)


def test_networks_are_paired_by_descent():
    one, other = known("source", A), known("source", B)
    of_one, of_other = known("adapted", C, A), known("adapted", "d" * 64, B)
    last = known("adapted", "e" * 64, C, A)
    assert pairs_of([one, other, of_one, of_other]) == [(0, 2), (1, 3)]
    assert pairs_of([one, of_other]) == []  # of another training
    assert pairs_of([one, of_one, last]) == [(0, 2)]
    assert pairs_of([one, one, of_one]) == [(0, 2)]  # as a checkpoint and as a graph
    unknown = known("adapted", C)
    assert pairs_of([one, unknown]) == [(0, 1)]  # by role alone
    foreign = KnownNetwork("theirs", None, A)
    assert pairs_of([foreign, of_one]) == [(0, 1)]  # what it began with, whoever trained it
    assert pairs_of([foreign, unknown]) == []


# --- exported, quantized, halved ---


@pytest.fixture(scope="module")
def forms(runs, tmp_path_factory):
    """The result of a run as FP32, INT8 and FP16, and INT8 with statistics of the frames."""
    root = tmp_path_factory.mktemp("forms")
    frames = write_frames(root / "frames", random_frames(4, 64, 128))
    for name in ("run", "adapted"):
        export(runs / name, root / "frames", root / f"{name}.onnx", frames=2)
    calibrate(root / "adapted.onnx", frames, root / "int8.onnx", Calibration("ort-x86"))
    write_half(root / "adapted.onnx", frames, root / "half.onnx", least_agreement=0.0)
    renewed = Calibration("ort-x86", adapt_batch_norm=True)
    calibrate(root / "run.onnx", frames, root / "renewed.onnx", renewed)
    return root


def test_an_exported_network_says_which_it_is_in_every_form(runs, forms):
    wanted = identity_of(runs / "adapted" / MODEL_FILE)
    for name in ("adapted", "int8", "half"):
        assert identity_in(read_metadata(forms / f"{name}.onnx"), name) == wanted
    assert made_from(read_metadata(forms / "adapted.onnx")) is None
    for name in ("int8", "half"):
        assert made_from(read_metadata(forms / f"{name}.onnx")) == sha256(forms / "adapted.onnx")


def test_statistics_of_target_frames_make_an_adapted_network(runs, forms):
    source = identity_of(runs / "run" / MODEL_FILE)
    found = identity_in(read_metadata(forms / "renewed.onnx"), "x")
    assert (found.role, found.parent) == ("adapted", source.network)
    assert found.network != source.network
    assert found == identity_in(read_metadata(forms / "renewed.fp32.onnx"), "x")


def test_int8_is_held_against_the_model_it_was_made_from(runs, forms, labelled, tmp_path):
    """By checksum: the names are of no use, and another FP32 network stands beside it."""
    names = {"run": "x", "adapted": "y", "int8": "z"}
    records = [
        score_exported(forms / f"{file}.onnx", labelled, name).to_record()
        for file, name in names.items()
    ]
    assert records[2]["model"]["made_from_sha256"] == records[1]["model"]["sha256"]
    assert records[1]["identity"] == identity_of(runs / "adapted" / MODEL_FILE).to_record()
    for index, record in enumerate(records):
        write_json(tmp_path / "in" / f"{index}.json", record)
    _, data, *_ = build_report([tmp_path / "in"], tmp_path / "report.html")
    report = json.loads(data.read_text(encoding="utf-8"))
    (change,) = (f for f in report["evidence"] if f["topic"] == "mIoU, z against FP32")
    assert change["text"].startswith("y ")


# --- one INT8 verdict ---


@pytest.mark.parametrize("drop", [0.0, 0.003, 0.008, 0.02])
@pytest.mark.parametrize("speed", [(2.0, 1.9, 2.1), (1.05, 0.98, 1.1), (0.8, 0.7, 0.9)])
def test_sweep_and_findings_give_int8_one_verdict(speed, drop, labelled, tmp_path):
    ratio, low, high = speed
    candidates = [
        # intervals of the medians whose quotients are those of the ratio
        Candidate("fp32", "fp32", "n", 40, 44, 0.55, "", (40 * low / ratio, 40 * high / ratio)),
        Candidate("int8", "int8", "n", 40 / ratio, 44, 0.55 - drop, "", (40 / ratio,) * 2),
    ]
    swept = choose(candidates, Budget()).int8.verdict
    assert swept.speed.interval == pytest.approx((low, high))
    alone = judge_int8(Figure(ratio, (low, high)), Figure(-drop))
    assert (swept.status, swept.reason) == (alone.status, alone.reason)
    records = [
        evaluation("fp32", STAGE2, 0.55), evaluation("int8", INT8, 0.55 - drop, "int8"),
        bench(speed),
    ]  # fmt: skip
    found, _ = verdicts(records, tmp_path)
    (verdict,) = (v for v in found if v["topic"] == "INT8")
    assert verdict["status"] == ("good" if swept.status == "worth it" else "bad")
