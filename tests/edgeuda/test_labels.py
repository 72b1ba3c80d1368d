"""Label spaces, their mappings, and the model spec that carries them."""

import json

import pytest

from edgeuda.errors import ConfigError, ModelError
from edgeuda.files import write_json
from edgeuda.labels import (
    IGNORE,
    SPACES,
    LabelSpace,
    counterparts,
    describe,
    label_space,
    mapping,
)
from edgeuda.spec import ModelSpec, Preprocessing


def test_spaces_have_the_sizes_in_their_names():
    for name, space in SPACES.items():
        # The 32nd class of CamVid is what is ignored; CARLA's spaces are named after versions.
        sizes = {"camvid-32": 31, "carla-0.9": 22, "carla-0.9.14": 28}
        assert len(space) == sizes.get(name, int(name.rsplit("-", 1)[1].split(".")[0]))


def test_what_built_in_spaces_say_about_each_other_is_complete():
    for space in SPACES.values():
        for name, group in space.groups.items():
            assert set(group) == set(space.classes), (space.name, name)
            assert {found for found in group.values() if found} <= set(SPACES[name].classes)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("carla-0.9.14", "cityscapes-19", {"RoadLine": "road", "Rider": "rider", "Static": None}),
        ("carla-0.9", "cityscapes-19", {"Vehicles": "car", "Pedestrian": "person", "Other": None}),
        ("carla-0.9.14", "camvid-11", {"SideWalks": "pavement", "Bus": "car", "Terrain": None}),
        ("cityscapes-19", "carla-3", {"road": "road", "car": "other"}),
        ("cityscapes-19", "cityscapes-16", {"truck": None, "bus": "bus"}),
        ("camvid-32", "camvid-11", {"Truck_Bus": "car", "LaneMkgsDriv": "road"}),
    ],
)
def test_published_groupings(source, target, expected):
    found = counterparts(SPACES[source], SPACES[target])
    assert {name: found[name] for name in expected} == expected


def test_spaces_of_ones_own_meet_by_name_and_synonym():
    own = LabelSpace("own", ("Trees", "side-walk", "Vehicle", "puddle"), ((1, 2, 3),) * 4)
    with pytest.raises(ConfigError, match=r"puddle of label space 'own'.*`ignore_unmapped`"):
        mapping(own, SPACES["cityscapes-19"])
    found = counterparts(own, SPACES["cityscapes-19"], ignore_unmapped=True)
    assert found == {
        "Trees": "vegetation", "side-walk": "sidewalk", "Vehicle": "car", "puddle": None
    }  # fmt: skip
    assert describe(found) == (
        "Trees -> vegetation, side-walk -> sidewalk, Vehicle -> car; ignored: puddle"
    )
    # Two classes that could be meant are none.
    two = LabelSpace("two", ("tree", "vegetation", "road"), ((1, 2, 3),) * 3)
    street = LabelSpace("street", ("road", "Trees"), ((1, 2, 3),) * 2)
    assert counterparts(street, two, ignore_unmapped=True) == {"road": "road", "Trees": None}


def test_a_file_says_what_its_classes_become(tmp_path):
    record = {
        "schema": "edgeuda.labels/1", "name": "depot", "classes": ["lane", "crate"],
        "palette": [[1, 2, 3], [4, 5, 6]],
        "groups": {"cityscapes-19": {"lane": "road", "crate": None}},
    }  # fmt: skip
    write_json(tmp_path / "depot.json", record)
    depot = label_space(str(tmp_path / "depot.json"))
    assert mapping(depot, SPACES["cityscapes-19"])[:3].tolist() == [0, IGNORE, IGNORE]
    for wrong, message in (
        ({"groups": {"cityscapes-19": {"lorry": "car"}}}, "lorry: no such class"),
        ({"palette": [[1, 2, 300], [4, 5, 6]]}, "wrong"),
        ({"files": "raw"}, "not in ids"),
    ):
        write_json(tmp_path / "bad.json", {**record, **wrong})
        with pytest.raises(ConfigError, match=message):
            label_space(str(tmp_path / "bad.json"))


def test_cityscapes_to_camvid_by_name():
    table = mapping(SPACES["cityscapes-19"], SPACES["camvid-11"])
    names = {
        source: SPACES["camvid-11"].classes[table[i]] if table[i] != IGNORE else None
        for i, source in enumerate(SPACES["cityscapes-19"].classes)
    }
    assert names["traffic light"] == names["traffic sign"] == "signsymbol"
    assert names["rider"] == names["bicycle"] == "bicyclist"
    assert names["terrain"] is None
    assert names["train"] is None
    assert (table[19:] == IGNORE).all()
    assert set(table[:19].tolist()) - {IGNORE} == set(range(11))


def test_unrelated_spaces_are_refused():
    other = LabelSpace("fruit-1", ("apple",), ((1, 2, 3),))
    with pytest.raises(ConfigError, match="No class"):
        mapping(other, SPACES["camvid-11"])


def test_a_space_of_ones_own_from_a_file(tmp_path):
    own = LabelSpace("own-2", ("road", "rest"), ((1, 2, 3), (4, 5, 6)))
    write_json(tmp_path / "own.json", own.to_record())
    assert label_space(str(tmp_path / "own.json")) == own
    with pytest.raises(ConfigError, match=r"did you mean 'camvid-11'.*cityscapes-19"):
        label_space("camvid11")


def test_spec_survives_json_and_damage_is_named():
    spec = ModelSpec("bisenet", 0.5, SPACES["camvid-11"], Preprocessing(64, 128))
    assert ModelSpec.from_json(spec.to_json(), "x") == spec
    record = json.loads(spec.to_json())
    del record["preprocessing"]
    with pytest.raises(ModelError, match=r"model\.onnx.*preprocessing"):
        ModelSpec.from_json(json.dumps(record), "model.onnx")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("width",), "nan"), (("width",), "inf"), (("width",), 1e6), (("width",), 0),
        (("preprocessing", "height"), 32 * 10**6), (("preprocessing", "height"), "inf"),
        (("preprocessing", "mean"), ["nan", 0, 0]), (("preprocessing", "std"), [1, "inf", 1]),
        (("preprocessing", "std"), [1, "nan", 1]),
    ],
)  # fmt: skip
def test_damaged_numbers_of_a_spec_are_refused(path, value):
    """Such a file once asked for petabytes, or normalised images to nothing."""
    spec = ModelSpec("bisenet", 0.5, SPACES["camvid-11"], Preprocessing(64, 128))
    record = json.loads(spec.to_json())
    *above, last = path
    place = record[above[0]] if above else record
    place[last] = value
    with pytest.raises(ModelError, match=r"model\.onnx: expected a model written by edgeuda"):
        ModelSpec.from_json(json.dumps(record), "model.onnx")


@pytest.mark.parametrize(("height", "width"), [(100, 128), (0, 64), (64, -32)])
def test_input_sizes_must_be_multiples_of_32(height, width):
    with pytest.raises(ConfigError, match="multiple of 32"):
        Preprocessing(height, width)
