"""Makes `data/annotations` with the tools' own writers, and checks that they read what we write.

Datumaro and Label Studio's SDK install another OpenCV over ours, so this runs in an environment of
its own and its files are kept::

    python -m venv foreign && foreign/bin/pip install datumaro==1.13.12 label-studio-sdk==2.1.2
    foreign/bin/python tests/support/foreign_labels.py write tests/support/data/annotations
    edgeuda data export-labels --data LABELLED --format cvat --out cvat   # coco, label-studio
    foreign/bin/python tests/support/foreign_labels.py read LABELLED cvat coco label-studio
"""

import json
import sys
from pathlib import Path

import cv2
import datumaro as dm
import numpy as np
from label_studio_sdk.converter import brush

NAMES = ("road", "car", "traffic light")
"""Another order than that of any label space; a name with a blank."""
COLOURS = ((0, 0, 0), (250, 50, 83), (1, 2, 3), (51, 221, 255))
HEIGHT, WIDTH = 12, 20


def label(number):
    """A label map whose ids are positions in `NAMES`, 255 where nothing is drawn."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    found = ((rows * 2 + columns * (number + 1)) // 9 % 3).astype(np.uint8)
    found[:3, 5:9] = 255
    return found


def write(out):
    """Write the same labels of ``a/0.png`` and ``1.png`` in every form."""
    frames = {"a/0": label(0), "1": label(1)}
    for form, save in (("voc_segmentation", "cvat"), ("voc_segmentation", "voc"),
                       ("coco_instances", "coco"), ("coco_panoptic", "panoptic")):  # fmt: skip
        items = []
        for name, ids in frames.items():
            masks = [
                dm.Mask(image=(ids == index), label=index + (form[0] == "v"), group=index + 1,
                        id=index + 1, z_order=index)
                for index in range(len(NAMES))
            ]  # fmt: skip
            image = dm.Image.from_numpy(np.zeros((HEIGHT, WIDTH, 3), np.uint8), ext=".png")
            items.append(dm.DatasetItem(id=name, subset="default", media=image, annotations=masks))
        names = (["background"] if form[0] == "v" else []) + list(NAMES)
        kinds = {dm.AnnotationType.label: dm.LabelCategories.from_iterable(names)}
        if save == "cvat":  # which names a colour for each label; without, they are Pascal VOC's
            kinds[dm.AnnotationType.mask] = dm.MaskCategories(dict(enumerate(COLOURS)))
        dataset = dm.Dataset.from_iterable(items, categories=kinds)
        how = {"label_map": "source"} if form[0] == "v" else {}
        dataset.export(str(out / save), form, save_media=False, **how)
    tasks = []
    for number, (name, ids) in enumerate(frames.items()):
        results = [
            {
                "id": str(index), "type": "brushlabels", "from_name": "tag", "to_name": "image",
                "original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0,
                "value": {"format": "rle", "brushlabels": [NAMES[index]],
                          "rle": brush.mask2rle(np.uint8(255) * (ids == index))},
            }
            for index in range(len(NAMES))
        ]  # fmt: skip
        tasks.append({
            "id": number + 7, "data": {"image": f"/data/upload/1/0123abcd-{Path(name).name}.png"},
            "annotations": [{"id": 1, "was_cancelled": False, "completed_by": 1,
                             "result": results}],
        })  # fmt: skip
    (out / "label-studio.json").write_text(json.dumps(tasks))


def read(labelled, cvat, coco, label_studio):
    """Compare what the tools read with the label maps that were handed over."""
    names = json.loads((labelled / "dataset.json").read_text())["label_space"]["classes"]
    wanted = {p.stem: cv2.imread(str(p), 0) for p in (labelled / "labels").glob("*.png")}
    for folder, form in ((cvat, "voc_segmentation"), (coco, None)):
        if form is None:
            (folder / "annotations").mkdir(exist_ok=True)
            file = folder / "annotations/instances_default.json"
            file.write_bytes((folder / "annotations.json").read_bytes())
            form = "coco_instances"
        dataset = dm.Dataset.import_from(str(folder), form)
        labels = dataset.categories()[dm.AnnotationType.label]
        for item in dataset:
            found = np.full(wanted[item.id].shape, 255, np.uint8)
            for mask in item.annotations:
                if mask.type != dm.AnnotationType.mask:  # the box of one
                    continue
                found[mask.image.astype(bool)] = names.index(labels[mask.label].name)
            assert np.array_equal(found, wanted[item.id]), (form, item.id)
        assert len(dataset) == len(wanted)
        print(f"datumaro reads {len(dataset)} frames of {form} to the pixel")
    tasks = json.loads((label_studio / "tasks.json").read_text())
    for task in tasks:
        stem = Path(task["data"]["frame"]).stem
        found = np.full(wanted[stem].shape, 255, np.uint8)
        for result in task["predictions"][0]["result"]:
            opaque = brush.decode_rle(result["value"]["rle"]).reshape(*found.shape, 4)[:, :, 3]
            found[opaque > 0] = names.index(result["value"]["brushlabels"][0])
        assert np.array_equal(found, wanted[stem]), stem
    print(f"Label Studio's SDK reads {len(tasks)} frames to the pixel")


if __name__ == "__main__":
    how, *paths = sys.argv[1:]
    {"write": write, "read": read}[how](*map(Path, paths))
