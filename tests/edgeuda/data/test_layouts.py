"""Public data sets in their genuine form, made small."""

import logging

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow

from edgeuda.data.folders import labelled_folder, labelled_frames
from edgeuda.data.images import write_image, write_label
from edgeuda.data.label_files import read_channel, read_colours, read_palette_index
from edgeuda.data.layouts import CITYSCAPES_IDS, LAYOUTS, ROBOTCAR_IDS, SYNTHIA_IDS, layout_of
from edgeuda.errors import DataError
from edgeuda.files import write_json
from edgeuda.labels import IGNORE, SPACES, mapping

FRAME = np.full((4, 6, 3), 90, np.uint8)


def ids(*values):
    """A label map that begins with some ids, the rest 0."""
    label = np.zeros((4, 6), np.uint8)
    label.ravel()[: len(values)] = values
    return label


def first(folder, count, **options):
    """The first labels of a folder's only image."""
    data = labelled_folder(folder, **options)
    assert len(data) == 1
    image, label = data.read(0)
    assert np.array_equal(image, FRAME)
    return label.ravel()[:count].tolist()


@pytest.mark.parametrize("train_ids", [False, True])
def test_cityscapes(tmp_path, train_ids):
    stem = "aachen_000000_000019"
    write_image(tmp_path / f"leftImg8bit/train/aachen/{stem}_leftImg8bit.png", FRAME)
    labels = tmp_path / "gtFine/train/aachen"
    write_label(labels / f"{stem}_gtFine_labelIds.png", ids(7, 26, 33, 4))
    if train_ids:
        write_label(labels / f"{stem}_gtFine_labelTrainIds.png", ids(0, 13, 18, 255))
    assert first(tmp_path / "leftImg8bit/train", 4) == [0, 13, 18, IGNORE]
    thirteen = SPACES["cityscapes-13"]
    found = first(tmp_path / "leftImg8bit" / "train" / "aachen", 4, space=thirteen)
    assert found == [0, thirteen.classes.index("car"), thirteen.classes.index("bicycle"), IGNORE]


def test_gta5_palette_indices_are_ids(tmp_path):
    write_image(tmp_path / "images/00001.png", FRAME)
    (tmp_path / "labels").mkdir()
    label = Pillow.fromarray(ids(7, 24, 31, 5), "P")
    label.putpalette([(7 * i) % 256 for i in range(768)])
    label.save(tmp_path / "labels/00001.png")
    assert first(tmp_path, 4) == [0, 11, 16, IGNORE]


def test_synthia_class_is_the_first_of_16_bit_channels(tmp_path):
    write_image(tmp_path / "RGB/0000000.png", FRAME)
    label = np.zeros((4, 6, 3), np.uint16)
    label[:, :, 2] = ids(3, 17, 22, 12)  # OpenCV writes BGR
    label[:, :, 1] = 7000  # instances
    (tmp_path / "GT/LABELS").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "GT/LABELS/0000000.png"), label)
    assert first(tmp_path / "RGB", 4) == [0, 12, IGNORE, 17]
    sixteen = SPACES["cityscapes-16"]
    assert first(tmp_path / "RGB", 1, space=sixteen) == [0]


def test_robotcar_annotation_is_channel_0_of_4(tmp_path):
    write_image(tmp_path / "val/1.png", FRAME)
    label = np.full((4, 6, 4), 255, np.uint8)
    label[:, :, 2] = ids(1, 11, 17, 9)
    (tmp_path / "anno").mkdir()
    cv2.imwrite(str(tmp_path / "anno/1.png"), label)
    assert first(tmp_path / "val", 4) == [0, 8, 8, IGNORE]


def test_nthu(tmp_path):
    write_image(tmp_path / "Rome/Images/Test/pano_1.png", FRAME)
    write_label(tmp_path / "Rome/Labels/Test/pano_1_eval.png", ids(7, 25, 0))
    assert first(tmp_path / "Rome/Images/Test", 3) == [0, 12, IGNORE]


def test_acdc(tmp_path):
    write_image(tmp_path / "rgb_anon/night/train/GP010376/a_rgb_anon.png", FRAME)
    write_label(tmp_path / "gt/night/train/GP010376/a_gt_labelTrainIds.png", ids(13, 255))
    assert first(tmp_path / "rgb_anon/night", 2) == [13, IGNORE]


