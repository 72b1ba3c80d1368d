"""Stages that go in rounds, pseudo-labels as files, labelled target images: whole runs."""

import dataclasses
import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgeuda.data.folders import labelled_folder, labelled_frames, labelled_subset
from edgeuda.data.images import read_image, read_label, write_image
from edgeuda.errors import ConfigError, DataError, OutputExistsError, TrainingError
from edgeuda.labels import IGNORE, SPACES
from edgeuda.methods.hiast import Hiast
from edgeuda.methods.lse import Lse
from edgeuda.methods.selection import SelectorSettings
from edgeuda.methods.teacher import Teacher
from edgeuda.models.checkpoint import load_model
from edgeuda.models.predictor import normalise
from edgeuda.records.identity import MODEL_FILE
from edgeuda.street import write_dataset
from edgeuda.training import pseudo_labels, watch
from edgeuda.training.loader import Images
from edgeuda.training.monitor import Probe
from edgeuda.training.pipeline import ADAPTATION_FILE, RunOptions, adapt, train_source
from edgeuda.training.pseudo_labels import (
    INDEX_FILE,
    PROGRESS_FILE,
    generate,
    label_footage,
)
from edgeuda.training.recipe import load_recipe
from edgeuda.training.trainer import read_log
from edgeuda.training.watch import read_signals
from engines.onnx_export import export_onnx
from tiny_models import quick_first

TINY = (
    "model.width=0.125", "model.input=[64, 128]", "geometry.crop=[64, 128]", "precision=32-true",
    "source.steps=20", "source.batch=4", "source.warmup=0", "adabn.batches=2", "adabn.batch=4",
    "monitor.frames=4",
    "adversarial.steps=2", "ass.steps=2", "hiast.steps=2", "lse.steps=2", "hiast.batch=2",
    "lse.batch=2", "ass.batch=2", "adversarial.batch=2", "hiast.lr=1e-3", "lse.lr=1e-3",
    "hiast.selection.initial=0.3", "hiast.log_every=1", "lse.log_every=1", "ass.labels=3",
    "lse.portion=8.0", "lse.growth=1.0", "lse.last=9.0", "lse.patches=2", "lse.epochs=1",
)  # fmt: skip
SPACE = SPACES["camvid-11"]
METHODS = {"hiast": Hiast, "lse": Lse}


def recipe(*overrides):
    return load_recipe("small", (*TINY, *overrides))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for role, domain, seed in (("source", "simulator", 0), ("target", "camera", 1000)):
        write_dataset(root / role, domain, 6, seed, 64, 128, SPACE)
    train_source(recipe(), root / "source", None, RunOptions(root / "run"))
    return root


def run(data, out, *overrides, resume=False, target=None):
    folders = data / "run", data / "source", target or data / "target"
    adapt(recipe(*overrides), *folders, RunOptions(out, resume))
    return load_file(out / MODEL_FILE)


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("stage", ["adversarial", "ass", "hiast", "lse"])
def test_every_companion_changes_the_network(stage, data, tmp_path):
    state = run(data, tmp_path / "out", f'stages=["{stage}"]')
    assert all(value.isfinite().all() for value in state.values())
    assert not same(state, load_file(data / "run" / MODEL_FILE))
    record = json.loads((tmp_path / "out" / ADAPTATION_FILE).read_text())
    assert record["stages"][0]["steps"] == read_log(tmp_path / "out" / stage)[-1]["step"]


@pytest.mark.parametrize("stage", ["hiast", "lse"])
def test_a_run_killed_within_a_round_ends_with_the_same_weights(stage, data, tmp_path, monkeypatch):
    settings = f'stages=["{stage}"]', "hiast.checkpoint_every=1", "lse.checkpoint_every=1"
    expected = run(data, tmp_path / "whole", *settings)
    whole = read_signals(tmp_path / "whole" / stage)

    class KilledError(Exception):
        pass

    real, calls = METHODS[stage].step, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 4:  # in the middle of the second round
            raise KilledError
        return real(*arguments)

    monkeypatch.setattr(METHODS[stage], "step", killed)
    with pytest.raises(KilledError):
        run(data, tmp_path / "cut", *settings)
    monkeypatch.setattr(METHODS[stage], "step", real)
    for teacher in (tmp_path / "cut").rglob("teacher.safetensors"):
        teacher.unlink()  # as if it had been killed before this was written
    assert same(expected, run(data, tmp_path / "cut", *settings, resume=True))
    assert read_signals(tmp_path / "cut" / stage)[-1] == whole[-1]


