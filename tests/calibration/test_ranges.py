import tracemalloc
import weakref

import numpy as np
import onnx
import onnx.helper as oh
import pytest

from calibration import ranges, rules
from calibration.placement import ORT_X86
from calibration.ranges import Histogram, collect
from edgeuda.errors import ConfigError, DataError, ModelError
from engines.onnx.index import index
from engines.onnx.session import open_session
from tiny_models import SPEC, exported, random_frames


@pytest.fixture(scope="module")
def model():
    return onnx.load_from_string(exported("labels"))


@pytest.fixture(scope="module")
def tensors(model):
    return ORT_X86.place(index(model.graph), frozenset()).measured()


def frames_of(count, seed=1):
    size = SPEC.preprocessing
    return [frame[None] for frame in random_frames(count, size.height, size.width, seed)]


def pooled(model, tensors, frames):
    """All values of the tensors over all frames, by brute force."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    for name in tensors:
        watched.graph.output.append(oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = open_session(watched.SerializeToString(), threads=1)
    runs = [session.run(list(tensors), {"image": frame}) for frame in frames]
    return {
        name: np.concatenate([run[i].ravel() for run in runs]) for i, name in enumerate(tensors)
    }


def test_ranges_equal_a_brute_force_over_all_frames(model, tensors):
    frames = frames_of(3)
    found = collect(model, tensors, frames, threads=1)
    assert tuple(found) == tensors
    for name, values in pooled(model, tensors, frames).items():
        assert found[name].low == values.min()
        assert found[name].high == values.max()
        assert found[name].counts.sum() == values.size
        for percent in (99.0, 99.9, 99.99):
            bin_width = (values.max() - values.min()) / len(found[name].counts)
            low, high = rules.percentile(found[name], percent)
            # "linear" percentiles may lie between two far values; the nearest rank is a value
            exact = np.percentile(values, [100 - percent, percent], method="inverted_cdf")
            assert abs(low - exact[0]) <= bin_width * 1.01, name
            assert abs(high - exact[1]) <= bin_width * 1.01, name


def test_chunks_change_nothing(model, tensors):
    frames = frames_of(2)
    whole = collect(model, tensors, frames, threads=1)
    chunks = []
    one_by_one = collect(
        model, tensors[:5], frames, chunk_bytes=1, threads=1, after_chunk=chunks.append
    )
    assert [list(chunk) for chunk in chunks] == [[name] for name in tensors[:5]]
    for name in tensors[:5]:
        assert one_by_one[name].low == whole[name].low
        np.testing.assert_array_equal(one_by_one[name].counts, whole[name].counts)


class CountingSession:
    """A session that knows how many of the arrays it ever returned are still alive."""

    def __init__(self, session):
        self.session, self.returned, self.most_alive = session, [], 0

    def run(self, names, feeds):
        outputs = self.session.run(names, feeds)
        self.returned += [weakref.ref(array) for array in outputs]
        alive = sum(reference() is not None for reference in self.returned)
        self.most_alive = max(self.most_alive, alive)
        return outputs


class FramesOnTheFly:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        size = SPEC.preprocessing
        return random_frames(1, size.height, size.width, index)[0][None]


def test_memory_does_not_grow_with_the_frames(model, tensors):
    def peak(count):
        tracemalloc.start()
        collect(model, tensors, FramesOnTheFly(count), threads=1)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(1)  # first-use caches
    frame_bytes = SPEC.preprocessing.height * SPEC.preprocessing.width * 3
    assert peak(42) - peak(2) < 10 * frame_bytes


def test_activations_are_not_kept(model, tensors, monkeypatch):
    """ONNX Runtime allocates its outputs itself, out of tracemalloc's sight."""
    sessions = []

    def counting(*args, **kwargs):
        sessions.append(CountingSession(open_session(*args, **kwargs)))
        return sessions[-1]

    monkeypatch.setattr(ranges, "open_session", counting)
    collect(model, tensors, FramesOnTheFly(10), threads=1)
    (session,) = sessions
    assert len(session.returned) == 2 * 10 * len(tensors)
    assert session.most_alive <= 2 * len(tensors)


def test_no_frames_and_no_numbers_are_refused(model, tensors):
    with pytest.raises(DataError, match="at least one frame"):
        collect(model, tensors, [], threads=1)
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    bias = next(t for t in broken.graph.initializer if t.name.endswith("conv1.weight_bias"))
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0] = np.inf
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    with pytest.raises(ModelError, match=r"'relu' is not finite"):
        collect(broken, ("relu",), frames_of(1), threads=1)


def test_percentile_cuts_both_tails():
    counts = np.zeros(100, np.int64)
    counts[0], counts[50], counts[99] = 1, 998, 1
    histogram = Histogram(-50.0, 50.0, counts)
    assert rules.maximum(histogram) == (-50.0, 50.0)
    assert rules.by_name("percentile", 100.0)(histogram) == (-50.0, 50.0)
    assert rules.by_name("percentile", 99.5)(histogram) == pytest.approx((0.0, 1.0))


def test_percentile_of_a_constant_is_the_constant():
    counts = np.zeros(8, np.int64)
    counts[0] = 5
    assert rules.percentile(Histogram(3.0, 3.0, counts), 99.99) == (3.0, 3.0)


