"""Real images, where they lie beside the checkout (they cannot be redistributed)."""

import pytest

from edgeuda.data.folders import labelled_folder
from edgeuda.data.frames import frame_folder
from edgeuda.data.images import read_image
from edgeuda.errors import DataError
from edgeuda.labels import SPACES
from engines.onnx_export import export_onnx
from places import SHARED
from tiny_models import SPEC, random_network

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs real images in {SHARED}")


def test_carla_folder_is_read_in_its_label_space():
    folder = labelled_folder(SHARED / "carla", SPACES["carla-3"])
    assert len(folder) == 3300
    for index in range(0, len(folder), 100):
        image, label = folder.read(index)
        assert image.shape == (80, 160, 3)
        assert label.shape == (80, 160)


def test_camvid_labels_are_not_those_of_carla():
    folder = SHARED / "camvid"
    with pytest.raises(DataError, match=r"images|missing"):  # the test split has no labels
        labelled_folder(folder, SPACES["carla-3"])


def test_export_agrees_with_torch_on_camera_frames(tmp_path):
    paths = frame_folder(SHARED / "camvid" / "images" / "val").sample(6)
    frames = [read_image(path) for path in paths]
    record = export_onnx(random_network(), SPEC, tmp_path / "model.onnx", frames=frames)
    assert record.frames == 6
    assert record.pixels_equal >= 0.999
