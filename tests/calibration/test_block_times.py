"""Blocks that stay float because this machine is faster so."""

import json
from types import SimpleNamespace

import onnx
import pytest

from calibration import block_times
from calibration.block_times import faster_in_float
from calibration.options import Options
from calibration.quantize import calibrate
from calibration.sensitivity import groups_of
from edgeuda.errors import ConfigError
from edgeuda.records.calibration import CalibrationRecord, record_path
from tiny_models import SPEC, exported, random_frames, write_frames


@pytest.fixture(scope="module")
def model():
    return onnx.load_from_string(exported("labels"))


@pytest.fixture
def machine(monkeypatch):
    """A processor whose time is what `cost` says of the blocks that are float."""
    state = SimpleNamespace(now=0.0, cost=lambda _floating: 10.0, opened=[])

    def open_session(content, threads):
        floating = frozenset(json.loads(content))
        state.opened.append((floating, threads))

        def run(_outputs, _feeds):
            state.now += state.cost(floating) / 1e3

        return SimpleNamespace(run=run, get_inputs=lambda: [SimpleNamespace(name="image")])

    monkeypatch.setattr(block_times, "open_session", open_session)
    monkeypatch.setattr(block_times.time, "process_time", lambda: state.now)
    return state


def found(model, groups, **given):
    convs = [conv for members in groups.values() for conv, _ in members]

    def quantize(floating):
        text = json.dumps(sorted(floating)).encode()
        return SimpleNamespace(SerializeToString=lambda: text)

    return faster_in_float(model, convs, quantize, random_frames(1, 8, 8)[0][None], **given)


def test_blocks_that_gain_alone_and_together_stay_float(model, machine):
    convs = [node.output[0] for node in model.graph.node if node.op_type == "Conv"]
    groups = groups_of(model, convs)
    one, two, three, *_ = [frozenset(conv for conv, _ in groups[name]) for name in groups]

    def cost(floating):
        gain = 2 * (one <= floating) + 1 * (two <= floating) + 0.05 * (three <= floating)
        both = 1.5 * (one | two <= floating)  # a boundary between them
        return 10 - gain + both + 0.5 * len(floating - one - two - three)

    machine.cost = cost
    measured = found(model, groups, threads=1)
    names = list(groups)
    assert measured.kept_float == (names[0],)
    assert measured.convs == one
    assert (measured.int8_ms, measured.chosen_ms) == pytest.approx((10, 8))
    assert [block.group for block in measured.blocks] == names
    assert measured.blocks[2].float_ms == pytest.approx(9.95)  # less than counts
    assert (measured.clock, measured.threads) == ("processor", 1)
    assert {threads for _, threads in machine.opened} == {1}


def test_nothing_is_faster_in_float_where_integers_win(model, machine):
    convs = [node.output[0] for node in model.graph.node if node.op_type == "Conv"]
    machine.cost = lambda floating: 10 + len(floating)
    measured = found(model, groups_of(model, convs), threads=1)
    assert (measured.kept_float, measured.convs) == ((), frozenset())
    assert measured.chosen_ms == measured.int8_ms == pytest.approx(10)


def test_what_is_faster_in_float_is_not_quantized(tmp_path, monkeypatch):
    path, out = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    path.write_bytes(exported("labels"))
    size = SPEC.preprocessing
    frames = write_frames(tmp_path, random_frames(2, size.height, size.width, seed=7))
    turns = iter([(10.0, 9.0), *[(10.0, 11.0)] * 100])  # the first block gains ...
    again = iter([(10.0, 9.0), (10.0, 9.0)])  # ... still when it is tried, and in the end
    seen = []

    def in_turns(*callers):
        seen.append(callers)
        return next(turns if len(seen) <= blocks else again)

    proto = onnx.load(path)
    convs = [node.output[0] for node in proto.graph.node if node.op_type == "Conv"]
    plain = calibrate(path, frames, tmp_path / "plain.onnx", Options("ort-x86", threads=1))
    int8 = {layer.weight for layer in plain.layers if layer.int8}
    placed = [c for c in convs if next(
        n.input[1] for n in proto.graph.node if n.output[0] == c) in int8]  # fmt: skip
    blocks = len(groups_of(proto, placed))
    monkeypatch.setattr(block_times, "_in_turns", in_turns)
    record = calibrate(path, frames, out, Options("ort-x86", measure=True, threads=1))
    first = record.measured.blocks[0]
    assert record.measured.kept_float == (first.group,)
    lost = {layer.weight for layer in record.layers if not layer.int8} - {
        layer.weight for layer in plain.layers if not layer.int8
    }
    assert len(lost) == len(first.convs) > 0
    assert record.int8_convs == plain.int8_convs - len(lost)
    assert CalibrationRecord.read(record_path(out)) == record


@pytest.mark.parametrize("other", [{"runtime": "tensorrt"}, {"quantizer": "modelopt"}])
def test_other_runtimes_choose_themselves(other):
    with pytest.raises(ConfigError, match="TensorRT chooses itself"):
        Options(**{"runtime": "ort-x86", "measure": True, **other})
