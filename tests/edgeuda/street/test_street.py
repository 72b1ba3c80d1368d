"""The street renderer: determinism, labels, occlusion, domains, datasets on disk."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgeuda.data.folders import labelled_folder
from edgeuda.data.images import read_image, read_label
from edgeuda.data.splits import split_pairs
from edgeuda.errors import ConfigError, OutputExistsError
from edgeuda.files import read_json
from edgeuda.labels import IGNORE, SPACES, LabelSpace, mapping
from edgeuda.street import DOMAINS, Drive, StreetDomain, render, write_dataset
from edgeuda.street.domain import RANDOMISED, domain_of, randomised
from edgeuda.street.ground import draw_plan
from edgeuda.street.layout import Thing, shadows
from edgeuda.street.people import draw_person
from edgeuda.street.stage import IDS, Stage
from edgeuda.street.vehicles import draw_vehicle
from edgeuda.street.view import View, draw_view

CAMVID = SPACES["camvid-11"]
TO_CAMVID = mapping(SPACES["cityscapes-19"], CAMVID)
SIMULATOR = DOMAINS["simulator"]
CLEAN = replace(SIMULATOR, noise=(0.0, 0.0), white_balance=0.0, exposure=(1.0, 1.0))

Labels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def labels() -> dict[str, list[Labels]]:
    return {
        name: [render(domain, seed, 128, 256)[1] for seed in range(30)]
        for name, domain in DOMAINS.items()
    }


@pytest.mark.parametrize("domain", DOMAINS.values(), ids=DOMAINS)
@pytest.mark.parametrize("size", [(128, 256), (256, 512), (200, 230), (96, 64), (33, 190)])
def test_an_image_has_the_size_that_was_asked_for_and_valid_ids(
    domain: StreetDomain, size: tuple[int, int]
) -> None:
    image, label = render(domain, 4, *size)
    assert image.shape == (*size, 3)
    assert label.shape == size
    assert image.dtype == label.dtype == np.uint8
    assert image.flags["C_CONTIGUOUS"]
    assert set(np.unique(label).tolist()) <= {*range(19), IGNORE}


@pytest.mark.parametrize("name", DOMAINS)
def test_the_same_seed_gives_the_same_image_in_another_process(name: str) -> None:
    code = (
        "import hashlib; from edgeuda.street import DOMAINS, render\n"
        f"render(DOMAINS[{name!r}], 1, 64, 64)\n"  # what was rendered before must not matter
        f"a, b = render(DOMAINS[{name!r}], 9, 128, 256)\n"
        "print(hashlib.sha256(a.tobytes() + b.tobytes()).hexdigest())"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    image, label = render(DOMAINS[name], 9, 128, 256)
    assert elsewhere.stdout.strip() == sha256(image.tobytes() + label.tobytes()).hexdigest()


def test_other_seeds_and_domains_give_other_streets() -> None:
    found = {
        render(domain, seed, 64, 128)[1].tobytes() for domain in DOMAINS.values() for seed in (0, 1)
    }
    assert len(found) == 4


def test_a_seed_shows_the_same_street_at_another_size() -> None:
    small, large = render(SIMULATOR, 3, 128, 256)[1], render(SIMULATOR, 3, 256, 512)[1]
    assert (small == large[::2, ::2]).mean() > 0.95


@pytest.mark.parametrize("name", DOMAINS)
def test_all_camvid_classes_occur_and_none_rules(
    labels: dict[str, list[Labels]], name: str
) -> None:
    counts = np.bincount(TO_CAMVID[np.array(labels[name])].ravel(), minlength=256)
    share = counts / counts.sum()
    assert share[:11].min() > 0.002, dict(zip(CAMVID.classes, share[:11], strict=True))
    assert share[:11].max() < 0.45
    assert share[IGNORE] < 0.1
    for index, cls in enumerate(CAMVID.classes):
        assert np.mean([(TO_CAMVID[label] == index).any() for label in labels[name]]) > 0.5, cls


def test_the_domains_differ_in_geometry(labels: dict[str, list[Labels]]) -> None:
    def road_begins(label: Labels) -> float:
        return float(np.argmax((label == IDS["road"]).any(1)))

    def shares(name: str) -> npt.NDArray[np.float64]:
        return np.bincount(np.array(labels[name]).ravel(), minlength=19)[:19] / 128 / 256 / 30

    rows = {name: np.mean([road_begins(label) for label in labels[name]]) for name in DOMAINS}
    assert rows["simulator"] - rows["camera"] > 3
    assert np.abs(shares("simulator") - shares("camera")).sum() > 0.25


@pytest.mark.parametrize(
    ("palette", "classes"),
    [
        ("paints", ("car", "truck", "bus", "bicycle")),
        ("clothes", ("person", "rider")),
        ("foliage", ("vegetation",)),
        ("walls", ("building", "wall")),
        ("fence_color", ("fence",)),
        ("grass", ("terrain",)),
        ("asphalt", ("road",)),
    ],
)
def test_a_palette_colours_the_pixels_of_its_class_and_no_other(
    palette: str, classes: tuple[str, ...]
) -> None:
    """A pixel whose label disagreed with what was painted there would change, or stay, wrongly."""
    inverted = tuple(
        tuple(255.0 - channel for channel in color) for color in getattr(CLEAN, palette)
    )
    other = replace(CLEAN, **{palette: inverted})  # type: ignore[arg-type]
    inside = changed = 0
    for seed in range(12):
        before, label = render(CLEAN, seed, 128, 256)
        after, same = render(other, seed, 128, 256)
        assert np.array_equal(label, same)
        differs = (before != after).any(-1)
        own = np.isin(label, [IDS[name] for name in classes])
        assert not (differs & ~own).any()
        inside += int(own.sum())
        changed += int(differs.sum())
    assert changed > 0.25 * inside > 0


def stage() -> Stage:
    """An empty stage with the camera on the centre line of a straight, flat street."""
    view = View(200, 400, 300.0, 100.0, 0.0, 1.5, 0.0, 0.0, 0.0, 0.0, 100.0)
    return Stage(
        np.full((200, 400, 4), 255, np.uint8),
        view,
        CLEAN,
        CLEAN.lights[0],
        np.array([0, 1.0, 0]),
        1e6,
    )


def test_shadows_fall_away_from_the_sun_as_far_as_a_thing_is_tall() -> None:
    """With the sun at 45 degrees on the right, a shadow is as long as the thing, to the left."""
    scene = replace(stage(), to_sun=np.array([np.sqrt(0.5), np.sqrt(0.5), 0]))
    square = np.array([(2.0 + a, 0, 20.0 + b) for a in (-0.5, 0.5) for b in (-0.5, 0.5)])
    (polygon,) = shadows([Thing(20.0, lambda _: None, square, tall=3.0)], scene)
    ends = scene.view.project(np.array([(2.5 + 0.0, 0, 19.5), (1.5 - 3.0, 0, 19.5)]))
    assert polygon[:, 0].max() == pytest.approx(ends[0, 0], abs=0.5)
    assert polygon[:, 0].min() == pytest.approx(ends[1, 0], abs=0.5)
    overcast = replace(scene, light=DOMAINS["camera"].lights[1])
    (spot,) = shadows([Thing(20.0, lambda _: None, square, tall=3.0)], overcast)
    assert np.ptp(spot[:, 0]) < np.ptp(polygon[:, 0]) / 2


def test_what_is_near_hides_what_is_far() -> None:
    def paint(person: float, bus: float) -> npt.NDArray[np.uint8]:
        scene = stage()
        draws = {
            bus: lambda: draw_vehicle(scene, "bus", 0.0, bus, 0.0, (250, 0, 0)),
            person: lambda: draw_person(scene, 0.0, person, np.random.default_rng(0)),
        }
        for depth in sorted(draws, reverse=True):
            draws[depth]()
        return scene.pixels[..., 3]

    behind, before = paint(person=40, bus=20), paint(person=8, bus=20)
    assert not (behind == IDS["person"]).any()
    assert (before == IDS["person"]).any()
    assert (before == IDS["bus"]).any()


@pytest.mark.parametrize("distance", [10.0, 20.0, 40.0])
def test_a_person_stands_on_the_ground_at_the_size_of_the_distance(distance: float) -> None:
    scene = stage()
    draw_person(scene, 1.0, distance, np.random.default_rng(5))
    rows, columns = np.nonzero(scene.pixels[..., 3] == IDS["person"])
    foot = 100 + 300 * 1.5 / distance  # pinhole: horizon + focal x eye height / distance
    metre = 300 / distance
    assert abs(rows.max() + 1 - foot) < 2
    assert 1.0 * metre < rows.max() + 1 - rows.min() < 2.1 * metre + 2
    assert abs(columns.mean() - (200 + metre)) < 0.3 * metre + 1


@pytest.mark.parametrize(("seed", "height", "width"), [(-1, 64, 64), (0, 8, 64), (0, 64, 31)])
def test_bad_arguments_are_refused(seed: int, height: int, width: int) -> None:
    with pytest.raises(ConfigError, match=f"found seed {seed} and size {height}x{width}"):
        render(SIMULATOR, seed, height, width)


def write(
    out: Path, count: int = 3, seed: int = 1, space: LabelSpace = CAMVID, workers: int = 1
) -> None:
    write_dataset(out, "camera", count, seed, 48, 96, space, workers)


def contents(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_a_dataset_holds_pairs_in_the_label_space_and_a_record(tmp_path: Path) -> None:
    write(tmp_path)
    assert sorted(contents(tmp_path)) == [
        "dataset.json",
        *(f"{kind}/00000{i}.png" for kind in ("images", "labels") for i in range(3)),
    ]
    record = read_json(tmp_path / "dataset.json", "edgeuda.dataset/1")
    assert LabelSpace.from_record(record["label_space"]) == CAMVID
    assert record["origin"] == {
        "renderer": "street", "domain": "camera", "seed": 1, "count": 3, "height": 48, "width": 96,
    }  # fmt: skip
    for i in range(3):
        label = read_label(tmp_path / f"labels/00000{i}.png")
        assert read_image(tmp_path / f"images/00000{i}.png").shape == (48, 96, 3)
        assert set(np.unique(label).tolist()) <= {*range(11), IGNORE}


def test_datasets_of_neighbouring_seeds_share_no_image(tmp_path: Path) -> None:
    write(tmp_path / "a", seed=1)
    write(tmp_path / "b", seed=2)
    images = [p.read_bytes() for name in "ab" for p in (tmp_path / name / "images").iterdir()]
    assert len(set(images)) == 6


def test_two_workers_write_what_one_writes(tmp_path: Path) -> None:
    write(tmp_path / "one", count=10)
    write(tmp_path / "two", count=10, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_an_interrupted_dataset_is_completed_and_complete_pairs_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "whole")
    rendered: list[int] = []

    def stop_at_second(domain: StreetDomain, seed: int, *place: Any) -> object:
        rendered.append(seed)
        if len(rendered) == 2:
            raise KeyboardInterrupt
        return render(domain, seed, *place)

    monkeypatch.setattr("edgeuda.street.dataset.render", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "part")
    assert not (tmp_path / "part/dataset.json").exists()
    with pytest.raises(OutputExistsError):  # of other parameters: must not be mixed in
        write(tmp_path / "part", seed=7)
    write(tmp_path / "part")
    assert len(rendered) == 4  # one pair, the interruption, two pairs
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


@pytest.mark.parametrize("change", [{"seed": 2}, {"count": 4}, {"space": SPACES["cityscapes-19"]}])
def test_a_dataset_of_other_parameters_is_not_overwritten(
    tmp_path: Path, change: dict[str, int | LabelSpace]
) -> None:
    write(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(OutputExistsError, match=r"dataset\.json: expected"):
        write(tmp_path, **change)  # type: ignore[arg-type]
    assert contents(tmp_path) == before


def test_an_unknown_domain_is_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'fog'; known: simulator, camera"):
        write_dataset(tmp_path, "fog", 1, 0, 64, 64, CAMVID)


class TestRandomised:
    def test_every_image_is_of_a_domain_of_its_own_between_the_presets(self) -> None:
        a, b = randomised(1), randomised(2)
        assert a == randomised(1)
        assert a != b
        simulator, camera = DOMAINS["simulator"], DOMAINS["camera"]
        assert a.field_of_view == (camera.field_of_view[0], simulator.field_of_view[1])
        assert set(a.crowns) == {*simulator.crowns, *camera.crowns}
        low, high = sorted((simulator.texture, camera.texture))
        assert low <= a.texture <= high
        assert a.texture != b.texture
        assert len(a.lights) == len(simulator.lights) + len(camera.lights)

    def test_all_19_classes_occur(self) -> None:
        seen = np.zeros(256, np.int64)
        for seed in range(120):
            seen += np.bincount(
                render(domain_of(RANDOMISED, seed), seed, 96, 192)[1].ravel(), minlength=256
            )
        absent = [SPACES["cityscapes-19"].classes[i] for i in range(19) if seen[i] == 0]
        assert not absent

    def test_a_dataset_does_not_depend_on_the_number_of_processes(self, tmp_path: Path) -> None:
        for workers in (1, 2):
            write_dataset(tmp_path / str(workers), RANDOMISED, 4, 7, 48, 64, CAMVID, workers)
        for name in ("images", "labels"):
            for path in (tmp_path / "1" / name).iterdir():
                assert path.read_bytes() == (tmp_path / "2" / name / path.name).read_bytes()

    def test_the_presets_have_no_motorcycles_and_trams_yet(
        self, labels: dict[str, list[Labels]]
    ) -> None:
        """Their images are those of earlier releases."""
        for found in labels.values():
            assert not np.isin(np.array(found), [IDS["motorcycle"], IDS["train"]]).any()


class TestDrive:
    """A camera that moves: the same street from further on."""

    DRIVE = Drive(21, fps=10, speed=9)

    def test_places_come_nearer_by_what_was_travelled(self) -> None:
        view = draw_view(SIMULATOR, np.random.default_rng(3), 128, 256, 1.7)
        points = np.array([(2.0, 1.5, 40.0), (-5.0, 0.0, 25.0)])
        moved = replace(view, travelled=12.5)
        assert np.allclose(moved.project(points), view.project(points - (0, 0, 12.5)))

    def test_neighbouring_frames_are_alike_and_distant_ones_are_not(self) -> None:
        domain = DOMAINS["camera"]
        frames = [render(domain, 11, 96, 192, self.DRIVE, frame)[1] for frame in (0, 1, 20)]
        assert 0.7 < (frames[0] == frames[1]).mean() < 1
        assert (frames[0] == frames[2]).mean() < (frames[0] == frames[1]).mean() - 0.05

    def test_a_junction_comes_nearer(self) -> None:
        """A zebra crossing is further down in the image from frame to frame, then gone."""
        domain = replace(
            CLEAN, moving_per_100m=0.0, parked_per_100m=0.0, people_per_100m=0.0,
            cyclists_per_100m=0.0, trees_per_100m=0.0, planted_verge=1.0, junction=0.0,
        )  # fmt: skip
        seed = next(
            s for s in range(99) if draw_plan(domain, np.random.default_rng((s, 0))).crossings
        )
        rows = []
        for frame in (0, 4, 8):
            image, label = render(domain, seed, 128, 256, self.DRIVE, frame)
            white = (image.min(2) > 150) & (label == IDS["road"])
            stripes = np.flatnonzero(white.sum(1) > 12)
            rows.append(stripes.max() if len(stripes) else 128)
        assert rows == sorted(rows)
        assert rows[0] < rows[-1]

    def test_only_noise_changes_while_the_camera_stands(self) -> None:
        domain = replace(
            DOMAINS["camera"], moving_per_100m=0.0, people_per_100m=0.0, cyclists_per_100m=0.0
        )
        drive = Drive(3, speed=0.0)
        images, labels = zip(*(render(domain, 4, 96, 192, drive, f) for f in (0, 2)), strict=True)
        assert np.array_equal(labels[0], labels[1])
        difference = np.abs(images[0].astype(int) - images[1]).mean()
        assert 0.2 < difference < 12

    def test_datasets_of_drives_are_split_by_street(self, tmp_path: Path) -> None:
        write_dataset(tmp_path, "camera", 6, 0, 32, 48, CAMVID, drive=Drive(3))
        names = sorted(path.name for path in (tmp_path / "images").iterdir())
        assert names[:4] == ["000000_0000.png", "000000_0001.png", "000000_0002.png",
                             "000001_0000.png"]  # fmt: skip
        found = split_pairs(labelled_folder(tmp_path), (2, 1))
        assert (found.sequences, found.how) == (6, "kept whole")
        with pytest.raises(OutputExistsError, match="expected the dataset"):
            write_dataset(tmp_path, "camera", 6, 0, 32, 48, CAMVID, drive=Drive(4))

    def test_drives_that_are_none(self) -> None:
        with pytest.raises(ConfigError, match="A drive needs"):
            Drive(0)
