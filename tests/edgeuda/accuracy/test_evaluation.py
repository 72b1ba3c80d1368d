"""Evaluation against a pixel-by-pixel reference, and its record."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from edgeuda.accuracy import evaluation as evaluation_module
from edgeuda.accuracy.boundary import BoundaryCounts, boundary
from edgeuda.accuracy.evaluation import (
    Evaluation,
    agreement,
    class_rows,
    confusion,
    evaluate,
    image_row,
    table,
)
from edgeuda.data.images import LabelMap, write_label
from edgeuda.data.layouts import CITYSCAPES_IDS
from edgeuda.errors import ConfigError, DataError
from edgeuda.files import read_json, write_json
from edgeuda.labels import IGNORE, SPACES, LabelSpace, subsets_of

THREE = SPACES["carla-3"]
TWO = LabelSpace("two", ("ground", "box"), ((0, 0, 0), (1, 1, 1)))


def make(matrix: list[list[int]], name: str = "model", space: LabelSpace = THREE) -> Evaluation:
    return Evaluation(
        name, "model.onnx", "ab" * 32, "onnx", "fp32", "city/val", 7, "cd" * 32, space,
        np.array(matrix, np.int64),
    )  # fmt: skip


def maps(seed: int, classes: int, shape: tuple[int, int] = (9, 13)) -> tuple[LabelMap, LabelMap]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, shape, dtype=np.uint8)
    truth[rng.random(shape) < 0.2] = IGNORE
    return truth, rng.integers(0, classes, shape, dtype=np.uint8)


@pytest.mark.parametrize("classes", [1, 3, 19])
def test_confusion_equals_a_pixel_loop(classes: int) -> None:
    truth, prediction = maps(1, classes)
    expected = [[0] * classes for _ in range(classes)]
    for true, predicted in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if true != IGNORE:
            expected[true][predicted] += 1
    found = confusion(truth, prediction, classes)
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_confusion_with_254_classes_does_not_wrap_around_in_uint8() -> None:
    truth = np.array([[253, IGNORE]], np.uint8)
    found = confusion(truth, np.array([[252, 0]], np.uint8), 254)
    assert found[253, 252] == 1
    assert found.sum() == 1


def test_many_pixels_are_counted_without_loss(monkeypatch) -> None:
    truth, prediction = maps(2, 5, (40, 50))
    whole = confusion(truth, prediction, 5)
    monkeypatch.setattr(evaluation_module, "EXACT", 300)
    assert np.array_equal(confusion(truth, prediction, 5), whole)
    assert truth.size > evaluation_module.EXACT


def test_views_into_larger_arrays_are_counted() -> None:
    truth, prediction = maps(3, 4, (12, 20))
    found = confusion(truth[::2, ::3], prediction[::2, ::3], 4)
    assert found.sum() == np.count_nonzero(truth[::2, ::3] != IGNORE)


def test_a_fully_ignored_label_counts_nothing() -> None:
    empty = np.full((2, 2), IGNORE, np.uint8)
    assert confusion(empty, np.zeros((2, 2), np.uint8), 2).sum() == 0


@pytest.mark.parametrize(
    ("truth", "prediction", "words"),
    [
        ([[0, 1]], [[0, 2]], "prediction ids 0 to 1, found 2"),
        ([[0, IGNORE]], [[0, IGNORE]], "prediction ids 0 to 1, found 255"),
        ([[0, 2]], [[0, 1]], "label ids 0 to 1, found 2"),
        ([[0, 1]], [[0], [1]], "size"),
    ],
)
def test_confusion_refuses(truth: list[int], prediction: list[int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        confusion(np.array(truth, np.uint8), np.array(prediction, np.uint8), 2)


def test_iou_by_hand() -> None:
    # road: 6 hits, 2 missed, 0 false; sidewalk: 1 hit, 1 missed, 2 false; other: predicted never.
    evaluation = make([[6, 2, 0], [0, 1, 1], [0, 0, 0]])
    assert evaluation.iou.tolist() == pytest.approx([6 / 8, 1 / 4, 0.0])
    assert evaluation.miou == pytest.approx((6 / 8 + 1 / 4) / 2)  # 'other' has no true pixel
    assert evaluation.pixel_accuracy == pytest.approx(7 / 10)


def test_a_class_in_neither_is_nan_and_null() -> None:
    evaluation = make([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    assert math.isnan(evaluation.iou[2])
    assert evaluation.to_record()["iou"]["other"] is None
    assert evaluation.miou == pytest.approx((3 / 4 + 4 / 5) / 2)


def test_nothing_counted_has_no_score() -> None:
    record = make([[0] * 3] * 3).to_record()
    assert record["miou"] is None
    assert record["pixel_accuracy"] is None


def test_evaluate_is_global_over_images_of_different_sizes() -> None:
    pairs = [maps(seed, 3, shape) for seed, shape in enumerate([(4, 5), (8, 3), (1, 1)])]
    queue = iter([prediction for _, prediction in pairs])
    images = [(np.zeros((*truth.shape, 3), np.uint8), truth) for truth, _ in pairs]
    found = evaluate(lambda image: next(queue), iter(images), 3)
    flat = [np.concatenate([pair[k].ravel() for pair in pairs])[None] for k in (0, 1)]
    assert found.tolist() == confusion(flat[0], flat[1], 3).tolist()


def test_evaluate_refuses_another_size_and_no_image() -> None:
    image, truth = np.zeros((2, 4, 3), np.uint8), np.zeros((2, 4), np.uint8)
    with pytest.raises(DataError, match=r"Image 1 .* size"):
        evaluate(lambda image: truth[:, :2], [(image, truth)], 3)
    with pytest.raises(DataError, match="at least one"):
        evaluate(lambda image: truth, [], 3)


def test_agreement() -> None:
    a = np.array([[0, 1], [2, 2]], np.uint8)
    assert agreement(a, np.array([[0, 1], [2, 0]], np.uint8)) == 0.75
    with pytest.raises(DataError, match="same size"):
        agreement(a, a[:1])


def test_record_survives_a_file(tmp_path) -> None:
    evaluation = make([[6, 2, 0], [0, 1, 1], [0, 0, 0]])
    write_json(tmp_path / "e.json", evaluation.to_record())
    record = read_json(tmp_path / "e.json", "edgeuda.evaluation/1")
    assert list(record) == [
        "schema", "name", "created", "model", "data", "label_space", "confusion", "iou", "miou",
        "pixel_accuracy", "protocol",
    ]  # fmt: skip
    again = Evaluation.from_record(record)
    assert json.dumps(again.to_record()) == json.dumps(evaluation.to_record())
    assert again.label_space == THREE


@pytest.mark.parametrize(
    "damage",
    [
        {"schema": "edgeuda.bench/2"},
        {"confusion": [[1, 2], [3, 4]]},
        {"confusion": [[-1, 0, 0], [0, 0, 0], [0, 0, 0]]},
        {"confusion": [[1, 2], [3]]},
        {"model": {"file": "m", "sha256": "", "kind": "pickle", "precision": "fp32"}},
        {"data": {}},
        {"label_space": None},
    ],
)
def test_a_damaged_record_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises(DataError):
        Evaluation.from_record({**make([[1] * 3] * 3).to_record(), **damage}, "here.json")


def text_of(*evaluations: Evaluation) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(evaluations))
    return console.export_text()


def test_table_shows_every_class_side_by_side() -> None:
    before = make([[6, 2, 0], [0, 1, 1], [0, 0, 0]], "before")
    after = make([[8, 0, 0], [0, 2, 0], [0, 0, 0]], "[red]after")
    text = text_of(before, after)
    for part in ("road", "sidewalk", "other", "before", "[red]after", "75.0", "100.0", "mIoU"):
        assert part in text
    assert "7 images of city/val" in text
    assert "Not comparable" in text_of(before, replace(after, labels_sha256="0" * 64))


def test_table_refuses_two_label_spaces() -> None:
    eleven = make(np.eye(11, dtype=int).tolist(), space=SPACES["camvid-11"])
    with pytest.raises(DataError, match="one label space"):
        table([make([[1] * 3] * 3), eleven])


def city(seed: int, absent: int = 99) -> tuple[LabelMap, LabelMap]:
    """Truth with all 19 classes and ignored pixels, and a prediction that is mostly right."""
    rng = np.random.default_rng(seed)
    blocks = np.kron(rng.permutation(20).reshape(4, 5), np.ones((16, 16))).astype(np.uint8)
    truth = np.where(blocks == 19, IGNORE, blocks).astype(np.uint8)
    truth[truth == absent] = IGNORE
    prediction = np.where(
        rng.random(truth.shape) < 0.3, rng.integers(0, 19, truth.shape), blocks % 19
    )
    return truth, prediction.astype(np.uint8)


@pytest.mark.parametrize("absent", [99, 16])
def test_cityscapes_own_scripts_agree(tmp_path, absent, capsys) -> None:
    """On the files that a submission consists of: the same IoU of each class, the same mean."""
    scripts = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    back = np.zeros(256, np.uint8)
    for number, index in enumerate(CITYSCAPES_IDS):
        if index != IGNORE:
            back[index] = number
    files: tuple[list[str], list[str]] = ([], [])
    total = np.zeros((19, 19), np.int64)
    for seed in range(3):
        truth, prediction = city(seed, absent)
        total += confusion(truth, prediction, 19)
        for paths, what, ids in zip(files, ("pred", "gt"), (prediction, truth), strict=True):
            path = tmp_path / f"{what}_{seed}_gtFine_labelIds.png"
            write_label(path, back[ids])  # 0 is "unlabeled", which is not evaluated
            paths.append(str(path))
    scripts.args.evalInstLevelScore = False
    scripts.args.JSONOutput = False
    scripts.args.quiet = True
    result = scripts.evaluateImgLists(*files, scripts.args)
    capsys.readouterr()
    found = make(total.tolist(), space=SPACES["cityscapes-19"])
    theirs = [result["classScores"][name] for name in SPACES["cityscapes-19"].classes]
    np.testing.assert_allclose(found.iou, theirs, rtol=1e-12)
    if absent == 99:
        assert found.miou == pytest.approx(result["averageScoreClasses"], rel=1e-12)
    else:
        # They count a class that is only predicted as 0; here it is left out, and said so.
        assert found.miou * 18 / 19 == pytest.approx(result["averageScoreClasses"], rel=1e-12)


def test_csv_rows() -> None:
    evaluation = make([[6, 2, 0], [0, 1, 1], [0, 0, 0]])
    rows = class_rows(evaluation)
    assert rows[0] == {"class": "road", "pixels": "8", "predicted": "6", "accuracy": "75.0",
                       "iou": "75.0"}  # fmt: skip
    assert rows[2]["accuracy"] == "-"
    row = image_row("a.png", evaluation.confusion, THREE)
    assert row == {"image": "a.png", "pixels": "10", "pixel_accuracy": "70.0", "miou": "50.0",
                   "road": "75.0", "sidewalk": "25.0", "other": "0.0"}  # fmt: skip


class TestBoundary:
    def test_a_square_in_a_large_image(self) -> None:
        mask = np.zeros((20, 20), np.uint8)
        mask[5:15, 5:15] = 1
        assert boundary(mask, 2).sum() == 100 - 36
        assert boundary(np.ones((10, 10), np.uint8), 1).sum() == 36  # the image's border counts
        assert boundary(np.zeros((4, 4), np.uint8), 1).sum() == 0

    def test_against_a_pixel_loop(self) -> None:
        truth, prediction = maps(5, 3, (14, 18))
        counts = BoundaryCounts(3, 0.06)
        counts.add(truth, prediction)
        distance = round(0.06 * math.hypot(14, 18))
        for index in range(3):
            regions = []
            for labels in (truth, prediction):
                mask = (labels == index) & (truth != IGNORE)
                region = np.zeros_like(mask)
                for y, x in np.argwhere(mask):
                    around = [
                        0 <= y + dy < 14 and 0 <= x + dx < 18 and mask[y + dy, x + dx]
                        for dy in range(-distance, distance + 1)
                        for dx in range(-distance, distance + 1)
                    ]
                    region[y, x] = not all(around)
                regions.append(region)
            expected = (regions[0] & regions[1]).sum() / (regions[0] | regions[1]).sum()
            assert counts.iou[index] == pytest.approx(expected)

    def test_a_shift_costs_outlines_more_than_areas(self) -> None:
        truth = np.zeros((64, 64), np.uint8)
        truth[16:48, 16:48] = 1
        prediction = np.roll(truth, 2, 1)
        counts = BoundaryCounts(2, 0.03)
        counts.add(truth, prediction)
        area = make(confusion(truth, prediction, 2).tolist(), space=TWO).iou[1]
        assert counts.iou[1] < area - 0.2
        counts = BoundaryCounts(2, 0.03)
        counts.add(truth, truth)
        assert counts.miou == 1

    def test_records(self) -> None:
        counts = BoundaryCounts(3)
        counts.add(np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8))
        record = counts.to_record(THREE)
        assert record == {"ratio": 0.005, "iou": {"road": 1.0, "sidewalk": None, "other": None},
                          "miou": 1.0}  # fmt: skip
        with pytest.raises(ConfigError, match="share of the diagonal"):
            BoundaryCounts(3, 3)


def sixteen() -> Evaluation:
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 50, (16, 16)) + np.diag(rng.integers(100, 900, 16))
    return make(counts.tolist(), space=SPACES["cityscapes-16"])


def test_13_classes_of_a_16_class_network() -> None:
    """As papers do: wall, fence and pole are still predicted, and only left out of the mean."""
    evaluation = sixteen()
    counts, names = evaluation.confusion, evaluation.label_space.classes
    values = []
    for index, name in enumerate(names):
        if name in ("wall", "fence", "pole"):
            continue
        hits = counts[index, index]
        values.append(hits / (counts[index].sum() + counts[:, index].sum() - hits))
    assert len(values) == 13
    record = evaluation.to_record()
    assert record["subsets"] == {
        "cityscapes-13": {
            "classes": 13,
            "without": ["wall", "fence", "pole"],
            "miou": pytest.approx(sum(values) / 13),
        }
    }
    again = Evaluation.from_record(record).to_record()
    assert again["subsets"] == record["subsets"]
    shown = table([evaluation])
    text = " ".join(str(cell) for column in shown.columns for cell in column.cells)
    assert "mIoU, 13 of 16 (without wall, fence, pole)" in text
    assert f"{100 * sum(values) / 13:.1f}" in text


def test_what_is_predicted_as_a_left_out_class_is_missed() -> None:
    evaluation = sixteen()
    counts = evaluation.confusion.copy()
    names = evaluation.label_space.classes
    road, wall = names.index("road"), names.index("wall")
    counts[road, wall] += 10_000  # the network sees walls where there is road
    worse = replace(evaluation, confusion=counts)
    thirteen = SPACES["cityscapes-13"].classes
    assert worse.miou_over(thirteen) < evaluation.miou_over(thirteen)
    assert worse.miou_over(["car"]) == evaluation.miou_over(["car"])


def test_spaces_that_are_parts_of_others() -> None:
    assert subsets_of(SPACES["cityscapes-16"]) == {"cityscapes-13": SPACES["cityscapes-13"].classes}
    assert "cityscapes-16" in subsets_of(SPACES["cityscapes-19"])
    # robotcar-9 joins rider and person: no part of the classes
    assert "robotcar-9" not in subsets_of(SPACES["cityscapes-19"])
    assert subsets_of(SPACES["carla-3"]) == {}
    assert subsets_of(SPACES["camvid-11"]) == {}