def test_bdd100k(tmp_path):
    frame = np.full((8, 8, 3), 90, np.uint8)
    write_image(tmp_path / "images/10k/val/x.jpg", frame)
    write_label(tmp_path / "labels/sem_seg/masks/val/x.png", np.full((8, 8), 13, np.uint8))
    data = labelled_folder(tmp_path / "images/10k/val")
    assert (data.read(0)[1] == 13).all()


def test_camvid_11_has_an_id_for_void(tmp_path):
    write_image(tmp_path / "train/1.png", FRAME)
    write_label(tmp_path / "trainannot/1.png", ids(3, 10, 11))
    assert first(tmp_path / "train", 3) == [3, 10, IGNORE]


def camvid_32(tmp_path, *names, swapped=False):
    space = SPACES["camvid-32"]
    write_image(tmp_path / "701_StillsRaw_full/1.png", FRAME)
    label = np.zeros((4, 6, 3), np.uint8)
    for place, name in enumerate(names):
        label[0, place] = space.palette[space.classes.index(name)]
    write_image(tmp_path / "LabeledApproved_full/1_L.png", label[:, :, ::-1] if swapped else label)
    return tmp_path / "701_StillsRaw_full"


def test_camvid_colours_and_their_grouping(tmp_path):
    space = SPACES["camvid-32"]
    folder = camvid_32(tmp_path, "SUVPickupTruck", "LaneMkgsDriv", "Child")
    names = [space.classes[i] for i in first(folder, 3)]
    assert names == ["SUVPickupTruck", "LaneMkgsDriv", "Child"]
    assert first(folder, 4, space=SPACES["camvid-11"]) == [8, 3, 9, IGNORE]
    assert (mapping(space, SPACES["camvid-11"])[: len(space)] != IGNORE).all()


def test_swapped_channels_are_recognised(tmp_path):
    folder = camvid_32(tmp_path, "Car", "Sky", swapped=True)
    with pytest.raises(DataError, match="Red and blue seem to be swapped"):
        labelled_folder(folder).read(0)


def test_unknown_colours_are_named(tmp_path):
    label = np.full((2, 2, 3), (1, 2, 3), np.uint8)
    write_image(tmp_path / "x.png", label)
    with pytest.raises(DataError, match=r"found \(1, 2, 3\)"):
        read_colours(tmp_path / "x.png", SPACES["camvid-11"])


def test_missing_labels_say_where_they_were_expected(tmp_path):
    write_image(tmp_path / "leftImg8bit/val/x/a_leftImg8bit.png", FRAME)
    (tmp_path / "gtFine").mkdir()
    with pytest.raises(DataError, match=r"gtFine_labelIds\.png.*Cityscapes.*1 of 1 are missing"):
        labelled_folder(tmp_path / "leftImg8bit/val")
    assert labelled_frames(tmp_path / "leftImg8bit/val", SPACES["cityscapes-19"]) is None


def test_nothing_known_lists_what_is_known(tmp_path):
    write_image(tmp_path / "a/b.png", FRAME)
    with pytest.raises(DataError, match=r"found neither.*Cityscapes.*GTA5"):
        labelled_folder(tmp_path)


def test_a_users_folders_are_not_taken_for_a_data_set(tmp_path):
    for name in ("Images", "leftImg8bit", "images/10k", "RGB", "val"):
        (tmp_path / name / "drive").mkdir(parents=True)
        assert layout_of(tmp_path / name / "drive") is None
    write_image(tmp_path / "mine/images/00001.png", FRAME)
    write_label(tmp_path / "mine/labels/00001.png", ids(1))
    assert layout_of(tmp_path / "mine") is None


def test_forms_that_are_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "deep.png"), np.zeros((2, 2), np.uint16))
    with pytest.raises(DataError, match="16 bits of PNG colour type 0"):
        read_palette_index(tmp_path / "deep.png")
    write_label(tmp_path / "grey.png", ids(5))
    assert read_palette_index(tmp_path / "grey.png").ravel()[0] == 5
    with pytest.raises(DataError, match="found one channel"):
        read_channel(tmp_path / "grey.png", 0)
    cv2.imwrite(str(tmp_path / "instances.png"), np.full((2, 2, 3), 7000, np.uint16))
    with pytest.raises(DataError, match="found 7000"):
        read_channel(tmp_path / "instances.png", 0)
    write_image(tmp_path / "a.jpg", FRAME)
    with pytest.raises(DataError, match="found another format"):
        read_palette_index(tmp_path / "a.jpg")


