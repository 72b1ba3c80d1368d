"""The check of data: what it finds, and that it finds nothing in what is right."""

import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from edgeuda.data.curation import thumbnail
from edgeuda.data.folders import labelled_folder
from edgeuda.data.images import list_images, read_image, write_image, write_label
from edgeuda.data_check import (
    Looking,
    View,
    check,
    colour_statistics,
    difference_hash,
    frechet,
    packed,
    scale,
    unpacked,
)
from edgeuda.errors import ConfigError
from edgeuda.files import write_npz
from edgeuda.labels import SPACES
from edgeuda.records.data_check import DomainGap
from engines.report.data import build_data_report

SPACE = SPACES["carla-3"]


def picture(seed, height=48, width=96, offset=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(30, 200, (6, 12, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    return np.clip(image + offset, 0, 255).astype(np.uint8)


def dataset(root, seeds, *, offset=0, labels=True):
    for seed in seeds:
        write_image(root / f"images/{seed:05d}.png", picture(seed, offset=offset))
        if labels:
            label = np.zeros((48, 96), np.uint8)
            label[:, 20:60], label[:, 60:] = 1, 2
            write_label(root / f"labels/{seed:05d}.png", label)
    return root


def run(tmp_path, **limits):
    roles = {
        name: labelled_folder(tmp_path / name, SPACE, every=False)
        for name in ("source", "test")
        if (tmp_path / name).exists()
    }
    target = tmp_path / "target"
    frames = {"target": (target, list_images(target))} if target.exists() else {}
    return check(roles, frames, **limits)


def said(result, severity=None):
    return [f.what for f in result.findings if severity is None or f.severity == severity]


@pytest.fixture
def sound(tmp_path):
    """Three data sets with nothing wrong."""
    dataset(tmp_path / "source", range(8))
    dataset(tmp_path / "target", range(100, 108), offset=-2, labels=False)
    dataset(tmp_path / "test", range(200, 204))
    return tmp_path


def test_nothing_is_found_in_what_is_right(sound):
    result = run(sound)
    assert result.findings == []
    record = result.record().to_record()
    assert record["roles"]["source"]["classes"]["road"]["share"] == pytest.approx(20 / 96)
    assert record["roles"]["source"]["classes"]["sidewalk"]["images"] == 8
    assert record["roles"]["target"]["sizes"] == [{"height": 48, "width": 96, "images": 8}]
    assert record["roles"]["source"]["ignored_share"] == 0
    json.dumps(record, allow_nan=False)


def test_defects(sound):
    (sound / "source/images/00001.png").write_bytes(b"")
    (sound / "source/labels/00003.png").unlink()
    write_label(sound / "source/labels/00004.png", np.full((48, 96), 7, np.uint8))
    write_label(sound / "source/labels/00005.png", np.zeros((40, 96), np.uint8))
    write_label(sound / "source/labels/00006.png", np.full((48, 96), 255, np.uint8))
    result = run(sound)
    errors = {f.what: f for f in result.findings if f.severity == "error"}
    assert set(errors) == {
        "1 of 7 images cannot be read", "1 images have no label", "3 of 7 labels cannot be used",
    }  # fmt: skip
    files = " ".join(errors["3 of 7 labels cannot be used"].files)
    assert re.search(r"found \[7\].*found 96x40.*all of them ignored", files)
    assert "00001.png" in errors["1 of 7 images cannot be read"].files[0]


def test_a_few_damaged_frames_are_a_warning(sound):
    dataset(sound / "target", range(100, 140), offset=-2, labels=False)
    (sound / "target/images/00101.png").write_bytes(b"x")
    assert said(run(sound), "warning") == ["1 of 40 images cannot be read"]


def test_leakage(sound):
    first = (sound / "source/images/00000.png").read_bytes()
    (sound / "test/images/00200.png").write_bytes(first)
    again = picture(1)
    cv2.imwrite(
        str(sound / "test/images/00201.png"), again[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9]
    )
    write_image(sound / "target/images/00107.jpg", picture(202))
    result = run(sound)
    leaks = {f.role: f for f in result.findings}
    assert set(leaks) == {"source, test", "test, target"} or set(leaks) == {
        "source, test", "target, test",
    }  # fmt: skip
    assert leaks["source, test"].severity == "error"
    assert "2 images of source are also in test, 1 of them byte by byte" in said(result, "error")
    other = next(f for role, f in leaks.items() if "target" in role)
    assert other.severity == "warning"
    assert other.count == 1
    assert "unlabelled" in other.advice


def test_copies_and_still_footage(sound):
    for number in range(120, 125):
        write_image(sound / f"target/images/{number:05d}.png", picture(119, offset=number - 120))
    write_image(sound / "target/images/00300.png", picture(100, offset=-2))
    found = said(run(sound))
    assert "1 images are copies of others" in found
    assert "4 of 14 images hardly differ from the one before" in found


def test_sizes_and_classes(sound):
    write_image(sound / "target/images/00109.png", picture(109, 96, 96))
    for path in (sound / "source/labels").iterdir():
        label = np.full((48, 96), 2, np.uint8)
        label[0, 0] = 1
        write_label(path, label)
    result = run(sound)
    found = said(result)
    assert any("2 sizes and 2 aspects" in text for text in found)
    assert "no pixel of road" in found
    assert any(text.startswith("rare: sidewalk (0.0217%, 8 images)") for text in found)
    assert "road are scored but have no source label" in said(result, "error")


def test_label_spaces_that_do_not_meet(sound):
    roles = {
        "source": labelled_folder(sound / "source", SPACES["camvid-11"]),
        "test": labelled_folder(sound / "test", SPACE),
    }
    found = [f for f in check(roles, {}).findings if f.role == "source, test"]
    assert [f.severity for f in found] == ["error"]
    assert "other of label space 'carla-3' have no counterpart" in found[0].what
    roles["source"], roles["test"] = (
        labelled_folder(sound / "source", SPACE),
        labelled_folder(sound / "test", SPACES["camvid-11"]),
    )
    found = [f for f in check(roles, {}).findings if f.role == "source, test"]
    assert [f.severity for f in found] == ["note"]
    assert "building -> other" in found[0].what


def test_limits_are_kept(sound):
    result = run(sound, limit=3)
    assert [len(role.looks) for role in result.roles.values()] == [3, 3, 3]
    assert result.roles["source"].total == 8


def test_the_gap_grows_with_the_difference(tmp_path):
    distances = []
    for offset in (0, -20, -60):
        root = tmp_path / str(offset)
        dataset(root / "source", range(12))
        dataset(root / "target", range(100, 112), offset=offset, labels=False)
        gap = run(root).gap
        distances.append(gap.frechet)
        if offset:
            assert gap.standardised["mean of lightness"] < -0.5
    assert distances[0] < distances[1] < distances[2]


def test_frechet_of_known_gaussians():
    """Of commuting covariances it is the distance of means and of deviations."""
    means = np.array([1.0, 2.0]), np.array([4.0, 6.0])
    covariances = np.diag([4.0, 9.0]), np.diag([1.0, 25.0])
    assert frechet(means, covariances) == pytest.approx(np.sqrt(25 + 1 + 4))
    assert frechet((means[0], means[0]), (covariances[0],) * 2) == pytest.approx(0, abs=1e-6)


def test_statistics_of_flat_images():
    grey = np.full((20, 30, 3), 119, np.uint8)
    assert colour_statistics(grey) == pytest.approx([50.0, 0, 0, 0, 0, 0], abs=0.3)
    assert difference_hash(thumbnail(grey)) == 0
    assert difference_hash(thumbnail(picture(1))) != difference_hash(thumbnail(picture(2)))


def test_the_page_shows_findings_pictures_and_data(sound, monkeypatch):
    (sound / "source/images/00001.png").write_bytes(b"")
    paths = build_data_report(run(sound), sound / "check.html")
    page = paths[0].read_text()
    assert "source: 1 of 8 images cannot be read" in page
    assert page.count("data:image/jpeg") == 6 + 6 + 4
    assert "<fieldset>" not in page
    assert "Fréchet distance" in page
    assert json.loads(paths[1].read_text())["schema"] == "edgeuda.data-check/1"
    assert "Target less source" in paths[2].read_text()
    with pytest.raises(ConfigError, match=r"ends in \.html"):
        build_data_report(run(sound), sound / "check.pdf")
    given = ["data", "check", "--source", sound / "source", "--out", sound / "check.pdf"]
    monkeypatch.setattr("edgeuda.data_check.check", None)  # nothing is read before
    refused = CliRunner().invoke(app, [str(one) for one in given])
    assert isinstance(refused.exception, ConfigError)


def test_a_gap_in_colour_says_what_it_means_and_what_answers_it(tmp_path):
    dataset(tmp_path / "source", range(12))
    dataset(tmp_path / "target", range(100, 112), offset=-60, labels=False)
    result = run(tmp_path)
    found = next(f for f in result.findings if f.role == "source, target")
    assert found.severity == "warning"
    assert "images of target are darker by " in found.what
    assert "; 100 % of them are darker than the source's mean." in found.what
    assert re.search(r"is \d+\.\d, \d+\.\d times as much as two halves of one data set", found.what)
    assert "AdaBN" in found.advice
    assert "source.augment" in found.advice
    assert result.gap.beyond["mean of lightness"] == 1.0
    page, _, markdown = build_data_report(result, tmp_path / "check.html")
    for text in (page.read_text(), markdown.read_text()):
        assert "AdaBN" in text
        assert "need attention" not in text
        assert "times as much as two halves of one data set" in text


def test_a_colour_cast_is_answered_by_style(tmp_path):
    dataset(tmp_path / "source", range(12))
    dataset(tmp_path / "target", range(100, 112), labels=False)
    for path in (tmp_path / "target/images").iterdir():
        image = read_image(path)
        write_image(path, np.clip(image * [1.0, 1.0, 0.5], 0, 255).astype(np.uint8))
    (found,) = [f for f in run(tmp_path).findings if f.role == "source, target"]
    assert "yellower" in found.what
    assert "stage1.style=colour" in found.advice


def test_domains_that_are_alike_have_no_gap_to_mend(sound):
    page, *_ = build_data_report(run(sound), sound / "check.html")
    assert "alike in brightness and colour" in page.read_text()
    for path in (sound / "target/images").iterdir():
        path.unlink()
    (sound / "target/images").rmdir()
    (sound / "target").rmdir()
    build_data_report(run(sound), sound / "alone.html")
    assert "was not measured" in (sound / "alone.html").read_text()


def test_the_distance_has_a_scale(sound):
    within = run(sound).gap.within
    assert set(within) == {"source", "target"}
    assert all(value > 0 for value in within.values())

    def of(frechet, source, target):
        return scale(DomainGap(frechet, {"source": source, "target": target}, {}, {}))

    assert of(9.0, 2.0, 3.0).startswith("3.0 times")
    assert "as far apart" in of(2.0, 2.5, None)
    assert "too few" in of(2.0, None, None)


def test_what_workers_saw_is_what_was_seen(sound, monkeypatch):
    """Damage, labels of another size, and names as they were given, from arrays of a file."""
    monkeypatch.chdir(sound)
    (sound / "target/images/00101.png").write_bytes(b"no image")
    write_label(sound / "source/labels/00003.png", np.zeros((8, 8), np.uint8))
    write_label(sound / "source/labels/00005.png", np.full((48, 96), 255, np.uint8))
    folder = labelled_folder(Path("source"), SPACE)
    looking = Looking({"source": replace(folder, pairs=())})
    views = [View(pair.image, pair.label, "source") for pair in folder.pairs]
    views += [View(path) for path in list_images(Path("target"))]
    whole = [
        replace(view, image=view.image.absolute(), label=view.label and view.label.absolute())
        for view in views
    ]
    write_npz(sound / "shard.npz", packed([looking.look(view) for view in whole]))
    with np.load(sound / "shard.npz") as shard:
        found = list(unpacked(shard, iter(views)))
    for one, other in zip(found, map(looking.look, views), strict=True):
        mine, theirs = vars(one), vars(other)
        for name in ("small", "colour", "counts"):
            assert np.array_equal(mine.pop(name), theirs.pop(name)), name
        assert mine == theirs
    assert found[3].label_defect.startswith("source/labels/00003.png: ")
    assert found[9].defect.startswith("target/images/00101.png: ")
