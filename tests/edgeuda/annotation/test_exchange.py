"""Labels to annotation tools and back: to the pixel, by our own writers and by theirs."""

import json
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow

from edgeuda.annotation import brush, cvat
from edgeuda.annotation.exchange import export_labels, import_labels
from edgeuda.camera import CameraGeometry
from edgeuda.data.folders import labelled_folder
from edgeuda.data.images import read_image, read_label, write_image, write_label
from edgeuda.data.treatment import treatment_of
from edgeuda.errors import ConfigError, DataError, OutputExistsError
from edgeuda.files import write_json
from edgeuda.labels import IGNORE, SPACES, LabelSpace
from edgeuda.records.imported_labels import ImportedLabelsRecord
from edgeuda.records.labelling import LabelledFrame, PseudoLabelsRecord
from places import ROOT

SPACE = SPACES["cityscapes-19"]
FOREIGN = ROOT / "tests/support/data/annotations"
"""Written by datumaro 1.13.12 and Label Studio's SDK 2.1.2, see `foreign_labels.py`."""
TOOLS = ("cvat", "coco", "label-studio")
SIZE = (24, 40)


def noise(seed):
    """Single pixels, regions and ignored parts; all classes occur."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.repeat(rng.integers(0, 19, (6, 10), np.uint8), 4, 0), 4, 1)
    label[rng.random(SIZE) < 0.2] = 3
    label[5:9, 7:20] = IGNORE
    return label


@pytest.fixture
def data(tmp_path):
    """A labelled folder whose images lie elsewhere, as `pseudo-label` writes it."""
    for number, name in enumerate(("a/0.png", "b/0.png", "b/1.5.png", "2.png")):
        image = np.random.default_rng(number).integers(0, 256, (*SIZE, 3), np.uint8)
        write_image(tmp_path / "frames" / name, image)
        write_label(tmp_path / "pseudo" / "labels" / name, noise(number))
    record = {"label_space": SPACE.to_record(), "images": "../frames"}
    write_json(tmp_path / "pseudo/dataset.json", {"schema": "edgeuda.dataset/1", **record})
    return tmp_path / "pseudo"


def corrected(folder, tool):
    """What the tool gives back if nothing is changed: Label Studio takes predictions as drawn."""
    if tool != "label-studio":
        return folder / "annotations.zip" if tool == "cvat" else folder
    tasks = json.loads((folder / "tasks.json").read_text())
    for number, task in enumerate(tasks):
        prediction = task.pop("predictions")[0]
        task |= {"id": number, "annotations": [{"result": prediction["result"]}]}
    path = folder / "export.json"
    path.write_text(json.dumps(tasks))
    return path


@pytest.mark.parametrize("tool", TOOLS)
def test_what_goes_out_comes_back_to_the_pixel(data, tmp_path, tool):
    assert export_labels(data, tmp_path / "out", tool) == 4
    found = import_labels(corrected(tmp_path / "out", tool), data, tmp_path / "back")
    before, after = labelled_folder(data), labelled_folder(tmp_path / "back")
    assert after.stored == SPACE
    assert [p.image.name for p in after.pairs] == [p.image.name for p in before.pairs]
    for (image, label), (again, drawn) in zip(before, after, strict=True):
        assert np.array_equal(image, again)
        assert np.array_equal(label, drawn)
        assert 0 < (label == IGNORE).sum() < label.size
    assert found.form == tool
    assert {frame.overlapped for frame in found.frames} == {0}
    assert (found.empty, found.unlisted, found.passed_over) == ([], 0, {})
    assert ImportedLabelsRecord.read(tmp_path / "back" / found.FILE) == found


@pytest.mark.parametrize("what", ["cvat", "voc", "coco", "panoptic", "label-studio.json"])
def test_files_of_other_writers(tmp_path, what):
    names = ("road", "car", "traffic light")
    ids = np.full(256, IGNORE, np.uint8)
    ids[:3] = [SPACE.classes.index(name) for name in names]
    rows, columns = np.mgrid[:12, :20]
    frames = tmp_path / "frames"
    for name in ("a/0.png", "1.png"):
        write_image(frames / name, np.zeros((12, 20, 3), np.uint8))
    import_labels(FOREIGN / what, frames, tmp_path / "out", space=SPACE)
    for number, name in enumerate(("a/0.png", "1.png")):
        drawn = ((rows * 2 + columns * (number + 1)) // 9 % 3).astype(np.uint8)
        drawn[:3, 5:9] = IGNORE
        assert np.array_equal(read_label(tmp_path / "out/labels" / name), ids[drawn])


def test_brushes_are_read_as_their_sdk_writes_them_and_written_alike():
    """Bytes of Label Studio's SDK (`brush.mask2rle`) for the masks of the fixture."""
    tasks = json.loads((FOREIGN / "label-studio.json").read_text())
    for task in tasks:
        for result in task["annotations"][0]["result"]:
            theirs = result["value"]["rle"]
            mask = brush.decode(theirs, 12, 20)
            assert 0 < mask.sum() < mask.size
            ours = brush.encode(mask)
            assert ours == theirs[: len(ours)]
            assert not any(theirs[len(ours) :])  # they fill up with a byte of zeros
    whole = np.ones((300, 400), bool)  # longer than a run may be
    assert brush.decode(brush.encode(whole), 300, 400).all()
    with pytest.raises(ValueError, match="cut short"):
        brush.decode(brush.encode(whole)[:-2], 300, 400)
    with pytest.raises(ValueError, match="of 480000 values, of 301x400"):
        brush.decode(brush.encode(whole), 400, 301)


