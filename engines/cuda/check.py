"""Whether a device's package does what a runner relies on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeuda.errors import DependencyError, DeviceError
from engines.cuda.device import Device, open_device
from engines.onnx.heads import upsample_argmax

SCORES = (2, 19, 64, 128)
"""Images, classes, rows and columns of what the kernel is tried on."""


def check_device(device: Device) -> dict[str, str]:
    """Send bytes there and back, take time, and replay a graph after its input has changed.

    Returns:
        What the device says of itself.

    Raises:
        DeviceError: If anything is not as it has to be; the message says what.
    """
    pixels = np.arange(1 << 16, dtype=np.uint8)
    stream = device.stream()
    address = device.alloc(pixels.nbytes)
    sent, back = (device.pinned(pixels.shape, np.uint8) for _ in range(2))
    events = [device.event() for _ in range(2)]

    def copies() -> None:
        device.upload_async(address, sent, stream)
        device.download_async(back, address, stream)

    sent[:], back[:] = pixels, 0
    device.record(events[0], stream)
    copies()
    device.record(events[1], stream)
    device.synchronize(stream)
    _same(back, pixels, "bytes that were copied there and back")
    if device.elapsed_ns(*events) < 0:
        msg = "time runs backwards between two events"
        raise DeviceError(msg)
    if device.graphs:
        graph = device.capture(stream, copies)
        for change in (85, 170):
            sent[:], back[:] = pixels + np.uint8(change), 0
            device.launch(graph, stream)
            device.synchronize(stream)
            _same(back, pixels + np.uint8(change), "a graph that is replayed on a changed input")
        device.close_graph(graph)
    sent[:], back[:] = pixels, 0
    device.download_async(back, device.mapped(sent), stream)
    device.synchronize(stream)
    _same(back, pixels, "mapped memory")
    for event in events:
        device.close_event(event)
    for array in (sent, back):
        device.release(array)
    device.free(address)
    device.close_stream(stream)
    return {
        "cuda_runtime": device.runtime_version(),
        "shares_the_hosts_memory": "yes" if device.integrated() else "no",
        "graphs": "replayed" if device.graphs else "this package captures none",
    }


def _same(found: npt.NDArray[np.uint8], expected: npt.NDArray[np.uint8], what: str) -> None:
    wrong = int((found != expected).sum())
    if wrong:
        msg = f"{what}: {wrong} of {expected.size} bytes are wrong"
        raise DeviceError(msg)


def kernel_agreement() -> float:
    """Return the share of pixels, 0 to 1, for which kernel and host make the same label of scores.

    Raises:
        DependencyError: If cuda-python or NVRTC is not installed.
        DeviceError: If the kernel cannot be compiled, loaded or launched.
    """
    device = open_device("cuda-python")
    device.load_kernel()
    batch, _, rows, columns = SCORES
    height, width = 8 * rows, 8 * columns
    scores = np.random.default_rng(0).standard_normal(SCORES).astype(np.float32)
    labels = device.pinned((batch, height, width), np.uint8)
    labels[:] = 255
    stream = device.stream()
    addresses = device.alloc(scores.nbytes), device.alloc(labels.nbytes)
    device.upload(addresses[0], scores)
    device.upsample_argmax(*addresses, SCORES, height, width, stream)
    device.download_async(labels, addresses[1], stream)
    device.synchronize(stream)
    expected = np.stack([upsample_argmax(one, height, width) for one in scores])
    equal = float((labels == expected).mean())
    for address in addresses:
        device.free(address)
    device.release(labels)
    device.close_stream(stream)
    device.unload_kernel()
    return equal


_SCRIPT = """
import json
from edgeuda.errors import EdgeudaError
from engines.cuda.check import kernel_agreement
try:
    print(json.dumps({"equal": kernel_agreement()}))
except EdgeudaError as err:
    print(json.dumps({"error": str(err), "code": err.exit_code}))
"""


def kernel_in_a_fresh_process() -> float:
    """Return `kernel_agreement` of a process in which nothing has used the device before.

    Raises:
        DependencyError: See `kernel_agreement`.
        DeviceError: Likewise, and if the process ends without an answer.
    """
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=False, timeout=300,
        cwd=Path(__file__).resolve().parents[1],
    )  # fmt: skip
    if done.returncode or not done.stdout.strip():
        msg = f"the process ended with {done.returncode}: {done.stderr.strip()[-300:]}"
        raise DeviceError(msg)
    found = json.loads(done.stdout.splitlines()[-1])
    if "error" in found:
        kind = DependencyError if found["code"] == DependencyError.exit_code else DeviceError
        raise kind(found["error"])
    return float(found["equal"])
