"""Which frames are chosen for labelling, on drives of which the right answer is known."""

import numpy as np
import pytest

from edgeuda.data.frames import frame_folder
from edgeuda.data.images import write_image
from edgeuda.errors import ConfigError, DataError
from edgeuda.frame_selection import MAX_WEIGHT, look, select_frames, spread_out, weights
from edgeuda.labels import LabelSpace
from edgeuda.records.frame_selection import FrameSelectionRecord
from edgeuda.records.predictions import ModelFile
from edgeuda.spec import ModelSpec, Preprocessing

H, W = 32, 64
SPACE = LabelSpace(
    "four", ("road", "sky", "car", "tram"), ((1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4))
)
FILE = ModelFile("net.onnx", "0" * 64)


class Colours:
    """A network that reads off the pixels: red is the class, green how much it doubts that."""

    spec = ModelSpec("bisenet", 1.0, SPACE, Preprocessing(H, W))

    def __call__(self, image):
        wrong = image[:, :, 1] / 255 * 0.75  # at most one part in four each
        found = np.repeat(wrong[None] / 3, 4, 0)
        np.put_along_axis(found, image[None, :, :, 0].astype(int), 1 - wrong[None], 0)
        return found.astype(np.float32)


def frame(doubt=0, tram=None, tram_doubt=0, left=0):
    """A street: sky above road, a car that moves, perhaps a tram."""
    image = np.zeros((H, W, 3), np.uint8)
    image[: H // 2, :, 0] = 1
    image[18:24, left : left + 8, 0] = 2
    image[:, :, 1] = doubt
    if tram is not None:
        image[24:32, tram : tram + 8, 0] = 3
        image[24:32, tram : tram + 8, 1] = tram_doubt
    return image


def select(folder, images, count, **options):
    for name, image in images.items():
        write_image(folder / name, image)
    return select_frames(Colours(), FILE, frame_folder(folder), count, **options)


def names(record):
    return [one.frame for one in record.ranked]


def drive(**changed):
    """Forty frames of a drive that stands still, but for those that are given."""
    images = {f"{index:03d}.png": frame(doubt=20) for index in range(40)}
    images |= {f"{key[1:]}.png": value for key, value in changed.items()}
    return images


def test_what_is_measured_of_a_frame():
    found = look(frame(doubt=255), Colours())  # all four classes are as likely
    assert found.doubt.entropy == pytest.approx(1, abs=1e-5)
    assert found.doubt.margin == pytest.approx(1, abs=1e-5)
    sure = look(frame(left=4), Colours())
    assert sure.doubt.entropy == pytest.approx(0, abs=1e-5)
    assert sure.doubt.mirror == 0
    assert sure.shares.tolist() == pytest.approx([0.5 - 48 / 2048, 0.5, 48 / 2048, 0])
    assert sure.doubts.sum() == pytest.approx(0, abs=1e-5)
    # Hellinger distance of a cell that holds one class in one frame and another in the other: 1
    assert (sure.layout.astype(np.float32) ** 2).sum() == pytest.approx(12, rel=1e-2)


def test_the_mirror_image_counts():
    def one_sided(image):  # calls the left half road whatever it sees there
        found = Colours()(image)
        found[:, :, : W // 2] = np.array([1, 0, 0, 0], np.float32)[:, None, None]
        return found

    assert look(frame(left=28), one_sided).doubt.mirror >= 0.5  # all of the sky at least
    assert look(frame(left=28), Colours()).doubt.mirror == 0


def test_the_uncertain_frame_comes_first_and_its_neighbours_do_not_follow(tmp_path):
    doubtful = {f"_{n:03d}": frame(doubt=200, left=8) for n in range(18, 23)}
    doubtful["_020"] = frame(doubt=210, left=8)
    found = select(tmp_path, drive(**doubtful, _035=frame(doubt=100, left=20)), 2)
    assert names(found) == ["020.png", "035.png"]
    first, second = found.ranked
    assert first.score > second.score
    assert (first.distance, first.reasons[-1][-9:]) == (1, "1.00 of 1")
    assert any("entropy" in reason for reason in first.reasons)


def test_random_and_uniform_choices_miss_what_is_chosen(tmp_path):
    """Three events among forty frames; what is even in time sees none, by chance 0.2 on average."""
    events = {"_013": frame(150, left=8), "_027": frame(160, tram=10, tram_doubt=200),
              "_034": frame(140, left=20)}  # fmt: skip
    found = names(select(tmp_path, drive(**events), 3))
    assert set(found) == {"013.png", "027.png", "034.png"}
    uniform = {f"{n * 40 // 3:03d}.png" for n in range(3)}
    assert len(uniform & set(found)) <= 1
    rng = np.random.default_rng(0)
    by_chance = [
        len({f"{n:03d}.png" for n in rng.permutation(40)[:3]} & set(found)) for _ in range(200)
    ]
    assert max(by_chance) < 3


def test_doubt_of_a_rare_class_counts_more(tmp_path):
    """The same doubt on as many pixels: of a tram that is seen once, or of a car of every frame."""
    rare, common = frame(doubt=20, tram=10, tram_doubt=0), frame(doubt=20)
    rare[24:30, 10:18, 1], common[18:24, :8, 1] = 200, 200
    found = select(tmp_path, drive(_010=common, _030=rare), 2)
    assert names(found)[0] == "030.png"
    assert "class 'tram'" in " ".join(found.ranked[0].reasons)
    assert found.classes["tram"].weight > found.classes["car"].weight > found.classes["sky"].weight


def test_a_class_of_a_few_pixels_does_not_outweigh_all():
    found = weights(np.array([[0.5, 0.5 - 1e-6, 1e-6, 0]], np.float32))
    assert found.max() == MAX_WEIGHT
    even = weights(np.full((3, 4), 0.25, np.float32))
    assert even == pytest.approx(1)


def test_a_second_minute_at_the_red_light_is_not_chosen(tmp_path):
    """Far in time, but the same again; the frame that is less doubtful and different is better."""
    same = frame(doubt=150, left=8)
    found = select(tmp_path, drive(_005=same, _030=same, _020=frame(doubt=60, left=24)), 2)
    assert names(found) == ["005.png", "020.png"]


def test_frames_of_another_folder_are_another_drive(tmp_path):
    images = {
        f"{where}/{n}.png": frame(doubt=100 + n, left=12 * n) for where in "ab" for n in (1, 2)
    }
    found = select(tmp_path / "images", images, 3)
    # b/1 and a/1 are alike and equally doubtful, but a/1 is the neighbour of what was chosen.
    assert names(found)[:2] == ["a/2.png", "b/1.png"]


def test_without_any_doubt_frames_are_spread():
    layouts = np.ones((100, 12), np.float16)
    taken = [at for at, _ in spread_out(np.zeros(100), layouts, [0] * 100, 4)]
    assert len(set(taken)) == 4
    line = np.linspace(0, 1, 100, dtype=np.float16)[:, None].repeat(12, 1)
    taken = sorted(at for at, _ in spread_out(np.zeros(100), line, [0] * 100, 3))
    assert taken[0] == 0
    assert taken[-1] == 99
    assert 40 < taken[1] < 60


def test_broken_frames_are_left_out_and_recorded(tmp_path, caplog):
    images = drive()
    for name, image in images.items():
        write_image(tmp_path / name, image)
    (tmp_path / "007.png").write_bytes(b"no image")
    found = select_frames(Colours(), FILE, frame_folder(tmp_path), 40 - 1)
    assert "007.png" not in names(found)
    assert found.skipped == [str(tmp_path / "007.png")]
    assert found.looked_at == 39
    for n in range(8, 12):
        (tmp_path / f"{n:03d}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="at most 5% unreadable"):
        select_frames(Colours(), FILE, frame_folder(tmp_path), 3)


def test_the_record_is_read_back(tmp_path):
    found = select(tmp_path / "images", drive(_003=frame(doubt=120)), 3, among=20)
    assert found.looked_at == 20
    found.write(tmp_path / "selected.json")
    assert FrameSelectionRecord.read(tmp_path / "selected.json") == found


@pytest.mark.parametrize("count", [0, 41])
def test_too_many_frames_are_refused(tmp_path, count):
    with pytest.raises(ConfigError, match="from 1 to 40 frames"):
        select(tmp_path, drive(), count)