def test_values_of_a_brush_may_stand_one_by_one():
    """A run that is not repeated, and an edge that is half transparent: 128 and less is none."""
    bits = f"{8:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in brush.SIZES)
    bits += "0" + "00" + f"{7:03b}" + "".join(f"{v:08b}" for v in (9, 9, 9, 129, 9, 9, 9, 128))
    bits += "0" * (-len(bits) % 8)
    rle = [int(bits[n : n + 8], 2) for n in range(0, len(bits), 8)]
    assert brush.decode(rle, 1, 2).tolist() == [[True, False]]


def test_colours_and_background_of_cvat(data, tmp_path):
    export_labels(data, tmp_path / "out", "cvat")
    label = read_label(data / "labels/b/1.5.png")
    drawn = read_image(tmp_path / "out/SegmentationClass/b/1.5.png")
    assert np.array_equal(drawn, SPACE.colors()[label])  # 255 is black: the background
    lines = (tmp_path / "out/labelmap.txt").read_text().splitlines()
    assert lines[1] == "background:0,0,0::"
    assert "road:128,64,128::" in lines
    listed = (tmp_path / "out/ImageSets/Segmentation/default.txt").read_text().split()
    assert listed == ["2", "a/0", "b/0", "b/1.5"]
    with zipfile.ZipFile(tmp_path / "out/annotations.zip") as archive:
        assert "SegmentationObject/b/1.5.png" in archive.namelist()
        assert not any(name.startswith("JPEG") for name in archive.namelist())
    constructor = json.loads((tmp_path / "out/labels.json").read_text())
    assert constructor[0] == {"name": "road", "color": "#804080", "attributes": []}


def test_a_black_class_and_two_of_one_colour_get_others(tmp_path, caplog):
    space = LabelSpace("odd", ("void of course", "b", "c"), ((0, 0, 0), (9, 9, 9), (9, 9, 9)))
    write_image(tmp_path / "d/images/0.png", np.zeros((2, 3, 3), np.uint8))
    write_label(tmp_path / "d/labels/0.png", np.array([[0, 1, 2], [255, 0, 1]], np.uint8))
    dataset = {"schema": "edgeuda.dataset/1", "label_space": space.to_record()}
    write_json(tmp_path / "d/dataset.json", dataset)
    export_labels(tmp_path / "d", tmp_path / "out", "cvat")
    assert "'void of course' gets the colour" in caplog.text
    import_labels(tmp_path / "out", tmp_path / "d", tmp_path / "back")
    back = read_label(tmp_path / "back/labels/0.png")
    assert back.tolist() == [[0, 1, 2], [255, 0, 1]]