@pytest.mark.parametrize(("name", "percent"), [("median", 99.0), ("percentile", 50.0)])
def test_unknown_rules_are_refused(name, percent):
    with pytest.raises(ConfigError, match="Expected a rule of max, percentile, frame-percentile"):
        rules.by_name(name, percent)


def histogram_of(values, bins=64):
    counts, edges = np.histogram(values, bins)
    return Histogram(float(edges[0]), float(edges[-1]), counts)


def squared_error(histogram, low, high, levels=rules.LEVELS):
    """Of rounding and saturation, counted bin by bin."""
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    total = 0.0
    for count, value in zip(histogram.counts, (edges[:-1] + edges[1:]) / 2, strict=True):
        if low <= value <= high:
            total += count * ((high - low) / levels) ** 2 / 12
        else:
            total += count * min((value - low) ** 2, (value - high) ** 2)
    return total


def long_tailed(signed, count=200_000):
    rng = np.random.default_rng(0)
    values = rng.exponential(1.0, count)
    values[:20] = 60  # what percentiles are for
    return np.where(rng.random(count) < 0.5, -0.3 * values, values) if signed else values


@pytest.mark.parametrize("signed", [False, True])
def test_onnxruntimes_percentile_is_of_both_ends_together(signed):
    """Its 99.99 is our 99.995, to the bin; our 99.99 cuts twice as much at each end."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    values = long_tailed(signed)
    values = values[np.abs(values) < 30]  # without the far outliers bins are fine enough
    histogram = histogram_of(values, 2048)
    width = (histogram.high - histogram.low) / 2048
    edges = np.linspace(histogram.low, histogram.high, 2049)
    collector = HistogramCollector("percentile", False, 2048, 128, 99.99, "same")
    entry = (histogram.counts, edges, np.float64(histogram.low), np.float64(histogram.high))
    collector.histogram_dict = {"x": entry}
    low, high = (float(end) for end in collector.compute_percentile()["x"][:2])
    same, ours = rules.percentile(histogram, 99.995), rules.percentile(histogram, 99.99)
    assert abs(same.low - low) <= 1.01 * width
    assert abs(same.high - high) <= 1.01 * width
    assert ours.high < high - 10 * width


@pytest.mark.parametrize("signed", [False, True])
def test_mse_is_the_least_error_over_all_pairs_of_edges(signed):
    histogram = histogram_of(long_tailed(signed))
    edges = np.linspace(histogram.low, histogram.high, 65)
    pairs = [(a, b) for a in edges for b in edges if a < b and a <= max(0, histogram.low)]
    best = min(squared_error(histogram, *pair) for pair in pairs if pair[1] >= 0)
    found = rules.mse(histogram)
    assert squared_error(histogram, *found) == pytest.approx(best, rel=1e-9)
    assert found.high < histogram.high
    assert found.low <= 0 or histogram.low > 0


def test_symmetric_mse_has_zero_in_the_middle():
    """A signed range spends its levels on both sides, so it cuts off more."""
    histogram = histogram_of(np.abs(long_tailed(signed=False)), 2048)
    one, two = rules.mse(histogram), rules.mse(histogram, symmetric=True)
    assert two.high < one.high < histogram.high
    ends = np.linspace(histogram.low, histogram.high, 2049)[1:]
    errors = [squared_error(histogram, -end, end, 254) for end in ends[::16]]
    assert two.high == pytest.approx(ends[::16][int(np.argmin(errors))], rel=0.1)


def divergence(reference, quantized):
    """As the definition has it."""
    p, q = reference / reference.sum(), quantized / quantized.sum()
    return sum(a * np.log(a / max(b, 1e-12)) for a, b in zip(p, q, strict=True) if a > 0)


def test_entropy_against_the_definition():
    histogram = histogram_of(np.abs(long_tailed(signed=False)), 512)
    counts = histogram.counts.astype(float)
    counts[0] = counts[1]
    scores = []
    for size in range(128, 513):
        reference = counts[:size].copy()
        reference[-1] += counts[size:].sum()
        quantized = np.zeros(size)
        for level in range(128):
            own = slice(level * size // 128, (level + 1) * size // 128)
            filled = counts[own] > 0
            if filled.any():
                quantized[own] = np.where(filled, counts[own].sum() / filled.sum(), 0)
        scores.append(divergence(reference, quantized))
    width = (histogram.high - histogram.low) / 512
    found = rules.entropy(histogram)
    assert found.high == pytest.approx(width * (128 + int(np.argmin(scores))), rel=1e-6)
    assert found.high < histogram.high


def test_entropy_keeps_a_flat_distribution_whole():
    flat = Histogram(0.0, 8.0, np.full(1024, 50))
    assert rules.entropy(flat).high == pytest.approx(8.0, rel=0.01)


@pytest.mark.parametrize("rule", [rules.mse, rules.entropy])
def test_constant_and_few_valued_activations(rule):
    constant = Histogram(0.0, 0.0, np.array([7] + [0] * 31))
    assert rule(constant) == (0.0, 0.0)
    two = Histogram(-1.0, 3.0, np.array([5] + [0] * 30 + [5]))
    low, high = rule(two)
    assert low <= 0 <= high
    assert np.isfinite([low, high]).all()
