"""Labels from low-resolution scores on the GPU: enlarged and compared in registers.

What a graph does by resizing to classes x height x width floats, reading them again for the argmax,
one thread per pixel does without storing any. The kernel is compiled at run time by NVRTC.
"""

from __future__ import annotations

import ctypes
from typing import Any

from edgeuda.errors import DependencyError, DeviceError
from engines.cuda_driver import require_success

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


def compile_ptx(architecture: str = "compute_75") -> bytes:
    """Compile the kernel with NVRTC; this needs no GPU.

    Args:
        architecture: Virtual architecture; the driver makes it the GPU's own.

    Raises:
        DependencyError: If ``cuda-python`` or the NVRTC library is not installed.
        DeviceError: If NVRTC refuses the source.
    """
    try:
        from cuda.bindings import nvrtc

        error, program = nvrtc.nvrtcCreateProgram(
            SOURCE.encode(), f"{NAME}.cu".encode(), 0, None, None
        )
    except Exception as err:  # the library is looked for at the first call
        msg = (
            f"The kernel cannot be compiled ({err}). Install cuda-python and NVRTC: "
            "pip install cuda-python nvidia-cuda-nvrtc"
        )
        raise DependencyError(msg) from err
    require_success(error)
    options = [f"--gpu-architecture={architecture}".encode()]
    (failed,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if int(failed):
        error, size = nvrtc.nvrtcGetProgramLogSize(program)
        log = bytearray(size)
        nvrtc.nvrtcGetProgramLog(program, log)
        msg = f"NVRTC refuses the kernel: {bytes(log).decode(errors='replace')}"
        raise DeviceError(msg)
    error, size = nvrtc.nvrtcGetPTXSize(program)
    require_success(error)
    ptx = bytearray(size)
    require_success(nvrtc.nvrtcGetPTX(program, ptx)[0])
    nvrtc.nvrtcDestroyProgram(program)
    return bytes(ptx)


class LabelsKernel:
    """The kernel, loaded into the current context.

    Raises:
        DependencyError: See `compile_ptx`.
        DeviceError: If the driver refuses it.
    """

    def __init__(self) -> None:
        from cuda.bindings import driver

        self._driver: Any = driver
        ptx = compile_ptx()
        error, self._module = driver.cuModuleLoadData(ptx)
        require_success(error)
        error, self._function = driver.cuModuleGetFunction(self._module, NAME.encode())
        require_success(error)

    def launch(
        self, scores: int, labels: int, shape: tuple[int, ...], height: int, width: int, stream: int
    ) -> None:
        """Enqueue the kernel.

        Args:
            scores: Address of ``[N, K, h, w]`` float32.
            labels: Address of ``[N, height, width]`` uint8.
            shape: ``(N, K, h, w)``.
            height: Rows of the labels.
            width: Their columns.
            stream: Handle.
        """
        batch, classes, rows, columns = shape
        grid = (-(-width // BLOCK[0]), -(-height // BLOCK[1]), batch)
        values = (scores, labels, classes, rows, columns, height, width)
        kinds = (ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int] * 5)
        (error,) = self._driver.cuLaunchKernel(
            self._function, *grid, *BLOCK, 1, 0, stream, (values, kinds), 0
        )
        require_success(error)
