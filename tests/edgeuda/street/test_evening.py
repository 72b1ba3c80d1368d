"""A rendered day turns into evening: darker, noisier, always alike and with the same labels."""

import numpy as np
import pytest

from edgeuda.data.footage import footage, frame_rate
from edgeuda.data.images import read_image, read_label
from edgeuda.errors import OutputError
from edgeuda.labels import SPACES
from edgeuda.street import write_dataset
from edgeuda.street.evening import LEAST_LIGHT, NOISE, evening, falling, write_drive, write_evening


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    folder = tmp_path_factory.mktemp("street") / "day"
    write_dataset(folder, "camera", 3, 0, 32, 64, SPACES["camvid-11"])
    return folder


def test_light_falls_and_noise_grows():
    image = np.full((64, 128, 3), 200, np.uint8)
    assert evening(image, 0, 0) is image
    darker = [evening(image, late, 0) for late in (0.25, 0.5, 0.75, 1)]
    means = [float(one.mean()) for one in (image, *darker)]
    assert means == sorted(means, reverse=True)
    dark = darker[-1].astype(float)
    assert dark.mean() == pytest.approx(200 * LEAST_LIGHT, rel=0.02)
    assert dark[..., 2].mean() > 1.3 * dark[..., 0].mean()
    assert dark[..., 1].std() == pytest.approx(NOISE, rel=0.05)
    np.testing.assert_array_equal(darker[-1], evening(image, 1, 0))
    assert (darker[-1] != evening(image, 1, 1)).any()


def test_a_drive_is_by_day_at_first_and_dark_at_last():
    late = falling(12)
    assert late[:5] == [0] * 5
    assert late == sorted(late)
    assert late[8:] == [1] * 4
    assert 0 < late[6] < 1


def test_an_interrupted_evening_goes_on_and_keeps_the_labels(day, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out in (whole, parts):
        write_evening(day, out, [0, 0.5, 1])
    for lost in ("dataset.json", "labels/000001.png", "images/000002.png", "labels/000002.png"):
        (parts / lost).unlink()
    write_evening(day, parts, [0, 0.5, 1])
    for path in sorted(whole.rglob("*.*")):
        assert path.read_bytes() == (parts / path.relative_to(whole)).read_bytes()
    np.testing.assert_array_equal(*(read_image(one / "images/000000.png") for one in (day, whole)))
    for number in range(3):
        np.testing.assert_array_equal(
            *(read_label(one / f"labels/{number:06d}.png") for one in (day, whole))
        )
    with pytest.raises(ValueError, match="argument 2"):
        write_evening(day, tmp_path / "other", [0, 1])


def test_the_drive_is_a_video_without_loss(day, tmp_path, monkeypatch):
    images = sorted((day / "images").iterdir())
    out = tmp_path / "drive.mkv"
    write_drive(images, out, 2.0)
    assert frame_rate(out) == 2
    frames = list(footage(out))
    assert [one.seconds for one in frames] == [0, 0.5, 1]
    for frame, path in zip(frames, images, strict=True):
        np.testing.assert_array_equal(frame.image, read_image(path))
    monkeypatch.setattr("edgeuda.street.evening.FOURCC", "none")
    with pytest.raises(OutputError, match="writes no none video"):
        write_drive(images, tmp_path / "other.mkv", 2.0)
    assert not (tmp_path / "other.mkv").exists()
