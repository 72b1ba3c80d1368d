"""Label spaces, their mappings, and the model spec that carries them."""

import json

import pytest

from edgeuda.errors import ConfigError, ModelError
from edgeuda.files import write_json
from edgeuda.labels import IGNORE, SPACES, LabelSpace, label_space, mapping
from edgeuda.spec import ModelSpec, Preprocessing


def test_spaces_have_the_sizes_in_their_names():
    for name, space in SPACES.items():
        void = 1 if name == "camvid-32" else 0  # its 32nd class is what is ignored
        assert len(space) == int(name.rsplit("-", 1)[1]) - void


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
    with pytest.raises(ConfigError, match="camvid-11"):
        label_space("camvid-12")


def test_spec_survives_json_and_damage_is_named():
    spec = ModelSpec("bisenet-r18", 0.5, SPACES["camvid-11"], Preprocessing(64, 128))
    assert ModelSpec.from_json(spec.to_json(), "x") == spec
    record = json.loads(spec.to_json())
    del record["preprocessing"]
    with pytest.raises(ModelError, match=r"model\.onnx.*preprocessing"):
        ModelSpec.from_json(json.dumps(record), "model.onnx")


@pytest.mark.parametrize(("height", "width"), [(100, 128), (0, 64), (64, -32)])
def test_input_sizes_must_be_multiples_of_32(height, width):
    with pytest.raises(ConfigError, match="multiple of 32"):
        Preprocessing(height, width)
