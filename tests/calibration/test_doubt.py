"""A network and its ONNX file doubt alike: which frames are chosen does not depend on the form."""

import numpy as np
import pytest

from calibration.observe import probabilities_of
from edgeuda.data.frames import frame_folder
from edgeuda.errors import ModelError
from edgeuda.frame_selection import select_frames
from edgeuda.models.checkpoint import save_model
from edgeuda.models.subject import probabilities_of as probabilities_of_network
from edgeuda.records.predictions import ModelFile
from tiny_models import SPEC, exported, random_frames, random_network, write_frames

FILE = ModelFile("net", "0" * 64)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_frames(root / "frames", random_frames(8, 90, 200, seed=5))
    save_model(random_network(), SPEC, root / "model.safetensors")
    for head in ("labels", "scores"):
        (root / f"{head}.onnx").write_bytes(exported(head))
    return root


@pytest.mark.parametrize("head", ["labels", "scores"])
def test_a_graph_tells_the_probabilities_of_its_network(models, head):
    graph = probabilities_of(models / f"{head}.onnx", threads=1)
    network = probabilities_of_network(models / "model.safetensors")
    image = random_frames(1, 64, 128)[0]
    theirs, ours = graph(image), network(image)
    assert ours.shape == (11, 8, 16)
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    np.testing.assert_allclose(ours.sum(0), 1, atol=1e-5)


def test_both_rank_frames_alike(models):
    asked = (probabilities_of(models / "labels.onnx"), probabilities_of_network(models))
    ranked = [
        [one.frame for one in select_frames(who, FILE, frame_folder(models / "frames"), 5).ranked]
        for who in asked
    ]
    assert ranked[0] == ranked[1]
    assert len(set(ranked[0])) == 5


def test_an_engine_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"is an engine, which tells labels.*ONNX file"):
        probabilities_of(tmp_path / "x.engine")
