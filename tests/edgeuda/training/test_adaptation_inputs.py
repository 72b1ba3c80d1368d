"""Awkward data and the options of a stage: each ends in a sane result or a useful message."""

import functools
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgeuda.data.images import read_image, read_label, write_image, write_label
from edgeuda.errors import ConfigError, DataError, OutputExistsError
from edgeuda.files import write_json
from edgeuda.labels import SPACES
from edgeuda.methods.selection import SelectorSettings
from edgeuda.models.checkpoint import load_model
from edgeuda.records.identity import MODEL_FILE
from edgeuda.records.labelling import PseudoLabelsRecord
from edgeuda.street import write_dataset
from edgeuda.training.pipeline import RunOptions, adapt, train_source
from edgeuda.training.pseudo_labels import label_footage
from edgeuda.training.recipe import load_recipe
from edgeuda.training.trainer import read_log
from edgeuda.training.watch import Watch

TINY = (
    "model.width=0.125", "model.input=[64, 128]", "geometry.crop=[64, 128]", "precision=32-true",
    "source.steps=6", "source.batch=4", "adabn.batches=2", "adabn.batch=4", "monitor.frames=4",
    "stage1.steps=3", "stage1.batch=2", "stage1.log_every=1", "stage1.lr=1e-3",
    "stage2.steps=3", "stage2.batch=2", "stage2.log_every=1", "stage2.lr=1e-3",
)  # fmt: skip


def recipe(*overrides):
    return load_recipe("small", (*TINY, *overrides))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for role, domain, seed in (("source", "simulator", 0), ("target", "camera", 1000)):
        write_dataset(root / role, domain, 8, seed, 64, 128, SPACES["camvid-11"])
    train_source(recipe(), root / "source", None, RunOptions(root / "run"))
    return root


def run(data, out, *overrides, target=None, source=None, init=None):
    adapt(
        recipe(*overrides), init or data / "run", source or data / "source",
        target or data / "target", RunOptions(out),
    )  # fmt: skip
    state = load_file(out / MODEL_FILE)
    assert all(value.isfinite().all() for value in state.values())
    return state


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


def test_no_confident_pixel_leaves_the_supervised_term(data, tmp_path):
    run(data, tmp_path / "out", 'stages=["stage1"]', "stage1.threshold.initial=1.0",
        "stage1.update=never")  # fmt: skip
    for line in read_log(tmp_path / "out" / "stage1"):
        assert (line["keep"], line["target"]) == (0, 0)
        assert line["supervised"] > 0


def test_a_class_without_source_labels_is_named(data, tmp_path, caplog):
    source = tmp_path / "source"
    for path in sorted((data / "source" / "images").iterdir()):
        label = read_label(data / "source" / "labels" / path.name)
        write_image(source / "images" / path.name, read_image(path))
        write_label(source / "labels" / path.name, np.where(label == 0, 255, label).astype("uint8"))
    space = SPACES["camvid-11"].to_record()
    write_json(source / "dataset.json", {"schema": "edgeuda.dataset/1", "label_space": space})
    with caplog.at_level(logging.WARNING):
        run(data, tmp_path / "out", "stage2.rare_temperature=0.1", "stage2.mix.long_tail=1.0",
            source=source)  # fmt: skip
    assert "no pixel of sky; what has no source label cannot be learned" in caplog.text


