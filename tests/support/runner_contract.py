"""What every runner must do; a test class per runtime inherits it and says how to open a model."""

from pathlib import Path
from time import perf_counter_ns

import numpy as np
import pytest

from edgeuda.data.images import resize_image, resize_label
from edgeuda.errors import DataError, ModelError
from engines.runner import Runner, segment, signals_of
from tiny_models import (
    SPEC,
    exported,
    random_frames,
    random_network,
    torch_logits,
    torch_signals,
)


class RunnerContract:
    """Inherit as ``TestX(RunnerContract)`` and override `open`."""

    min_pixels_equal = 0.999
    """Agreement with torch that the runtime's arithmetic allows."""

    def open(self, path: Path, confidence: bool = False) -> Runner:
        raise NotImplementedError

    @pytest.fixture(params=["labels", "logits"])
    def head(self, request):
        return request.param

    @pytest.fixture
    def path(self, tmp_path, head):
        path = tmp_path / f"{head}.onnx"
        path.write_bytes(exported(head))
        return path

    @pytest.fixture
    def runner(self, path):
        with self.open(path) as runner:
            yield runner

    def test_says_what_it_runs(self, runner, head):
        assert runner.spec == SPEC
        assert runner.head == head
        assert runner.precision == "fp32"
        name, version, *_ = runner.backend.split()
        assert name.isidentifier()
        assert version[0].isdigit()

    def test_says_where_the_last_calls_time_went(self, runner):
        image = np.stack(random_frames(1, 64, 128))
        start = perf_counter_ns()
        runner(image)
        took = perf_counter_ns() - start
        host = {name: ns for name, ns in runner.parts.items() if not name.startswith("gpu")}
        copies = {"copy_in", "copy_out"}
        assert {"inference", "upsample"} <= set(host) <= {"inference", "upsample", *copies}
        assert min(host.values()) >= 0
        assert sum(host.values()) <= took

    def test_says_how_it_ran(self, runner):
        runner(np.stack(random_frames(1, 64, 128)))
        assert all(isinstance(word, str) for pair in runner.execution.items() for word in pair)
        assert all(isinstance(line, str) for line in runner.fallbacks)

    def test_its_buffer_is_an_input_like_any_other(self, runner):
        image = np.stack(random_frames(1, 64, 128, seed=5))
        expected = runner(image)
        buffer = runner.buffer()
        if buffer is not None:
            assert (buffer.shape, buffer.dtype) == (image.shape, np.uint8)
            buffer[:] = image
            np.testing.assert_array_equal(runner(buffer), expected)
            assert runner.buffer() is buffer

    @pytest.mark.parametrize("batch", [1, 3])
    def test_labels_are_those_of_torch(self, runner, batch):
        images = np.stack(random_frames(batch, 64, 128, seed=3))
        labels = runner(images)
        assert labels.dtype == np.uint8
        assert labels.shape == (batch, 64, 128)
        expected = torch_logits(random_network(), images).argmax(1)
        assert np.mean(labels == expected) >= self.min_pixels_equal

    def test_result_survives_the_next_call(self, runner):
        first, second = (np.stack(random_frames(1, 64, 128, seed=seed)) for seed in (1, 2))
        labels = runner(first)
        kept = labels.copy()
        assert not np.array_equal(runner(second), kept)
        np.testing.assert_array_equal(labels, kept)

    def test_accepts_views(self, runner):
        """A frame cut out of a larger one, or flipped, is not contiguous in memory."""
        images = np.stack(random_frames(1, 64, 200, seed=4))
        view = images[:, :, 130:2:-1]
        np.testing.assert_array_equal(runner(view), runner(np.ascontiguousarray(view)))

    @pytest.mark.parametrize(
        "images",
        [
            np.zeros((1, 64, 64, 3), np.uint8),
            np.zeros((64, 128, 3), np.uint8),
            np.zeros((1, 3, 64, 128), np.uint8),
            np.zeros((1, 64, 128, 3), np.float32),
            np.zeros((0, 64, 128, 3), np.uint8),
        ],
        ids=["size", "no batch", "channels first", "float", "empty"],
    )
    def test_refuses_other_input(self, runner, images):
        with pytest.raises(DataError, match=r"Expected images as uint8 \[N, 64, 128, 3\], found"):
            runner(images)

    def test_segment_returns_labels_at_the_frames_size(self, runner):
        frame = random_frames(1, 90, 250)[0]
        labels = segment(runner, frame)
        inner = runner(resize_image(frame, 64, 128)[None])[0]
        np.testing.assert_array_equal(labels, resize_label(inner, 90, 250))

    @pytest.fixture
    def sure(self, tmp_path, head):
        """A graph that says how sure it is."""
        path = tmp_path / f"{head}-sure.onnx"
        path.write_bytes(exported(head, confidence=True))
        return path

    @pytest.mark.parametrize("batch", [1, 3])
    def test_confidence_and_features_are_those_of_torch(self, sure, batch):
        images = np.stack(random_frames(batch, 64, 128, seed=3))
        levels, features = torch_signals(random_network(), images)
        with self.open(sure, confidence=True) as runner:
            for _ in range(2):  # a captured sequence is replayed
                found = runner.signals(images)
            kept = found.confidence.copy(), found.features.copy()
            runner.signals(images[:, ::-1])
            np.testing.assert_array_equal(found.confidence, kept[0])  # they survive it
            np.testing.assert_array_equal(found.features, kept[1])
            np.testing.assert_array_equal(found.labels, runner(images))
        assert found.confidence.dtype == np.uint8
        assert found.confidence.shape == (batch, 8, 16)
        assert np.abs(found.confidence - levels).max() < 0.51
        assert len(np.unique(found.confidence)) > 20
        assert (found.features.dtype, found.features.shape) == (np.float32, (batch, 64))
        np.testing.assert_allclose(found.features, features, rtol=1e-4, atol=1e-4)

    def test_who_does_not_ask_gets_the_same_labels_and_no_confidence(self, runner, sure):
        images = np.stack(random_frames(2, 64, 128, seed=3))
        with self.open(sure) as other:
            np.testing.assert_array_equal(other(images), runner(images))
            with pytest.raises(ModelError, match=r"opened for labels only.*`confidence`"):
                other.signals(images)

    def test_a_graph_without_confidence_says_so(self, path):
        with pytest.raises(ModelError, match=r"expected an output 'confidence'.*`confidence`"):
            self.open(path, confidence=True)

    def test_a_frames_signals(self, sure):
        frame = random_frames(1, 90, 250)[0]
        with self.open(sure, confidence=True) as runner:
            found = signals_of(runner, frame, stages := {})
            np.testing.assert_array_equal(found.labels, segment(runner, frame))
            inner = runner.signals(resize_image(frame, 64, 128)[None])
            np.testing.assert_array_equal(found.confidence, inner.confidence[0])
            np.testing.assert_array_equal(found.features, inner.features[0])
            assert found.fed.shape == (64, 128, 3)
        assert {"resize", "inference", "upsample"} <= stages.keys()

    def test_missing_file(self, tmp_path):
        with pytest.raises(ModelError, match=r"absent\.onnx: .*no such file"):
            self.open(tmp_path / "absent.onnx")

    @pytest.mark.parametrize("content", [b"", b"not a model" * 9], ids=["empty", "text"])
    def test_broken_file(self, tmp_path, content):
        path = tmp_path / "broken.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"broken\.onnx: expected"):
            self.open(path)
