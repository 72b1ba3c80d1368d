"""CUDA without a GPU: data/cudart_stub.c, and the Python packages' view of it.

The stand-ins of ``cuda.bindings.runtime`` and ``pycuda.driver`` have those packages' names and ways
to pass values and errors; below them is the stub.
"""

import ctypes
import enum
import shutil
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from engines.cuda.labels_kernel import SOURCE
from places import DATA

COUNTS = ("memory", "pinned", "streams", "graphs", "launchables", "events")
CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t


def compiled(source, out, *extra):
    """Compile a C file to a shared library; skips where there is no compiler."""
    if shutil.which("gcc") is None:
        pytest.skip("there is no C compiler (gcc)")
    command = ["gcc", "-O1", "-shared", "-fPIC", "-o", out, source, *extra, "-ldl", "-lm"]
    subprocess.run([str(part) for part in command], check=True)
    return out


def cudart(folder):
    """The stub of the CUDA runtime, compiled into a folder."""
    return compiled(DATA / "cudart_stub.c", folder / "libcudart.so")


def driver_in(folder):
    """Put a `libcuda.so.1` into a folder that runs the kernel's source on the host."""
    header = folder / "kernel.h"
    header.write_text(SOURCE.replace('extern "C" ', ""))
    compiled(DATA / "cuda_stub.c", folder / "libcuda.so.1", f'-DKERNEL="{header}"')
    return folder


class Gpu:
    """The stub: its switches, its counts, and what a kernel would do with its memory."""

    def __init__(self, path):
        self.path = path
        self.library = ctypes.CDLL(str(path))
        self.library.stub_host.restype = pointer
        self.kept = []

    def set(self, **switches):
        for name, value in switches.items():
            number.in_dll(self.library, f"stub_{name}").value = value

    def held(self):
        """What was taken and not given back, by kind."""
        counts = {name: number.in_dll(self.library, f"stub_{name}").value for name in COUNTS}
        return {name: count for name, count in counts.items() if count}

    def view(self, address, shape, dtype):
        """The array at a device's address."""
        host = self.library.stub_host(pointer(address))
        length = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = (ctypes.c_uint8 * length).from_address(host)
        return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)

    def enqueue(self, stream, function):
        """Have the stream call a function, now or when what it captures is launched."""
        self.kept.append(CALLBACK(lambda _: function()))
        code = self.library.cudaLaunchHostFunc(pointer(stream), self.kept[-1], None)
        assert code == 0, code


class Error(enum.IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorInvalidValue = 1  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorInvalidResourceHandle = 400  # noqa: N815
    cudaErrorStreamCaptureUnsupported = 900  # noqa: N815
    cudaErrorStreamCaptureInvalidated = 901  # noqa: N815


MADE = {  # functions that return what they make, and the types of their arguments
    "cudaMalloc": (size,), "cudaHostAlloc": (size, ctypes.c_uint),
    "cudaHostGetDevicePointer": (pointer, ctypes.c_uint), "cudaStreamCreate": (),
    "cudaStreamEndCapture": None, "cudaEventCreate": (),
}  # fmt: skip
DONE = {
    "cudaFree": (pointer,), "cudaMemcpy": (pointer, pointer, size, number),
    "cudaMemcpyAsync": (pointer, pointer, size, number, pointer), "cudaFreeHost": (pointer,),
    "cudaStreamDestroy": (pointer,), "cudaStreamSynchronize": (pointer,),
    "cudaStreamBeginCapture": (pointer, number), "cudaGraphDestroy": (pointer,),
    "cudaGraphLaunch": (pointer, pointer), "cudaGraphExecDestroy": (pointer,),
    "cudaEventRecord": (pointer, pointer), "cudaEventDestroy": (pointer,),
}  # fmt: skip


def cuda_python(gpu):
    """``cuda.bindings.runtime``: errors are values, results follow them."""
    library = gpu.library

    def made(name, kinds):
        def call(*values):
            handle = pointer()
            arguments = [kind(value) for kind, value in zip(kinds, values, strict=True)]
            code = getattr(library, name)(ctypes.byref(handle), *arguments)
            return Error(code), handle.value

        return call

    def done(name, kinds):
        def call(*values):
            arguments = [kind(value) for kind, value in zip(kinds, values, strict=True)]
            return (Error(getattr(library, name)(*arguments)),)

        return call

    def found(name, kind, kinds=()):
        def call(*values):
            value = kind()
            arguments = [kind(value) for kind, value in zip(kinds, values, strict=True)]
            code = getattr(library, name)(ctypes.byref(value), *arguments)
            return Error(code), value.value

        return call

    def end_capture(stream):
        graph = pointer()
        code = library.cudaStreamEndCapture(pointer(stream), ctypes.byref(graph))
        return Error(code), graph.value

    def instantiate(graph, flags):
        handle = pointer()
        code = library.cudaGraphInstantiateWithFlags(
            ctypes.byref(handle), pointer(graph), ctypes.c_ulonglong(flags)
        )
        return Error(code), handle.value

    return SimpleNamespace(
        **{name: made(name, kinds) for name, kinds in MADE.items() if kinds is not None},
        **{name: done(name, kinds) for name, kinds in DONE.items()},
        cudaStreamEndCapture=end_capture,
        cudaGraphInstantiate=instantiate,
        cudaRuntimeGetVersion=found("cudaRuntimeGetVersion", number),
        cudaDeviceGetAttribute=found("cudaDeviceGetAttribute", number, (number, number)),
        cudaEventElapsedTime=found("cudaEventElapsedTime", ctypes.c_float, (pointer, pointer)),
        cudaHostAllocMapped=2,
        cudaMemcpyKind=SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2),
        cudaStreamCaptureMode=SimpleNamespace(cudaStreamCaptureModeRelaxed=2),
        cudaDeviceAttr=SimpleNamespace(cudaDevAttrIntegrated=18),
    )