def test_indices_count_in_the_order_of_the_label_map(data, tmp_path):
    """Grey PNGs of ids, and palettes, whose colours count and not their indices."""
    folder = tmp_path / "masks"
    folder.mkdir()
    (folder / "labelmap.txt").write_text("car:0,0,142::\nroad:128,64,128::\nbackground:0,0,0::\n")
    ids = np.zeros(SIZE, np.uint8)
    ids[:12], ids[20:] = 1, 2
    write_label(folder / "2.png", ids)
    palette = Pillow.fromarray((ids + 4).astype(np.uint8), "P")
    palette.putpalette([7] * 12 + [128, 64, 128] + [0, 0, 142] + [0, 0, 0])
    (folder / "a").mkdir()
    palette.save(folder / "a/0.png")
    found = import_labels(folder, data, tmp_path / "out")
    grey, coloured = (read_label(tmp_path / "out/labels" / name) for name in ("2.png", "a/0.png"))
    assert [int(grey[row, 0]) for row in (0, 15, 23)] == [0, 13, IGNORE]
    assert [int(coloured[row, 0]) for row in (0, 15, 23)] == [13, 0, IGNORE]
    assert found.unlisted == 2
    assert "2 that are not listed" in found.said()[1]


def coco(tmp_path, annotations, names=("road", "car")):
    record = {
        "images": [{"id": 5, "file_name": "2.png", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names, 1)],
        "annotations": [{"id": n, "image_id": 5, **one} for n, one in enumerate(annotations)],
    }
    (tmp_path / "c.json").write_text(json.dumps(record))
    return tmp_path / "c.json"


def test_the_later_annotation_lies_over_the_earlier(data, tmp_path):
    square = [4, 4, 20, 4, 20, 12, 4, 12]
    right = [12, 4, 30, 4, 30, 12, 12, 12]
    path = coco(
        tmp_path,
        [
            {"category_id": 1, "segmentation": [square]},
            {"category_id": 2, "segmentation": [right]},
            {"category_id": 2, "bbox": [0, 0, 3, 3]},
        ],
    )
    found = import_labels(path, data, tmp_path / "out")
    label = read_label(tmp_path / "out/labels/2.png")
    assert [int(label[8, column]) for column in (2, 6, 16, 25)] == [IGNORE, 0, 13, 13]
    assert found.frames[0].overlapped == 8 * 8
    assert found.passed_over == {"annotations without a mask": 1}
    text = "\n".join(found.said())
    assert "in 1 frames annotations overlap, in 64 pixels: the later one counts" in text
    assert "not read: 1 annotations without a mask" in text


