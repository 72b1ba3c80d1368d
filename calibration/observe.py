"""What a graph says about a frame: its labels, and the scores behind them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from calibration.frames import FrameFiles
from calibration.ranges import Floats
from edgeuda.data.folders import class_counts
from edgeuda.errors import ModelError, require
from edgeuda.records.names import ProviderName
from edgeuda.spec import ModelSpec
from engines.bundle_model import model_file
from engines.onnx.graphs import load_graph, metadata_of
from engines.onnx.heads import labels_of, scores_of
from engines.onnx.metadata import spec_of
from engines.onnx.session import open_session
from engines.opening import ENGINE

if TYPE_CHECKING:
    import onnx

_SCORES = "edgeuda.scores"


@dataclass(frozen=True, eq=False)
class Observation:
    """One frame through one graph.

    Attributes:
        labels: ``[H, W]`` uint8 class ids, as the vehicle gets them.
        log_probabilities: ``[K, h, w]`` float32, before the last resize: a network of output stride
            8 scores every 8th pixel.
    """

    labels: npt.NDArray[np.uint8]
    log_probabilities: Floats

    @property
    def confidence(self) -> float:
        """Mean probability of the likeliest class, 0 to 1."""
        return float(np.exp(self.log_probabilities.max(0)).mean())


class Observer:
    """Runs a graph, FP32 or Q/DQ, so that its scores are seen too.

    Args:
        model: A graph of this project with any head; it is copied.
        threads: As in `open_session`.
        device: As in `open_session`.
        optimize: As in `open_session`.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        threads: int | None = None,
        device: ProviderName = "cpu",
        optimize: bool = True,
    ) -> None:
        onnx = require("onnx", "quantize")
        watched = copy.deepcopy(model)
        self._head: Any = watched.graph.output[0].name  # a `Head`
        # Cast, as a graph in half precision has its scores in it.
        watched.graph.node.append(
            onnx.helper.make_node(
                "Cast", [scores_of(watched)], [_SCORES], to=onnx.TensorProto.FLOAT
            )
        )
        watched.graph.output.append(
            onnx.helper.make_tensor_value_info(_SCORES, onnx.TensorProto.FLOAT, None)
        )
        self._session: Any = open_session(
            watched.SerializeToString(), threads=threads, device=device, optimize=optimize
        )

    def __call__(self, frame: npt.NDArray[np.uint8]) -> Observation:
        """Observe a frame, uint8 RGB ``[1, H, W, 3]``."""
        head, scores = (
            output[0] for output in self._session.run([self._head, _SCORES], {"image": frame})
        )
        labels = labels_of(self._head, head, *frame.shape[1:3])
        scores = scores - scores.max(0)
        log_sum = np.log(np.exp(scores).sum(0))
        return Observation(labels, np.asarray(scores - log_sum, np.float32))


@dataclass(frozen=True, eq=False)
class Probabilities:
    """Callable that maps a frame to its class probabilities, by an exported model.

    Attributes:
        observe: Runs the graph.
        spec: The model's spec.
    """

    observe: Observer
    spec: ModelSpec

    def __call__(self, image: npt.NDArray[np.uint8]) -> Floats:
        """Return ``[K, h, w]`` float32 for ``[H, W, 3]`` uint8 of the network's input size."""
        return np.exp(self.observe(image[None]).log_probabilities)


def probabilities_of(model: Path, threads: int | None = None) -> Probabilities:
    """Open an exported model to be asked for class probabilities, on the CPU.

    Args:
        model: ONNX file with any head, or a bundle, whose best model for the CPU is taken.
        threads: As in `open_session`.

    Raises:
        ModelError: If it is an engine, which tells labels only, or no model of this project.
        BundleError: See `engines.bundle_model.model_file`.
    """
    if model.suffix == ENGINE:
        msg = (
            f"{model}: is an engine, which tells labels and not how sure it is of them. Give the "
            "ONNX file that it was built from"
        )
        raise ModelError(msg)
    with model_file(model, "cpu") as file:
        graph = load_graph(file, "quantize")
    return Probabilities(Observer(graph, threads), spec_of(metadata_of(graph), str(model)))


def class_shares(
    model: onnx.ModelProto,
    spec: ModelSpec,
    frames: Sequence[Path],
    threads: int | None = None,
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> npt.NDArray[np.float64]:
    """Return the share of each predicted class in each frame, ``[frames, K]`` float64."""
    size, observe = spec.preprocessing, Observer(model, threads)
    files = FrameFiles.of(frames, size)
    shares = np.zeros((len(files), len(spec.label_space)))
    for position in range(len(files)):
        labels = observe(files[position]).labels
        shares[position] = class_counts([labels], shares.shape[1])[0] / labels.size
        report("looking for classes", position + 1, len(files))
    return shares
