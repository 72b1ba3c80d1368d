"""An exported segmentation graph as a torch module, so that it can be trained further."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeuda.errors import ModelError, require

if TYPE_CHECKING:
    import onnx

Hook = Callable[[str, int, str, Tensor], Tensor]
"""Called for each float input a node reads, with the node's first output, the input's position and
name, and its value; returns what the node reads instead."""


def _plain(_node: str, _position: int, _name: str, value: Tensor) -> Tensor:
    return value


class OnnxGraph(nn.Module):
    """The operators of an ONNX graph, in order.

    Weights and biases of convolutions are parameters, called by `parameter_of`; other constants are
    buffers. Operators are those of this project's exports.

    Args:
        model: An FP32 graph that takes ``image``, uint8 ``[N, H, W, 3]``.
        output: Name of the tensor to compute.

    Raises:
        ModelError: If an operator is not known.
    """

    def __init__(self, model: onnx.ModelProto, output: str) -> None:
        super().__init__()
        onnx = require("onnx", "train")
        self.output = output
        self.input = model.graph.input[0].name
        needed = {output}
        nodes = []
        for node in reversed(model.graph.node):
            if needed & set(node.output):
                needed |= set(node.input)
                nodes.append(node)
        self.steps = [
            (
                node.op_type,
                tuple(node.input),
                node.output[0],
                {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
            )
            for node in reversed(nodes)
        ]
        unknown = sorted({kind for kind, *_ in self.steps} - _OPERATORS.keys())
        if unknown:
            msg = f"The graph has operators that cannot be trained: {', '.join(unknown)}"
            raise ModelError(msg)
        trained = {name for kind, inputs, *_ in self.steps if kind == "Conv" for name in inputs[1:]}
        self.places: dict[str, str] = {}
        for number, tensor in enumerate(model.graph.initializer):
            if tensor.name not in needed:
                continue
            value = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
            self.places[tensor.name] = f"constant{number}"
            if tensor.name in trained and value.is_floating_point():
                self.register_parameter(f"constant{number}", nn.Parameter(value))
            else:
                self.register_buffer(f"constant{number}", value)

    def parameter_of(self, name: str) -> Tensor:
        """Return the constant that the graph calls ``name``."""
        found: Tensor = getattr(self, self.places[name])
        return found

    def trained(self) -> dict[str, Tensor]:
        """Return the weights and biases by the names the graph gives them."""
        return {
            name: self.parameter_of(name).detach()
            for name, place in self.places.items()
            if place in self._parameters
        }

    def forward(self, image: Tensor, hook: Hook = _plain) -> Tensor:
        """Compute the output for images, uint8 ``[N, H, W, 3]``."""
        values: dict[str, Tensor] = {self.input: image}
        readers: dict[str, int] = {}
        for _, inputs, *_ in self.steps:
            for name in inputs:
                readers[name] = readers.get(name, 0) + 1
        for kind, inputs, output, attributes in self.steps:
            read: list[Tensor | None] = []
            for position, name in enumerate(inputs):
                if not name:
                    read.append(None)
                    continue
                value = values[name] if name in values else self.parameter_of(name)
                if value.is_floating_point():
                    value = hook(output, position, name, value)
                read.append(value)
                readers[name] -= 1
                if not readers[name]:
                    values.pop(name, None)
            values[output] = _OPERATORS[kind](read, attributes)
        return values[self.output]


Read = list[Any]
Attributes = Mapping[str, Any]


def _symmetric(pads: list[int], kind: str) -> tuple[int, ...]:
    half = len(pads) // 2
    if pads[:half] != pads[half:]:
        msg = f"{kind}: expected the same padding on both sides, found {pads}"
        raise ModelError(msg)
    return tuple(pads[:half])


def _conv(read: Read, attributes: Attributes) -> Tensor:
    bias = read[2] if len(read) > 2 else None
    return F.conv2d(
        read[0],
        read[1],
        bias,
        tuple(attributes.get("strides", (1, 1))),
        _symmetric(list(attributes.get("pads", (0, 0, 0, 0))), "Conv"),
        tuple(attributes.get("dilations", (1, 1))),
        int(attributes.get("group", 1)),
    )


def _max_pool(read: Read, attributes: Attributes) -> Tensor:
    return F.max_pool2d(
        read[0],
        tuple(attributes["kernel_shape"]),
        tuple(attributes.get("strides", (1, 1))),
        _symmetric(list(attributes.get("pads", (0, 0, 0, 0))), "MaxPool"),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )


def _mean(read: Read, attributes: Attributes) -> Tensor:
    axes = read[1].tolist() if len(read) > 1 else attributes["axes"]
    kept: Tensor = read[0].mean(tuple(axes), keepdim=bool(attributes.get("keepdims", 1)))
    return kept


def _resize(read: Read, attributes: Attributes) -> Tensor:
    mode = attributes.get("mode", b"nearest").decode()
    aligned = attributes.get("coordinate_transformation_mode", b"half_pixel") == b"align_corners"
    sizes = read[3] if len(read) > 3 and read[3] is not None else None
    scales = None if sizes is not None else [float(s) for s in read[2][2:]]
    size = None if sizes is None else [int(s) for s in sizes[2:]]
    if mode == "nearest":
        return F.interpolate(read[0], size, scales, mode="nearest")
    return F.interpolate(read[0], size, scales, mode="bilinear", align_corners=aligned)


def _cast(read: Read, attributes: Attributes) -> Tensor:
    kinds = {1: torch.float32, 2: torch.uint8, 6: torch.int32, 7: torch.int64, 9: torch.bool}
    cast: Tensor = read[0].to(kinds[attributes["to"]])
    return cast


def _clip(read: Read, _: Attributes) -> Tensor:
    lower, upper = [*read[1:], None, None][:2]
    clipped: Tensor = torch.clamp(read[0], lower, upper)
    return clipped


def _hard_sigmoid(read: Read, attributes: Attributes) -> Tensor:
    slope, middle = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    gate: Tensor = (read[0] * slope + middle).clamp(0, 1)
    return gate


_OPERATORS: dict[str, Callable[[Read, Attributes], Tensor]] = {
    "Add": lambda read, _: read[0] + read[1],
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda read, attributes: torch.cat(read, attributes["axis"]),
    "Conv": _conv,
    "Div": lambda read, _: read[0] / read[1],
    "GlobalAveragePool": lambda read, _: read[0].mean((2, 3), keepdim=True),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda read, _: F.hardswish(read[0]),
    "MaxPool": _max_pool,
    "Mul": lambda read, _: read[0] * read[1],
    "ReduceMean": _mean,
    "Relu": lambda read, _: F.relu(read[0]),
    "Resize": _resize,
    "Sigmoid": lambda read, _: torch.sigmoid(read[0]),
    "Sub": lambda read, _: read[0] - read[1],
    "Transpose": lambda read, attributes: read[0].permute(*attributes["perm"]),
}