def test_rounds_are_logged_as_one_stage(data, tmp_path):
    run(data, tmp_path / "out", 'stages=["hiast"]')
    folder = tmp_path / "out" / "hiast"
    log = read_log(folder)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert [line["round"] for line in log] == [1, 1, 2, 2, 3, 3]
    seconds = [line["seconds"] for line in log]
    assert seconds == sorted(seconds)
    assert [line["round"] for line in read_signals(folder) if line["chosen"]] == [3]


def test_alarms_of_all_rounds_compare_to_the_first_ones_start(data, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(watch, "collapse", lambda first, *_: seen.append([*first]))
    run(data, tmp_path / "out", 'stages=["hiast"]', "hiast.steps=2", "monitor.frames=2")
    first = read_signals(tmp_path / "out/hiast/round1")[0]["histogram"]
    assert len(seen) >= 3
    assert all(found == first for found in seen)
    assert read_signals(tmp_path / "out/hiast/round2")[0]["histogram"] != first


@pytest.mark.parametrize("stage", ["hiast", "lse"])
def test_a_refused_round_is_the_last_and_its_start_is_kept(
    stage, data, tmp_path, monkeypatch, caplog
):
    values = iter([0.9, 0.95, 0.95, 0.8])  # the first round gains, the second loses
    real = Probe.measure

    def measure(self, model):
        return dataclasses.replace(real(self, model), flip_agreement=next(values))

    monkeypatch.setattr(Probe, "measure", measure)
    keys = (f'stages=["{stage}"]', "monitor.guard=flip_agreement", "monitor.every=2")
    state = run(data, tmp_path / "out", *keys, "lse.steps=2")
    folder = tmp_path / "out" / stage
    assert not (folder / "round3").exists()
    assert same(state, load_file(folder / "round1" / MODEL_FILE))
    lines = read_signals(folder)
    assert [line["chosen"] for line in lines] == [False, False, True, False]
    assert "from 95.0% to 80.0%" in lines[2]["refused"]
    record = json.loads((tmp_path / "out" / ADAPTATION_FILE).read_text())
    assert "monitor.guard" in record["stages"][0]["remarks"][-1]
    assert caplog.text.count("from 95.0% to 80.0%") == 1


def test_source_images_hold_the_classes_of_hiast(data, tmp_path):
    run(data, tmp_path / "out", 'stages=["hiast"]', "hiast.source_weight=0.5")
    log = read_log(tmp_path / "out" / "hiast")
    assert all(line["supervised"] > 0 for line in log)
    run(data, tmp_path / "published", 'stages=["hiast"]')
    assert all("supervised" not in line for line in read_log(tmp_path / "published" / "hiast"))


def test_later_rounds_are_labelled_by_the_teacher(data, tmp_path):
    run(data, tmp_path / "out", 'stages=["hiast"]')
    folder = tmp_path / "out" / "hiast"
    for before, after in ((1, 2), (2, 3)):
        teacher = load_file(folder / f"round{before}" / "teacher.safetensors")
        assert same(teacher, load_file(folder / f"round{after}" / "labeller.safetensors"))
        assert not same(teacher, load_file(folder / f"round{before}" / MODEL_FILE))


def test_a_round_is_labelled_at_its_own_size(data, tmp_path):
    """IAST's first round is labelled at 640x1280 for a network of 768x1536."""
    settings = (
        'stages=["hiast"]', "hiast.factors=[1.0, 1.0]", "hiast.label_sizes=[[32, 64]]",
        "hiast.selection.selector=all",
    )  # fmt: skip
    run(data, tmp_path / "out", *settings)
    start, spec = load_model(data / "run")
    names = sorted((data / "target/images").iterdir())
    seen = []
    for path in names:
        image = cv2.resize(read_image(path), (64, 32), interpolation=cv2.INTER_AREA)
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        seen.append(start(normalise(x, spec.preprocessing)).main.argmax(1)[0])
    for index, winner in enumerate(seen):
        label = read_label(tmp_path / f"out/hiast/round1/pseudo/labels/{index:06d}.png")
        assert label.shape == (64, 128)
        large = winner.repeat_interleave(2, 0).repeat_interleave(2, 1).numpy()
        assert (label == large).mean() > 0.99  # rounding may decide at an equal score
    later = tmp_path / "out/hiast/round2/pseudo/labels/000000.png"
    blocks = read_label(later).reshape(32, 2, 64, 2)
    assert (blocks != blocks[:, :1, :, :1]).any()  # of the full size: no blocks of 2x2


def test_source_training_can_learn_scale_and_shift_of_deeplab(data, tmp_path):
    tiny = "model.architecture=deeplabv2-r101", "source.steps=2", "source.batch=2"
    for affine in ("false", "true"):
        train_source(
            recipe(*tiny, f"source.affine={affine}"), data / "source", None,
            RunOptions(tmp_path / affine),
        )  # fmt: skip
        state = load_file(tmp_path / affine / MODEL_FILE)
        scales = torch.cat([v for k, v in state.items() if k.endswith("bn1.weight")])
        assert bool((scales == 1).all()) == (affine == "false")


def test_a_teacher_without_memory_is_the_student(data, tmp_path):
    run(data, tmp_path / "out", 'stages=["hiast"]', "hiast.teacher_decay=0.0")
    folder = tmp_path / "out" / "hiast" / "round1"
    assert same(load_file(folder / "teacher.safetensors"), load_file(folder / MODEL_FILE))


def test_nothing_selected_is_said(data, tmp_path):
    with pytest.raises(TrainingError, match=r"no pixel of 6 frames was selected in round 1"):
        run(data, tmp_path / "a", 'stages=["hiast"]', "hiast.selection.selector=constant",
            "hiast.selection.initial=1.0")  # fmt: skip
    with pytest.raises(TrainingError, match=r"Raise lse\.portion"):
        run(data, tmp_path / "b", 'stages=["lse"]', "lse.portion=0.1", "lse.last=0.1")


def test_patches_of_a_round(data, tmp_path):
    run(data, tmp_path / "out", 'stages=["lse"]')
    folder = tmp_path / "out" / "lse" / "round1"
    selection = json.loads((folder / "selection.json").read_text())
    patches = labelled_folder(folder / "patches", SPACE)
    assert len(patches) == 2 * len(selection["frames"])
    total = sum(np.bincount(label.ravel(), minlength=256)[:11] for _, label in patches)
    assert total.tolist() == selection["pixels"]
    assert total.sum() > 0


class TestLabelledTarget:
    def test_only_the_chosen_labels_are_opened(self, data, tmp_path):
        target = tmp_path / "target"
        shutil.copytree(data / "target", target)
        expected = run(data, tmp_path / "a", 'stages=["ass"]', target=target)
        chosen = (tmp_path / "a/ass/labelled.txt").read_text().split()
        assert len(chosen) == 3
        for label in (target / "labels").iterdir():
            if label.name not in chosen:
                label.unlink()
        (tmp_path / "list.txt").write_text("\n".join(chosen))
        by_list = f'ass.labels="{tmp_path / "list.txt"}"'
        again = run(data, tmp_path / "b", 'stages=["ass"]', by_list, target=target)
        assert same(expected, again)

    def test_a_labelled_folder_of_its_own_is_the_same(self, data, tmp_path):
        """Its frames may lie elsewhere, and other labels in it are another run."""
        frames, few = tmp_path / "frames", tmp_path / "few"
        shutil.copytree(data / "target" / "images", frames)
        (tmp_path / "list.txt").write_text("000001.png\n000004.png\n")
        by_list = f'ass.labels="{tmp_path / "list.txt"}"'
        expected = run(data, tmp_path / "a", 'stages=["ass"]', by_list)
        for part in ("images", "labels"):
            (few / part).mkdir(parents=True)
            for name in ("000001.png", "000004.png"):
                shutil.copy(data / "target" / part / name, few / part / name)
        shutil.copy(data / "target" / "dataset.json", few)
        how = 'stages=["ass"]', f'ass.labels="{few}"'
        assert same(expected, run(data, tmp_path / "b", *how, target=frames))
        assert (tmp_path / "b/ass/labelled.txt").read_text() == "000001.png\n000004.png\n"
        shutil.copy(few / "labels" / "000001.png", few / "labels" / "000004.png")
        with pytest.raises(OutputExistsError):
            run(data, tmp_path / "b", *how, target=frames, resume=True)

    def test_without_labels_it_says_where_to_put_them(self, data, tmp_path):
        shutil.copytree(data / "target" / "images", tmp_path / "frames")
        with pytest.raises(ConfigError, match="folder 'labels' beside"):
            run(data, tmp_path / "out", 'stages=["ass"]', target=tmp_path / "frames")

    def test_subsets(self, data, tmp_path):
        folder = labelled_frames(data / "target", SPACE)
        few, more = (set(labelled_subset(folder, n, seed=1).pairs) for n in (2, 5))
        assert few < more
        assert few == set(labelled_subset(folder, 2, seed=1).pairs)
        with pytest.raises(DataError, match="expected 7 labelled images, found 6"):
            labelled_subset(folder, 7, seed=0)
        (tmp_path / "list.txt").write_text("nowhere.png\n")
        with pytest.raises(DataError, match=r"names 'nowhere\.png'"):
            labelled_subset(folder, str(tmp_path / "list.txt"), seed=0)
        with pytest.raises(DataError, match="a number of labelled images or a file"):
            labelled_subset(folder, "many", seed=0)

    def test_frames_without_label_maps_are_left_out(self, data, tmp_path):
        shutil.copytree(data / "target", tmp_path / "target")
        next((tmp_path / "target/labels").iterdir()).unlink()
        assert len(labelled_frames(tmp_path / "target", SPACE)) == 5
        assert labelled_frames(data / "target" / "images", SPACE) is None


class TestPseudoLabelFiles:
    def test_they_are_a_labelled_folder_at_frame_size(self, data, tmp_path):
        out = tmp_path / "labels"
        frames = tmp_path / "frames"
        for number, path in enumerate(sorted((data / "target/images").iterdir())):
            image = cv2.resize(cv2.imread(str(path)), (100, 60))
            write_image(frames / f"drive{number % 2}" / path.name, image)
        index = label_footage(data / "run", frames, out, SelectorSettings(selector="all"))
        folder = labelled_folder(out)
        assert len(folder) == 6
        assert folder.space == SPACE
        image, label = folder.read(0)
        assert image.shape[:2] == label.shape == (60, 100)
        assert label.max() < IGNORE
        record = json.loads(index.read_text())
        assert record["labelled_share"] == 1
        assert all(sum(frame["pixels"]) == 64 * 128 for frame in record["frames"])
        assert len(record["model_sha256"]) == 64

    def test_a_video_is_labelled_too(self, data, tmp_path, monkeypatch):
        monkeypatch.setenv("EDGEUDA_CACHE", str(tmp_path / "cache"))
        video = tmp_path / "drive.avi"
        writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
        for path in sorted((data / "target/images").iterdir())[:3]:
            writer.write(cv2.resize(cv2.imread(str(path)), (64, 48)))
        writer.release()
        label_footage(data / "run", video, tmp_path / "out", SelectorSettings(selector="all"))
        folder = labelled_folder(tmp_path / "out")
        assert len(folder) == 3
        image, label = folder.read(2)
        assert image.shape[:2] == label.shape == (48, 64)

    @pytest.mark.parametrize("selector", ["instance-adaptive", "class-balanced", "constant"])
    def test_index_and_files_agree(self, selector, data, tmp_path):
        settings = SelectorSettings(selector=selector, keep=0.3, initial=0.4)
        label_footage(data / "run", data / "target", tmp_path / "out", settings)
        record = json.loads((tmp_path / "out" / INDEX_FILE).read_text())
        for frame in record["frames"]:
            label = read_label(tmp_path / "out" / frame["label"])
            assert np.bincount(label.ravel(), minlength=256)[:11].tolist() == frame["pixels"]
        assert 0 < record["labelled_share"] < 1
        for pixels, mean in zip(
            np.sum([f["pixels"] for f in record["frames"]], 0), record["mean_confidence"],
            strict=True,
        ):  # fmt: skip
            assert (mean > 0) == (pixels > 0)

    def test_an_interrupted_pass_goes_on(self, data, tmp_path, monkeypatch):
        settings = SelectorSettings(initial=0.4)
        label_footage(data / "run", data / "target", tmp_path / "whole", settings)

        class KilledError(Exception):
            pass

        real, calls = Teacher.probabilities, []

        def killed(*arguments):
            calls.append(1)
            if len(calls) == 3:
                raise KilledError
            return real(*arguments)

        monkeypatch.setattr(Teacher, "probabilities", killed)
        with pytest.raises(KilledError):
            label_footage(data / "run", data / "target", tmp_path / "cut", settings)
        with pytest.raises(OutputExistsError):
            label_footage(data / "run", data / "target", tmp_path / "cut", settings)
        other = SelectorSettings(initial=0.5)
        with pytest.raises(OutputExistsError, match="another network, other frames or settings"):
            label_footage(data / "run", data / "target", tmp_path / "cut", other, resume=True)
        log = tmp_path / "cut" / PROGRESS_FILE
        log.write_text(log.read_text() + '{"frames": [0')  # a line cut short
        calls.clear()
        monkeypatch.setattr(Teacher, "probabilities", real)
        label_footage(data / "run", data / "target", tmp_path / "cut", settings, resume=True)
        assert not log.exists()
        for name in ("whole", "cut"):
            assert (tmp_path / name / INDEX_FILE).exists()
        assert (tmp_path / "cut" / INDEX_FILE).read_text() == (
            tmp_path / "whole" / INDEX_FILE
        ).read_text()
        for path in (tmp_path / "whole" / "labels").iterdir():
            assert path.read_bytes() == (tmp_path / "cut" / "labels" / path.name).read_bytes()

    def test_frames_that_share_a_label_name_are_refused(self, data, tmp_path):
        image = np.zeros((8, 8, 3), np.uint8)
        write_image(tmp_path / "frames" / "a.png", image)
        cv2.imwrite(str(tmp_path / "frames" / "a.jpg"), image)
        with pytest.raises(DataError, match="two frames would both have"):
            label_footage(data / "run", tmp_path / "frames", tmp_path / "out", SelectorSettings())

    def test_batch_of_one_is_the_published_definition(self, data, tmp_path):
        """Thresholds follow each frame; those of pooled pairs differ."""
        model, spec = load_model(data / "run")
        frames = Images(sorted((data / "target/images").iterdir()), (64, 128))
        found = [
            generate(
                Teacher(model), spec, frames, SelectorSettings(initial=0.4, batch=batch),
                tmp_path / str(batch), model_sha256="", seed=0, device=torch.device("cpu"),
            )
            for batch in (1, 2)
        ]  # fmt: skip
        assert not np.array_equal(found[0].pixels, found[1].pixels)
        assert pseudo_labels.PseudoLabels.read(tmp_path / "1").mean_confidence == (
            found[0].mean_confidence
        )


NETWORKS = ["deeplabv2-r101", "deeplabv2-r101-single", "deeplabv2-r101-multi", "fcn8s-vgg16"]


@pytest.mark.parametrize("name", quick_first(NETWORKS, ["fcn8s-vgg16"]))
def test_the_other_networks_train_adapt_and_export(name, data, tmp_path):
    settings = (
        f"model.architecture={name}", "stage1.steps=2", "stage1.batch=2",
        "monitor.on_collapse=continue",  # two steps from random weights do collapse
    )  # fmt: skip
    train_source(recipe(*settings), data / "source", None, RunOptions(tmp_path / "run"))
    stages = 'stages=["adversarial", "stage1", "hiast"]'
    folders = tmp_path / "run", data / "source", data / "target"
    adapt(recipe(*settings, stages, "hiast.steps=1"), *folders, RunOptions(tmp_path / "out"))
    states = [load_file(tmp_path / folder / MODEL_FILE) for folder in ("run", "out")]
    assert all(value.isfinite().all() for value in states[1].values())
    assert not same(*states)
    model, spec = load_model(tmp_path / "out")
    frames = [read_image(path) for path in sorted((data / "target/images").iterdir())]
    found = export_onnx(model, spec, tmp_path / "model.onnx", frames=frames)  # parity is checked
    assert found.pixels_equal > 0.999