def test_unknown_classes_are_named_and_can_be_mapped(data, tmp_path):
    square = [[4, 4, 20, 4, 20, 12, 4, 12]]
    lower = [[4, 14, 20, 14, 20, 20, 4, 20]]
    both = [{"category_id": n, "segmentation": one} for n, one in ((1, square), (2, lower))]
    path = coco(tmp_path, both, ("Traffic_Light", "veggetation"))
    with pytest.raises(DataError, match=r"'veggetation'.*did you mean 'vegetation'.*`map_class`"):
        import_labels(path, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    found = import_labels(path, data, tmp_path / "out", map_class={"veggetation": "vegetation"})
    assert found.classes == {"Traffic_Light": "traffic light", "veggetation": "vegetation"}
    found = import_labels(path, data, tmp_path / "less", map_class={"veggetation": None})
    assert found.classes["veggetation"] is None
    assert "class 'veggetation' is ignored" in found.said()
    with pytest.raises(ConfigError, match="no class 'rod', did you mean 'road'"):
        import_labels(path, data, tmp_path / "more", map_class={"veggetation": "rod"})


def test_frames_that_are_not_there_or_of_another_size_are_refused(data, tmp_path):
    path = coco(tmp_path, [{"category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}])
    write_image(tmp_path / "frames/2.png", np.zeros((12, 20, 3), np.uint8))
    with pytest.raises(DataError, match=r"frame .*2\.png \(20x12\), found 40x24"):
        import_labels(path, data, tmp_path / "out")
    (tmp_path / "frames/2.png").unlink()
    with pytest.raises(DataError, match=r"names '2\.png', which is no frame of"):
        import_labels(path, data, tmp_path / "out")


def test_frames_without_annotation_are_left_out_and_counted(data, tmp_path):
    export_labels(data, tmp_path / "out", "label-studio")
    path = corrected(tmp_path / "out", "label-studio")
    tasks = json.loads(path.read_text())
    tasks[0]["annotations"][0]["result"] = []
    tasks[1]["annotations"][0]["was_cancelled"] = True
    tasks[2]["annotations"].insert(0, {"result": []})
    tasks[2]["annotations"][1]["result"].append({"type": "choices", "value": {"choices": ["x"]}})
    path.write_text(json.dumps(tasks[:3]))
    found = import_labels(path, data, tmp_path / "back")
    assert len(found.frames) == 1
    assert (len(found.empty), found.unlisted) == (2, 1)
    assert found.passed_over == {
        "cancelled annotations": 1,
        "earlier annotations of a frame": 1,
        "results that are no brush or polygon with a class": 1,
    }
    path.write_text(json.dumps(tasks[:2]))
    with pytest.raises(DataError, match="expected annotated frames, found 2 without"):
        import_labels(path, data, tmp_path / "none")


def test_polygons_and_the_short_form_of_label_studio(data, tmp_path):
    size = {"original_width": SIZE[1], "original_height": SIZE[0]}
    mask = np.zeros(SIZE, bool)
    mask[18:] = True
    task = {
        "image": "s3://bucket/some%20where/2.png",
        "label": [
            {"points": [[0, 0], [50, 0], [50, 50], [0, 50]], "polygonlabels": ["car"], **size},
            {"format": "rle", "rle": brush.encode(mask), "brushlabels": ["road"], **size},
        ],
    }
    path = tmp_path / "min.json"
    path.write_text(json.dumps([task]))
    import_labels(path, data, tmp_path / "out")
    label = read_label(tmp_path / "out/labels/2.png")
    assert [int(label[row, 5]) for row in (2, 15, 20)] == [13, IGNORE, 0]
    assert label[2, 30] == IGNORE


def test_only_listed_frames_in_their_order(data, tmp_path):
    names = tmp_path / "selected.txt"
    names.write_text("b/0.png\n2.png\na/0.png\n")
    assert export_labels(data, tmp_path / "out", "coco", frames=names, limit=2) == 2
    record = json.loads((tmp_path / "out/annotations.json").read_text())
    assert [image["file_name"] for image in record["images"]] == ["b/0.png", "2.png"]
    names.write_text("b/7.png\n")
    with pytest.raises(DataError, match=r"selected\.txt: names 'b/7\.png', which is no image"):
        export_labels(data, tmp_path / "more", "coco", frames=names)
    assert not (tmp_path / "more").exists()


def test_label_studio_is_told_the_model_and_how_sure_it_was(data, tmp_path):
    frames = [
        LabelledFrame("x", f"labels/{name}", [30, 10] + [0] * 17)
        for name in ("a/0.png", "b/0.png", "b/1.5.png")
    ]
    PseudoLabelsRecord(
        model_sha256="abcdef0123456789", label_space=SPACES["cityscapes-19"], selection={}, seed=0,
        thresholds=[0.5] * 19, mean_confidence=[0.9, 0.5] + [0] * 17, labelled_share=1.0,
        frames=frames,
    ).write(data / PseudoLabelsRecord.FILE)  # fmt: skip
    export_labels(data, tmp_path / "out", "label-studio", prefix="https://host/")
    tasks = json.loads((tmp_path / "out/tasks.json").read_text())
    said = {task["data"]["image"]: task["predictions"][0] for task in tasks}
    assert said["https://host/a/0.png"]["score"] == 0.8
    assert "score" not in said["https://host/2.png"]
    assert {one["model_version"] for one in said.values()} == {"edgeuda abcdef012345"}
    assert '<Label value="road" background="#804080"/>' in (tmp_path / "out/labels.xml").read_text()


def test_what_was_done_to_frames_travels_along(data, tmp_path):
    geometry = CameraGeometry((80, 48), None, (0, 0, *SIZE[::-1]))
    record = {"curation": {"crop": geometry.crop, "calibration": None}}
    record["geometries"] = [geometry.to_record()]
    write_json(tmp_path / "frames/frames.json", {"schema": "edgeuda.frames/1", **record})
    export_labels(data, tmp_path / "out", "coco")
    import_labels(tmp_path / "out", data, tmp_path / "back")
    found = treatment_of(tmp_path / "back/images/2.png")
    assert found is not None
    assert found.geometry == geometry


def test_bad_files_are_named(data, tmp_path):
    def refused(path, match):
        with pytest.raises(DataError, match=match):
            import_labels(path, data, tmp_path / "back")

    refused(tmp_path / "nothing.zip", "no such file or folder")
    (tmp_path / "x.zip").write_text("no archive")
    refused(tmp_path / "x.zip", r"a folder, a \.json file or a \.zip")
    (tmp_path / "x.json").write_text('{"schema": 1}')
    refused(tmp_path / "x.json", "JSON of COCO or Label Studio")
    (tmp_path / "png").mkdir()
    (tmp_path / "png/task-1-annotation-2-by-1-tag-road-0.png").write_bytes(b"")
    refused(tmp_path / "png", "does not say which frame a task is")
    export_labels(data, tmp_path / "out", "cvat")
    labelmap = tmp_path / "out/labelmap.txt"
    text = labelmap.read_text()
    labelmap.write_text(text.replace("road:128,64,128", "road:128,64,127"))
    refused(tmp_path / "out", r"SegmentationClass/.*expected the colours of .*\(128, 64, 128\)")
    labelmap.write_text(text.replace("road:128,64,128", "road:0,0,142"))
    refused(tmp_path / "out", "found the same for 'road' and 'car'")
    labelmap.write_text(text.replace("128,64,128", "128,64"))
    refused(tmp_path / "out", "line 3: expected NAME:RED,GREEN,BLUE")
    labelmap.write_text(text)
    mask = tmp_path / "out/SegmentationClass/2.png"
    mask.write_bytes(mask.read_bytes()[:-30])
    refused(tmp_path / "out", r"SegmentationClass/2\.png: expected a complete image")
    path = coco(tmp_path, [{"category_id": 9, "segmentation": [[1, 1, 9, 1, 9, 9]]}])
    refused(path, r"c\.json: 2\.png: expected a mask of a known category, found it damaged")
    path = coco(tmp_path, [{"category_id": 1, "segmentation": {"size": [9, 9], "counts": "?"}}])
    refused(path, "c.json: 2.png: expected a mask")
    assert not (tmp_path / "back").exists()


def test_nothing_is_overwritten_and_spaces_are_asked_for(data, tmp_path):
    export_labels(data, tmp_path / "out", "coco")
    with pytest.raises(OutputExistsError):
        export_labels(data, tmp_path / "out", "coco")
    with pytest.raises(OutputExistsError):
        import_labels(tmp_path / "out", data, tmp_path / "out")
    with pytest.raises(DataError, match="`label_space`"):
        import_labels(tmp_path / "out", tmp_path / "frames", tmp_path / "back")
    named = LabelSpace("named", ("background", "b"), ((1, 1, 1), (2, 2, 2)))
    with pytest.raises(ConfigError, match="has a class 'background'"):
        cvat.write(tmp_path / "x", named, [])


def test_two_masks_of_one_frame_are_refused(data, tmp_path):
    export_labels(data, tmp_path / "out", "cvat")
    masks = tmp_path / "out/SegmentationClass"
    shutil.copy(masks / "2.png", masks / "again")
    (masks / "x").mkdir()
    shutil.copy(masks / "2.png", masks / "x/2.png")
    with pytest.raises(DataError, match="is listed twice"):
        import_labels(tmp_path / "out", data, tmp_path / "back")


def test_a_mask_of_a_wrong_form_is_refused(tmp_path):
    (tmp_path / "labelmap.txt").write_text("a:1,1,1::\n")
    with pytest.raises(DataError, match=r"expected masks in SegmentationClass/\*\.png"):
        cvat.read(tmp_path / "labelmap.txt")
    cv2.imwrite(str(tmp_path / "m.png"), np.full((2, 2), 3, np.uint8))
    (drawn,) = cvat.read(Path(tmp_path / "labelmap.txt")).frames
    with pytest.raises(DataError, match=r"indices of the 1 labels of .*found 3"):
        list(drawn.layers())


def test_background_is_a_class_where_the_label_space_says_so(tmp_path):
    write_image(tmp_path / "f/0.png", np.zeros((1, 3, 3), np.uint8))
    (tmp_path / "m").mkdir()
    (tmp_path / "m/labelmap.txt").write_text("background:9,9,9::\nb:2,2,2::\n")
    write_image(tmp_path / "m/0.png", np.uint8([[[9] * 3, [2] * 3, [0] * 3]]))
    for classes, ids in ((("background", "b"), [0, 1, IGNORE]), (("a", "b"), [IGNORE, 1, IGNORE])):
        space = LabelSpace("two", classes, ((1, 1, 1), (2, 2, 2)))
        import_labels(tmp_path / "m", tmp_path / "f", tmp_path / classes[0], space=space)
        assert read_label(tmp_path / classes[0] / "labels/0.png").tolist() == [ids]


def test_without_a_list_every_image_has_labels(data, tmp_path):
    (data / "labels/2.png").unlink()
    with pytest.raises(DataError, match="expected a label map for each image, 1 are missing"):
        export_labels(data, tmp_path / "out", "cvat")
