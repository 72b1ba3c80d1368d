"""Labels from low-resolution scores on the GPU: enlarged and compared in registers.

What a graph does by resizing to classes x height x width floats, reading them again for the argmax,
one thread per pixel does without storing any. The kernel is compiled at run time, by
NVRTC, for the GPU that is there.
"""

from __future__ import annotations

import ctypes
from typing import Any

from edgeuda.errors import DependencyError, DeviceError
from engines.cuda.driver import compute_capability, require_success

NAME = "upsample_argmax"
BLOCK = (32, 8)
SOURCE = """
extern "C" __global__ void upsample_argmax(
    const float *scores, unsigned char *labels, int classes, int h, int w, int height, int width)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x;
    int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    // half-pixel centres; outside the outermost centres the border repeats
    float sx = fmaxf((x + 0.5f) * w / width - 0.5f, 0.0f);
    float sy = fmaxf((y + 0.5f) * h / height - 0.5f, 0.0f);
    int x0 = (int)sx, y0 = (int)sy;
    int x1 = x0 + 1 < w ? x0 + 1 : w - 1, y1 = y0 + 1 < h ? y0 + 1 : h - 1;
    float fx = sx - x0, fy = sy - y0;
    const float *plane = scores + (size_t)blockIdx.z * classes * h * w;
    float best = 0.0f;
    int label = 0;
    for (int k = 0; k < classes; ++k, plane += h * w) {
        float top = plane[y0 * w + x0] * (1 - fx) + plane[y0 * w + x1] * fx;
        float low = plane[y1 * w + x0] * (1 - fx) + plane[y1 * w + x1] * fx;
        float value = top * (1 - fy) + low * fy;
        if (k == 0 || value > best) { best = value; label = k; }
    }
    labels[((size_t)blockIdx.z * height + y) * width + x] = (unsigned char)label;
}
"""


def compile_cubin(architecture: str) -> bytes:
    """Compile the kernel with NVRTC for one kind of GPU; this needs no GPU.

    Machine code, not PTX: a driver refuses PTX of a CUDA that is later than its own.

    Args:
        architecture: Of the GPU, for example ``sm_87``.

    Returns:
        An ELF file that the driver loads.

    Raises:
        DependencyError: If ``cuda-python`` or the NVRTC library is not installed.
        DeviceError: If NVRTC refuses the source or the architecture.
    """
    try:
        from cuda.bindings import nvrtc

        error, program = nvrtc.nvrtcCreateProgram(
            SOURCE.encode(), f"{NAME}.cu".encode(), 0, None, None
        )
    except Exception as err:  # the library is looked for at the first call
        msg = (
            f"The kernel cannot be compiled ({err}). Install NVRTC of the driver's CUDA: "
            "pip install nvidia-cuda-nvrtc-cu12, or nvidia-cuda-nvrtc for CUDA 13"
        )
        raise DependencyError(msg) from err
    require_success(error)
    try:
        options = [f"--gpu-architecture={architecture}".encode()]
        (failed,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(failed):
            error, size = nvrtc.nvrtcGetProgramLogSize(program)
            log = bytearray(size)
            nvrtc.nvrtcGetProgramLog(program, log)
            reason = bytes(log).decode(errors="replace").strip("\0\n ")
            msg = f"NVRTC refuses the kernel for {architecture}: {reason or failed}"
            raise DeviceError(msg)
        error, size = nvrtc.nvrtcGetCUBINSize(program)
        require_success(error)
        cubin = bytearray(size)
        require_success(nvrtc.nvrtcGetCUBIN(program, cubin)[0])
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return bytes(cubin)


class LabelsKernel:
    """The kernel, loaded into the first device's primary context, which the runtime uses too.

    Raises:
        DependencyError: See `compile_cubin`.
        DeviceError: If NVRTC or the driver refuses it.
    """

    def __init__(self) -> None:
        major, minor = compute_capability()
        cubin = compile_cubin(f"sm_{major}{minor}")
        from cuda.bindings import driver

        self._driver: Any = driver
        self._call("cuInit", 0)
        self._device = self._call("cuDeviceGet", 0)
        # Nothing has made a context in a fresh process, and one is needed to load anything.
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        try:
            self._call("cuCtxSetCurrent", self._context)
            self._module = self._call("cuModuleLoadData", cubin)
            self._function = self._call("cuModuleGetFunction", self._module, NAME.encode())
        except DeviceError:
            self._call("cuDevicePrimaryCtxRelease", self._device)
            raise

    def _call(self, function: str, *arguments: Any) -> Any:
        error, *values = getattr(self._driver, function)(*arguments)
        require_success(error)
        return values[0] if values else None

    def launch(
        self, scores: int, labels: int, shape: tuple[int, ...], height: int, width: int, stream: int
    ) -> None:
        """Enqueue the kernel, from any thread.

        Args:
            scores: Address of ``[N, K, h, w]`` float32.
            labels: Address of ``[N, height, width]`` uint8.
            shape: ``(N, K, h, w)``.
            height: Rows of the labels.
            width: Their columns.
            stream: Handle.

        Raises:
            DeviceError: If the driver refuses it.
        """
        batch, classes, rows, columns = shape
        grid = (-(-width // BLOCK[0]), -(-height // BLOCK[1]), batch)
        values = (scores, labels, classes, rows, columns, height, width)
        kinds = (ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int] * 5)
        self._call("cuCtxSetCurrent", self._context)  # a context is current in one thread
        self._call(
            "cuLaunchKernel", self._function, *grid, *BLOCK, 1, 0, stream, (values, kinds), 0
        )

    def close(self) -> None:
        """Unload the kernel and give the context back."""
        self._call("cuCtxSetCurrent", self._context)
        self._call("cuModuleUnload", self._module)
        self._call("cuDevicePrimaryCtxRelease", self._device)


class WithoutKernel:
    """What a device's package says that launches no kernels."""

    def load_kernel(self) -> None:
        """See `engines.cuda.device.Device`."""
        msg = "only cuda-python launches kernels"
        raise DependencyError(msg)

    def unload_kernel(self) -> None:
        """See `engines.cuda.device.Device`."""

    def upsample_argmax(
        self, scores: int, labels: int, shape: tuple[int, ...], height: int, width: int, stream: int
    ) -> None:
        """See `engines.cuda.device.Device`."""
        self.load_kernel()