def test_tables_lead_into_their_spaces():
    assert CITYSCAPES_IDS[[7, 26, 33, 4, 34]].tolist() == [0, 13, 18, IGNORE, IGNORE]
    assert SYNTHIA_IDS[[3, 16, 22, 1]].tolist() == [0, 9, IGNORE, 10]
    assert ROBOTCAR_IDS[[1, 8, 11, 17]].tolist() == [0, IGNORE, 8, 8]
    assert set(CITYSCAPES_IDS.tolist()) == {*range(19), IGNORE}
    assert set(SYNTHIA_IDS.tolist()) == {*range(19), IGNORE}
    assert set(ROBOTCAR_IDS.tolist()) == {*range(9), IGNORE}
    assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS)


def palette_png(path, label):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Pillow.fromarray(label, "P")
    picture.putpalette([value for index in range(256) for value in (index, 7, 9)])
    picture.save(path)


def test_what_the_user_says_wins_over_what_a_folder_looks_like(tmp_path, caplog):
    """Five digits and a palette look like GTA5; the ids are those of camvid-11."""
    camvid = SPACES["camvid-11"]
    write_image(tmp_path / "images/00001.png", FRAME)
    palette_png(tmp_path / "labels/00001.png", ids(0, 3, 10))
    with caplog.at_level(logging.INFO):
        folder = labelled_folder(tmp_path, None, camvid)
    assert folder.space == camvid
    assert folder.read(0)[1].ravel().tolist()[:3] == [0, 3, 10]
    assert "looks like GTA5" in caplog.text
    assert "1 images, read as folders images and labels with labels of camvid-11" in caplog.text
    assert "of the pixels of 1 label maps are ignored" in caplog.text


def test_a_data_set_whose_labels_are_of_another_space_is_refused(tmp_path):
    write_image(tmp_path / "rgb_anon/night/train/G/a_rgb_anon.png", FRAME)
    write_label(tmp_path / "gt/night/train/G/a_gt_labelTrainIds.png", ids(13, 2))
    with pytest.raises(DataError, match=r"ACDC folder.*'cityscapes-19'.*says 'camvid-11'"):
        labelled_folder(tmp_path / "rgb_anon/night", None, SPACES["camvid-11"])
    same = labelled_folder(tmp_path / "rgb_anon/night", None, SPACES["cityscapes-19"])
    assert same.layout == "ACDC"


def test_labels_of_which_nothing_is_left_are_refused(tmp_path, caplog):
    write_image(tmp_path / "images/00001.png", FRAME)
    palette_png(tmp_path / "labels/00001.png", np.zeros((4, 6), np.uint8))  # all "unlabeled"
    with pytest.raises(DataError, match=r"100\.0% of the pixels are ignored.*read as GTA5.*--la"):
        labelled_folder(tmp_path)
    write_label(tmp_path / "labels/00001.png", np.full((4, 6), IGNORE, np.uint8))
    with pytest.raises(DataError, match=r"ignored.*put a dataset\.json"):
        labelled_folder(tmp_path, None, SPACES["camvid-11"])
    record = {"schema": "edgeuda.dataset/1", "label_space": "camvid-11"}
    write_json(tmp_path / "dataset.json", record)
    assert len(labelled_folder(tmp_path)) == 1
    assert "100.0% of the pixels are ignored" in caplog.text


def test_a_label_space_that_contradicts_the_record_is_said(tmp_path, caplog):
    write_image(tmp_path / "images/a.png", FRAME)
    write_label(tmp_path / "labels/a.png", ids(0, 1))
    write_json(
        tmp_path / "dataset.json", {"schema": "edgeuda.dataset/1", "label_space": "camvid-11"}
    )
    assert labelled_folder(tmp_path, None, SPACES["cityscapes-19"]).space.name == "cityscapes-19"
    assert "labels are of camvid-11; they are read as cityscapes-19" in caplog.text
