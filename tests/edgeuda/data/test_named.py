"""Names of frames in lists and records, and the files that they mean."""

from pathlib import Path

import pytest

from edgeuda.data.named import ByName, read_names
from edgeuda.errors import DataError
from edgeuda.files import write_json
from edgeuda.records.calibration import ClassAgreement
from edgeuda.records.diff import DiffRecord
from edgeuda.records.predictions import ModelFile

FILES = [Path("root/images/a/1.png"), Path("root/images/b/1.png"), Path("root/images/b/2.5.jpg")]


def test_a_file_is_found_by_what_tells_it_apart():
    find = ByName(FILES, "frame in root")
    assert find("2.5.jpg", "list") == FILES[2]
    assert find("2.5", "list") == FILES[2]  # what follows the dot may be no suffix
    assert find("elsewhere/2.5.png", "list") == FILES[2]  # there is no other
    assert find("a/1.png", "list") == FILES[0]
    assert find("b\\1", "list") == FILES[1]
    assert find("images/b/1.jpg", "list") == FILES[1]
    assert find("JPEGImages/b/1", "list") == FILES[1]
    top = Path("root/images/1.png")
    assert ByName([*FILES, top], "frame")("1.png", "list") == top


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("1.png", "more than one such frame in root: root/images/a/1.png and"),
        ("c/1.png", "which is no frame in root"),
        ("3", "no frame in root"),
        ("2,5.jpg", "no frame in root, did you mean '2.5'"),
    ],
)
def test_a_name_of_no_file_or_of_two_is_refused(name, why):
    with pytest.raises(DataError, match=f"^list: names '{name}'.*{why}"):
        ByName(FILES, "frame in root")(name, "list")


def test_a_list_is_read_in_its_order(tmp_path):
    path = tmp_path / "frames.txt"
    path.write_text("b/2.png\n\n# why\na 1.png\n")
    assert read_names(path) == ["b/2.png", "a 1.png"]
    path.write_text("# nothing\n")
    with pytest.raises(DataError, match=r"frames\.txt: expected the names of frames"):
        read_names(path)
    with pytest.raises(DataError, match="expected a readable list"):
        read_names(tmp_path / "none.txt")


def test_the_table_of_an_evaluation_ranks_by_miou(tmp_path):
    path = tmp_path / "scores.images.csv"
    rows = ("x/1.png,9,80,70.1", "x/2.png,9,80,nan", '"x/3,a.png",9,80,9.5', "x/4.png,9,80,")
    path.write_text("image,pixels,pixel_accuracy,miou\n" + "\n".join(rows))
    assert read_names(path)[:2] == ["x/3,a.png", "x/1.png"]


def test_the_worst_frames_of_two_models_are_taken(tmp_path):
    path = tmp_path / "diff.json"
    files = ModelFile("a", "0"), ModelFile("b", "1")
    classes = {"road": ClassAgreement(1.0, 1.0, None)}
    record = DiffRecord(
        frames=("1.png", "2.png", "3.png"), agreement=0.9, frame_agreement=(1.0, 0.8, 0.9),
        classes=classes, regions=((1.0,),), divergence=0.0, confidence=0.9, confidence_shift=0.0,
        worst=(1, 2, 0), models=files,
    )  # fmt: skip
    record.write(path)
    assert read_names(path) == ["2.png", "3.png", "1.png"]
    write_json(path, {"schema": "edgeuda.diff/1", "frames": ["1.png"], "worst": [1]})
    with pytest.raises(DataError, match=r"diff\.json: its 'edgeuda\.diff/1' record is damaged"):
        read_names(path)
    write_json(path, {"schema": "edgeuda.bench/2"})
    with pytest.raises(DataError, match=r"data select.*or `edgeuda diff`, found schema 'ed"):
        read_names(path)