def pycuda(gpu):
    """``pycuda.driver``: errors are raised, what is made is an object that ends itself."""
    runtime = cuda_python(gpu)

    class PycudaError(Exception):
        pass

    def call(name, *values):
        error, *found = getattr(runtime, name)(*values)
        if error:
            raise PycudaError(f"{name} failed: {error.name}")
        return found[0] if found else None

    class Owned:
        """An address that is given back with the object, as pycuda's are."""

        makes, ends = "", ""

        def __init__(self, *values):
            self.handle = call(self.makes, *values)

        def __int__(self):
            return self.handle

        def free(self):
            if self.handle is not None:
                call(self.ends, self.handle)
                self.handle = None

        def __del__(self):
            if getattr(self, "handle", None) is not None:
                self.free()

    class DeviceAllocation(Owned):
        makes, ends = "cudaMalloc", "cudaFree"

    class Stream(Owned):
        makes, ends = "cudaStreamCreate", "cudaStreamDestroy"

        def synchronize(self):
            call("cudaStreamSynchronize", self.handle)

    class Event(Owned):
        makes, ends = "cudaEventCreate", "cudaEventDestroy"

        def record(self, stream):
            call("cudaEventRecord", self.handle, stream.handle)

        def time_till(self, other):
            return call("cudaEventElapsedTime", self.handle, other.handle)

    class Pagelocked(Owned):
        makes, ends = "cudaHostAlloc", "cudaFreeHost"

        def __init__(self, shape, dtype, flags):
            length = int(np.prod(shape)) * np.dtype(dtype).itemsize
            super().__init__(length, flags)
            self.__array_interface__ = {
                "shape": tuple(shape), "typestr": np.dtype(dtype).str,
                "data": (self.handle, False), "version": 3,
            }  # fmt: skip

        def get_device_pointer(self):
            return call("cudaHostGetDevicePointer", self.handle, 0)

    def pagelocked_empty(shape, dtype, order="C", mem_flags=0):
        return np.asarray(Pagelocked(shape, dtype, mem_flags))

    device = SimpleNamespace(
        get_attribute=lambda attribute: call("cudaDeviceGetAttribute", attribute, 0)
    )

    def htod(address, array):
        call("cudaMemcpy", int(address), array.ctypes.data, array.nbytes, 1)

    def htod_async(address, array, stream):
        arguments = int(address), array.ctypes.data, array.nbytes, 1, stream.handle
        call("cudaMemcpyAsync", *arguments)

    def dtoh_async(array, address, stream):
        arguments = array.ctypes.data, int(address), array.nbytes, 2, stream.handle
        call("cudaMemcpyAsync", *arguments)

    return SimpleNamespace(
        Error=PycudaError, mem_alloc=DeviceAllocation, Stream=Stream, Event=Event,
        pagelocked_empty=pagelocked_empty, memcpy_htod=htod, memcpy_htod_async=htod_async,
        memcpy_dtoh_async=dtoh_async, Device=lambda _: device, get_version=lambda: (12, 6, 0),
        device_attribute=SimpleNamespace(INTEGRATED=18),
        host_alloc_flags=SimpleNamespace(DEVICEMAP=2),
    )  # fmt: skip


def install(monkeypatch, gpu):
    """Let all three packages be found, with the stub below them."""
    bindings, package = ModuleType("cuda.bindings"), ModuleType("pycuda")
    bindings.runtime, package.driver = cuda_python(gpu), pycuda(gpu)
    package.autoprimaryctx = ModuleType("pycuda.autoprimaryctx")
    for name, module in {
        "cuda.bindings": bindings, "cuda.bindings.runtime": bindings.runtime, "pycuda": package,
        "pycuda.driver": package.driver, "pycuda.autoprimaryctx": package.autoprimaryctx,
    }.items():  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("engines.cuda.libcudart.NAMES", (str(gpu.path),))
    monkeypatch.setattr("engines.cuda.device.cuda_devices", lambda: 1)
    monkeypatch.setattr("engines.cuda.device.driver_version", lambda: (12, 6))


def installed(monkeypatch, library):
    """A GPU with CUDA 12.6 from which nothing is taken yet, in all packages' place."""
    gpu = Gpu(library)
    gpu.set(runtime=12060, driver=12060, integrated=0, fail_capture=0, dead_replay=0)
    gpu.set(**dict.fromkeys(COUNTS, 0))
    install(monkeypatch, gpu)
    return gpu