def test_labels_that_are_all_ignored_teach_nothing_and_say_so(data, tmp_path):
    source = tmp_path / "source"
    for index in range(2):
        write_image(source / f"images/{index}.png", np.full((64, 128, 3), 90, np.uint8))
        write_label(source / f"labels/{index}.png", np.full((64, 128), 255, np.uint8))
    record = {"schema": "edgeuda.dataset/1", "label_space": "camvid-11"}
    write_json(source / "dataset.json", record)
    with pytest.raises(DataError, match=r"all pixels of all 2 label maps are ignored"):
        train_source(recipe(), source, None, RunOptions(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("count", [1, 8])
def test_one_frame_or_many_of_the_same_keep_the_network_sane(data, tmp_path, caplog, count):
    frame = read_image(next((data / "target" / "images").iterdir()))
    for number in range(count):
        write_image(tmp_path / "target" / f"{number}.png", frame)
    with caplog.at_level(logging.WARNING):
        run(data, tmp_path / "out", target=tmp_path / "target")
    assert "as if they were all alike; its source statistics were kept" in caplog.text
    before, after = load_model(data / "run")[0], load_model(tmp_path / "out" / "adabn")[0]
    pooled = "context.arm32.gate.1.running_var"  # sees one value per image
    assert torch.equal(before.state_dict()[pooled], after.state_dict()[pooled])
    usual = "spatial.0.1.running_mean"
    assert not torch.equal(before.state_dict()[usual], after.state_dict()[usual])


def test_re_coloured_source_training_needs_target_frames(data, tmp_path):
    settings = recipe("source.style=colour")
    with pytest.raises(ConfigError, match=r"needs target frames.*`target`"):
        train_source(settings, data / "source", None, RunOptions(tmp_path / "no"))
    assert not (tmp_path / "no").exists()
    train_source(
        settings, data / "source", None, RunOptions(tmp_path / "a"), target=data / "target"
    )
    plain = load_file(data / "run" / MODEL_FILE)
    assert not same(load_file(tmp_path / "a" / MODEL_FILE), plain)


def test_class_weights_must_be_one_for_each_class(data, tmp_path):
    with pytest.raises(ConfigError, match="one class weight for each of the 11 classes"):
        run(data, tmp_path / "out", 'stages=["stage1"]', "class_weights=[1.0, 2.0]")
    ones = ", ".join(["1.0"] * 11)
    listed = run(data, tmp_path / "a", 'stages=["stage1"]', f"class_weights=[{ones}]")
    named = run(data, tmp_path / "b", 'stages=["stage1"]', "class_weights=none")
    assert same(listed, named)


STAGE2 = 'stages=["adabn", "stage2"]'


def test_offline_pseudo_labels_are_those_of_the_frozen_teacher(data, tmp_path):
    """Without geometric views they are what the teacher says online, up to 8 bits."""
    still = ("geometry.scales=[1.0]", "geometry.flip=0.0", STAGE2)
    online = run(data, tmp_path / "online", *still)
    offline = run(data, tmp_path / "offline", *still, "stage2.teacher.offline=true")
    assert len(list((tmp_path / "offline/stage2/pseudo/labels").iterdir())) == 8
    logs = [read_log(tmp_path / name / "stage2") for name in ("online", "offline")]
    for a, b in zip(*logs, strict=True):
        assert b["mix"] == pytest.approx(a["mix"], rel=0.02)
    for key, value in online.items():
        assert torch.allclose(value.float(), offline[key].float(), atol=1e-3), key


def test_offline_pseudo_labels_follow_the_views(data, tmp_path):
    run(data, tmp_path / "out", STAGE2, "stage2.teacher.offline=true", "geometry.scales=[1.5]")


@pytest.mark.parametrize("mode", ["joint", "domain"])
def test_batch_norm_modes_move_statistics_towards_target(data, tmp_path, mode):
    frozen = run(data, tmp_path / "frozen", STAGE2)
    moving = run(data, tmp_path / mode, STAGE2, f"stage2.batch_norm={mode}")
    start = load_file(tmp_path / mode / "adabn" / MODEL_FILE)
    key = "spatial.0.1.running_mean"
    assert torch.equal(frozen[key], start[key])
    assert not torch.equal(moving[key], start[key])


def test_a_moving_teacher_survives_an_interruption(data, tmp_path, monkeypatch):
    settings = (STAGE2, "stage2.teacher.decay=0.5", "stage2.teacher.flip=true",
                "stage2.teacher.scales=[0.5, 1.0]", "stage2.checkpoint_every=1")  # fmt: skip
    whole = run(data, tmp_path / "whole", *settings)
    out = tmp_path / "cut"

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Watch, "choose", killed)  # after the last step, before the result
    with pytest.raises(KeyboardInterrupt):
        run(data, out, *settings, "monitor.keep_all=true")
    monkeypatch.undo()
    resumed = RunOptions(out, resume=True)
    settings = recipe(*settings, "monitor.keep_all=true")
    adapt(settings, data / "run", data / "source", data / "target", resumed)
    assert same(load_file(out / MODEL_FILE), whole)
    state = torch.load(out / "stage2" / "checkpoint.pt", weights_only=True)
    assert any(key.startswith("teacher.") for key in state["method"])


def test_two_small_batches_accumulate_to_one_large_step(data, tmp_path):
    alone = ('stages=["stage1"]', "stage1.target_weight=0.0", "stage1.momentum=0.0")
    one = run(data, tmp_path / "one", *alone, "stage1.batch=4")
    two = run(data, tmp_path / "two", *alone, "stage1.batch=2", "stage1.accumulate=2")
    other = run(data, tmp_path / "other", *alone, "stage1.batch=2")
    for key, value in one.items():
        assert torch.allclose(value.float(), two[key].float(), atol=1e-5), key
    assert not same(two, other)


def test_compiled_networks_train_to_the_same_weights(data, tmp_path, monkeypatch):
    eager = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr("edgeuda.training.trainer.torch.compile", eager)
    one = run(data, tmp_path / "one", 'stages=["stage1"]')
    two = run(data, tmp_path / "two", 'stages=["stage1"]', "compile=true")
    for key, value in one.items():
        assert torch.allclose(value.float(), two[key].float(), atol=1e-5), key


DISTIL = ('stages=["adabn", "distil"]', "distil.teacher=self", "distil.labels.decay=1.0",
          "distil.source_weight=0.0", "distil.mix=0.0", "distil.batch_norm=frozen",
          "distil.steps=3", "distil.batch=2", "distil.log_every=1", "distil.lr=1e-3")  # fmt: skip


def test_soft_labels_made_ahead_are_those_of_the_frozen_teacher(data, tmp_path):
    """Without geometric views they are what the teacher says online, up to size and 8 bits."""
    still = ("geometry.scales=[1.0]", "geometry.flip=0.0", "monitor.frames=0", *DISTIL)
    online = run(data, tmp_path / "online", *still)
    offline = run(data, tmp_path / "offline", *still, "distil.labels.offline=true")
    assert len(list((tmp_path / "offline/distil/soft").iterdir())) == 8
    logs = [read_log(tmp_path / name / "distil") for name in ("online", "offline")]
    for a, b in zip(*logs, strict=True):
        assert b["distil"] == pytest.approx(a["distil"], rel=0.02)
    start = load_file(tmp_path / "offline/adabn" / MODEL_FILE)
    way, apart = (
        sum((online[key] - other[key]).float().square().sum() for key in online).sqrt()
        for other in (start, offline)
    )
    assert apart < 0.1 * way


def test_a_folder_of_soft_labels_teaches_as_the_network_that_made_it(data, tmp_path):
    """To the byte; and neither another label of a frame nor one that lacks goes unnoticed."""
    labels = tmp_path / "labels"
    settings = SelectorSettings(selector="all", batch=1)
    label_footage(data / "run", data / "target", labels, settings, soft=True)
    ahead = (*DISTIL, "distil.labels.offline=true")
    network = run(data, tmp_path / "a", *ahead, f"distil.teacher={data / 'run'}")
    folder = run(data, tmp_path / "b", *ahead, f"distil.teacher={labels}")
    assert same(network, folder)
    made = sorted((tmp_path / "a/distil/soft").iterdir())
    kept = sorted((labels / "soft").iterdir())
    assert [one.read_bytes() for one in made] == [one.read_bytes() for one in kept]
    assert not (tmp_path / "b/distil/soft").exists()

    kept[0].write_bytes(kept[1].read_bytes())
    settings, options = (
        recipe(*ahead, f"distil.teacher={labels}"), RunOptions(tmp_path / "b", resume=True),
    )  # fmt: skip
    with pytest.raises(OutputExistsError, match="expected the run that these settings started"):
        adapt(settings, data / "run", data / "source", data / "target", options)
    record = PseudoLabelsRecord.read(labels / PseudoLabelsRecord.FILE)
    fewer = replace(record, frames=record.frames[1:])
    fewer.write(labels / PseudoLabelsRecord.FILE)
    with pytest.raises(DataError, match=r"has no soft label of .*: edgeuda pseudo-label --soft"):
        run(data, tmp_path / "c", *ahead, f"distil.teacher={labels}")
    replace(record, label_space=SPACES["cityscapes-19"]).write(labels / PseudoLabelsRecord.FILE)
    with pytest.raises(DataError, match=r"for the classes of 'camvid-11', found .*cityscapes-19"):
        run(data, tmp_path / "d", *ahead, f"distil.teacher={labels}")


def test_a_large_network_labels_whole_frames_at_its_own_size(data, tmp_path):
    small = run(data, tmp_path / "a", *DISTIL, "distil.labels.offline=true")
    run(data, tmp_path / "b", *DISTIL, "distil.labels.offline=true", "distil.teacher=large",
        "distil.large.width=0.25", "distil.large.pretrained=none",
        "distil.large.input=[128, 256]")  # fmt: skip
    (large,) = (tmp_path / "b").glob("large-*")
    sizes = [load_model(folder)[1].preprocessing for folder in (large / "adabn", tmp_path / "b")]
    assert [(pre.height, pre.width) for pre in sizes] == [(128, 256), (64, 128)]
    soft = read_label(tmp_path / "b/distil/soft/000000.png")
    assert soft.shape == (11 * 32, 64)
    assert (soft.reshape(11, 32, 64).astype(int).sum(0) - 255 <= 6).all()
    assert not same(small, load_file(tmp_path / "b" / MODEL_FILE))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("distil.labels.offline=true", "distil.labels.decay=0.9"), "set distil.labels.decay = 1"),
        (("distil.large.input=[128, 192]",), "set distil.labels.offline = true"),
    ],
)
def test_labels_made_ahead_need_a_teacher_that_stays(data, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        run(data, tmp_path / "out", *DISTIL, *settings)
