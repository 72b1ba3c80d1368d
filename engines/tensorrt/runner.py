"""Running an engine with TensorRT 8.6 to 11, by tensor names, on one stream."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeuda.errors import DataError, DependencyError, DeviceError, ModelError
from edgeuda.records.build import BuildRecord
from edgeuda.records.names import Head, Precision
from edgeuda.spec import ModelSpec
from engines.cuda.device import Device, open_device
from engines.onnx.confidence import BESIDE, CONFIDENCE, beside
from engines.onnx.heads import labels_of
from engines.runner import ImageBatch, Labels, Signals, check_images, not_asked
from engines.tensorrt.cache import load_plan, record_path
from engines.tensorrt.engine import load_engine
from engines.tensorrt.library import Library, load_tensorrt

logger = logging.getLogger(__name__)


class TensorRTRunner:
    """A `Runner` on an engine that `edgeuda build` built on this machine.

    The camera image is copied to pinned memory, from there to the device, and labels come back the
    same way, all on one stream; a GPU that shares the host's memory reads and writes the pinned
    memory itself. For each batch size the sequence is captured once as a CUDA graph, where the
    device's package can, and replayed. A caller who writes frames into `buffer` saves the first
    copy.

    Args:
        path: The engine; its record lies beside it.
        library: The TensorRT to run with; None loads the one that built it.
        device: The device; None opens the first package that works.
        graphs: Whether sequences are captured and replayed.
        fused: Whether head ``scores`` becomes labels on the device, where its package can; else
            the host enlarges them.
        mapped: Whether the device works on the pinned memory, without copies; None means that it
            does where it shares the host's memory.

    Raises:
        DeviceError: If there is no usable device.
        DataError: If the engine has no record.
        ModelError: If it is not the engine of its record, or this TensorRT cannot load it.
        DependencyError: If TensorRT, or a package for device memory, is not installed.
    """

    def __init__(
        self,
        path: Path,
        library: Library | None = None,
        device: Device | None = None,
        graphs: bool = True,
        fused: bool = True,
        mapped: bool | None = None,
        confidence: bool = False,
    ) -> None:
        plan = load_plan(path)  # nothing unchecked is deserialised
        record = BuildRecord.read(record_path(path))
        self.spec = ModelSpec.from_json(record.spec, str(path))
        self.head: Head = record.head
        self.precision: Precision = record.precision
        self.identity = record.identity
        self.made_from = record.made_from_sha256
        self._path = path
        self._library = library or load_tensorrt(record.library)
        self._device: Device = device or open_device()
        self.fallbacks: list[str] = []
        self._graphs = graphs and self._device.graphs
        if graphs and not self._device.graphs:
            self._fall_back(f"{self._device.name} captures no CUDA graphs: launched one by one")
        self._mapped = self._device.integrated() if mapped is None else mapped
        self.backend = f"{self._library.title} {self._device.name}"
        self._runtime, self._engine = load_engine(self._library, plan, record.options, str(path))
        mode = self._library.module.TensorIOMode
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = [n for n in names if self._engine.get_tensor_mode(n) == mode.INPUT]
        outputs = [n for n in names if self._engine.get_tensor_mode(n) == mode.OUTPUT]
        heads = [name for name in outputs if name not in BESIDE]
        if len(inputs) != 1 or len(heads) != 1:
            msg = f"{path}: expected one input and one output, found {inputs} and {heads}"
            raise ModelError(msg)
        self._input, self._output = inputs[0], heads[0]
        self._beside = tuple(name for name in BESIDE if name in outputs)
        self._asked = beside(outputs, str(path)) if confidence else ()
        # An engine that TensorRT calibrated itself takes the same pixels as float32.
        floats = self._library.module.DataType.FLOAT
        image = self._engine.get_tensor_dtype(self._input)
        self._image: type = np.float32 if image == floats else np.uint8
        self._fused = fused and self.head == "scores" and self._with_kernel()
        self._stream = self._device.stream()
        self._sequences: dict[int, _Sequence] = {}
        self.parts: dict[str, int] = {}

    @property
    def execution(self) -> dict[str, str]:
        """See `Runner`."""
        captured = sum(one.captured for one in self._sequences.values())
        return {
            "cuda_graphs": "replayed" if captured else "no",
            "memory": "mapped, no copies" if self._mapped else "pinned, copied",
            "synchronisation": "the host waits for the stream; how is left to CUDA's default",
            "labels": "kernel" if self._fused else "host" if self.head != "labels" else "graph",
            "cuda_package": self._device.name,
            "cuda_runtime": self._device.runtime_version(),
        }

    def _fall_back(self, what: str) -> None:
        self.fallbacks.append(what)
        logger.warning("%s: %s", self._path, what)

    def _with_kernel(self) -> bool:
        """Load the kernel for labels; where that fails, the host does its work and it is said."""
        try:
            self._device.load_kernel()
        except (DependencyError, DeviceError) as err:
            self._fall_back(f"the host makes labels of scores: no kernel on the device ({err})")
            return False
        return True

    def buffer(self, batch: int = 1) -> npt.NDArray[np.uint8] | None:
        """Return the pinned input of a batch size, ``[batch, H, W, 3]`` uint8, to be filled.

        None where the engine takes float32.

        Raises:
            DataError: If the engine was not built for that batch.
        """
        return None if self._image is np.float32 else self._sequence(batch).host_input

    def __call__(self, images: ImageBatch) -> Labels:
        """Segment ``[N, H, W, 3]`` uint8 RGB images; returns ``[N, H, W]`` uint8 class ids."""
        return self._run(images)[0]

    def signals(self, images: ImageBatch) -> Signals:
        """See `Runner`."""
        if not self._asked:
            raise not_asked()
        labels, sequence = self._run(images)
        confidence, *features = (sequence.host_beside[name].copy() for name in self._asked)
        return Signals(labels, confidence, features[0] if features else None)

    def _run(self, images: ImageBatch) -> tuple[Labels, _Sequence]:
        check_images(images, self.spec)
        sequence = self._sequence(len(images))
        start = perf_counter_ns()
        if images is not sequence.host_input:
            np.copyto(sequence.host_input, images)
        copied = perf_counter_ns()
        device_parts = sequence.run()
        done = perf_counter_ns()
        size = self.spec.preprocessing
        head: Head = "labels" if self._fused else self.head
        found = [labels_of(head, one, size.height, size.width) for one in sequence.host_output]
        enlarged = perf_counter_ns()
        labels = np.stack(found)  # copies: the next call writes into the pinned output
        self.parts = {
            "copy_in": copied - start,
            "inference": done - copied,
            "upsample": enlarged - done,
            "copy_out": perf_counter_ns() - enlarged,
            **device_parts,
        }
        if self._graphs and not sequence.captured:
            # Only now: the first run lets TensorRT finish what it left for later.
            try:
                sequence.capture()
            except (DeviceError, ModelError) as err:
                self._graphs = False
                self._fall_back(f"no CUDA graphs, as the capture failed ({err})")
        return labels, sequence

    def _sequence(self, batch: int) -> _Sequence:
        if batch not in self._sequences:
            shape = self._shape(batch)
            # A captured graph is of one context: batch sizes must not share it.
            context = self._engine.create_execution_context()
            if context is None:
                msg = (
                    f"{self._path}: {self._library.title} gives no context for a batch of {batch} "
                    f"beside those for {sorted(self._sequences) or 'none'}. Build the engine anew, "
                    "or free memory of the device"
                )
                raise ModelError(msg)
            self._sequences[batch] = _Sequence(
                context, self._device, self._stream,
                self._input, self._output, shape,
                np.float32 if self.head in ("logits", "scores") else np.uint8,
                self._fused, self._mapped, self._image, self._beside, bool(self._asked),
            )  # fmt: skip
        return self._sequences[batch]

    def _shape(self, batch: int) -> tuple[int, ...]:
        own = tuple(self._engine.get_tensor_shape(self._input))
        size = self.spec.preprocessing
        shape = (batch, size.height, size.width, 3)
        low, high = 1, 1
        if own[0] == -1:
            low, _, high = (s[0] for s in self._engine.get_tensor_profile_shape(self._input, 0))
        else:
            low = high = own[0]
        if not low <= batch <= high:
            msg = f"The engine was built for a batch of {low} to {high}, found {batch} images"
            raise DataError(msg)
        return shape

    def __enter__(self) -> TensorRTRunner:
        return self

    def __exit__(self, *exc: object) -> None:
        # In this order: a context must not outlive its engine, nor that its runtime.
        for sequence in self._sequences.values():
            sequence.close()
        self._sequences.clear()
        self._engine = None
        self._runtime = None
        if self._fused:
            self._device.unload_kernel()
        self._device.close_stream(self._stream)


class _Sequence:
    """One batch size: its buffers, and upload, execution and download on one stream."""

    def __init__(
        self,
        context: Any,
        device: Device,
        stream: int,
        name: str,
        output: str,
        shape: tuple[int, ...],
        dtype: type,
        fused: bool,
        mapped: bool,
        image: type,
        beside: tuple[str, ...],
        asked: bool,
    ) -> None:
        self._context, self._device, self._stream = context, device, stream
        if not context.set_input_shape(name, shape):
            msg = f"The engine refuses an input of shape {list(shape)}"
            raise DataError(msg)
        found = tuple(context.get_tensor_shape(output))
        self.host_input: npt.NDArray[Any] = device.pinned(shape, image)
        self._scores = found if fused else None
        result = (shape[0], *shape[1:3]) if fused else found
        self.host_output: npt.NDArray[Any] = device.pinned(result, np.uint8 if fused else dtype)
        self._mapped = mapped
        self._allocated: list[int] = []
        self._image = self._address_of(self.host_input)
        self._labels = self._address_of(self.host_output)
        self._result = self._labels
        if fused:
            self._result = self._alloc(int(np.prod(found)) * np.dtype(dtype).itemsize)
        context.set_tensor_address(name, self._image)
        context.set_tensor_address(output, self._result)
        # TensorRT wants a place for every output, whether anyone reads it or not.
        self.host_beside: dict[str, npt.NDArray[Any]] = {}
        self._downloads = [(self.host_output, self._labels)]
        for one in beside:
            found = tuple(context.get_tensor_shape(one))
            kind = np.dtype(np.uint8 if one == CONFIDENCE else np.float32)
            if asked:
                self.host_beside[one] = device.pinned(found, kind.type)
                address = self._address_of(self.host_beside[one])
                self._downloads.append((self.host_beside[one], address))
            else:
                address = self._alloc(int(np.prod(found)) * kind.itemsize)
            context.set_tensor_address(one, address)
        self._graph: Any = None
        self._events = [device.event() for _ in range(4)]

    def _address_of(self, array: npt.NDArray[Any]) -> int:
        """Return where the device finds an array: in it, or in memory of its own."""
        return self._device.mapped(array) if self._mapped else self._alloc(array.nbytes)

    def _alloc(self, size: int) -> int:
        self._allocated.append(self._device.alloc(size))
        return self._allocated[-1]

    @property
    def captured(self) -> bool:
        """Whether the next run replays a graph."""
        return self._graph is not None

    def capture(self) -> None:
        """Capture the sequence; nothing is run."""
        self._graph = self._device.capture(self._stream, self._enqueue)

    def run(self) -> dict[str, int]:
        """Run once; returns nanoseconds by the device's clock, of the whole or of its parts."""
        if self.captured:
            self._mark(0)
            self._device.launch(self._graph, self._stream)
            self._mark(3)
            self._device.synchronize(self._stream)
            return {"gpu": self._between(0, 3)}
        self._enqueue(self._mark)
        self._device.synchronize(self._stream)
        return {
            "gpu_upload": self._between(0, 1),
            "gpu_execute": self._between(1, 2),
            "gpu_download": self._between(2, 3),
            "gpu": self._between(0, 3),
        }

    def _mark(self, number: int) -> None:
        self._device.record(self._events[number], self._stream)

    def _between(self, start: int, end: int) -> int:
        return self._device.elapsed_ns(self._events[start], self._events[end])

    def _enqueue(self, mark: Callable[[int], None] = lambda _: None) -> None:
        """Upload, execute, download; ``mark`` is told of the points between them."""
        device, stream = self._device, self._stream
        mark(0)
        if not self._mapped:
            device.upload_async(self._image, self.host_input, stream)
        mark(1)
        if not self._context.execute_async_v3(stream):
            msg = "TensorRT could not enqueue the engine"
            raise ModelError(msg)
        if self._scores is not None:
            rows, columns = self.host_output.shape[1:]
            device.upsample_argmax(self._result, self._labels, self._scores, rows, columns, stream)
        mark(2)
        if not self._mapped:
            for array, address in self._downloads:
                device.download_async(array, address, stream)
        mark(3)

    def close(self) -> None:
        for address in self._allocated:
            self._device.free(address)
        for array in (self.host_input, *(array for array, _ in self._downloads)):
            self._device.release(array)
        if self._graph is not None:
            self._device.close_graph(self._graph)
        for event in self._events:
            self._device.close_event(event)
        self._context = None
