"""The kernel: its arithmetic, its machine code, and how it is loaded and launched."""

import ctypes
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import cuda_stub
from edgeuda.errors import DependencyError, DeviceError
from engines.cuda.labels_kernel import BLOCK, SOURCE, compile_cubin
from engines.onnx.heads import upsample_argmax
from places import ROOT

CASES = [((2, 11, 8, 16), (64, 128)), ((1, 19, 5, 7), (40, 56)), ((1, 3, 4, 4), (30, 50))]
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 110, 120)
"""Turing to Blackwell; Orin is 87 and Thor 110."""


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """A folder with a `libcuda.so.1` that runs the kernel's source on the host."""
    return cuda_stub.driver_in(tmp_path_factory.mktemp("libcuda"))


def test_its_arithmetic_is_the_hosts(driver):
    library = ctypes.CDLL(str(driver / "libcuda.so.1"))
    context, kernel = ctypes.c_void_p(), ctypes.c_void_p()
    assert library.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
    library.cuCtxSetCurrent(context)
    assert library.cuModuleGetFunction(ctypes.byref(kernel), None, b"upsample_argmax") == 0
    for shape, size in CASES:
        scores = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        labels = np.full((shape[0], *size), 255, np.uint8)
        values = [
            ctypes.c_void_p(scores.ctypes.data), ctypes.c_void_p(labels.ctypes.data),
            *map(ctypes.c_int, (*shape[1:], *size)),
        ]  # fmt: skip
        pointers = (ctypes.c_void_p * 7)(*(ctypes.addressof(value) for value in values))
        grid = (-(-size[1] // BLOCK[0]), -(-size[0] // BLOCK[1]), shape[0])
        code = library.cuLaunchKernel(kernel, *grid, *BLOCK, 1, 0, None, pointers, None)
        assert code == 0
        expected = np.stack([upsample_argmax(one, *size) for one in scores])
        assert (labels == expected).mean() > 0.999


def cubin_of(architecture):
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-python is not installed")
    try:
        return compile_cubin(f"sm_{architecture}")
    except DependencyError as err:
        pytest.skip(str(err))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_is_compiled_to_machine_code_of_each_gpu(architecture):
    cubin = cubin_of(architecture)
    assert cubin[:4] == b"\x7fELF"
    assert cubin[49] == architecture  # e_flags of a cubin: bits 8 to 15 are the architecture
    assert b"upsample_argmax" in cubin


def test_a_gpu_that_nvrtc_does_not_know_is_named():
    cubin_of(87)
    with pytest.raises(DeviceError, match=r"NVRTC refuses the kernel for sm_33: .*architecture"):
        compile_cubin("sm_33")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_needs_few_registers_and_spills_none(architecture, tmp_path):
    """By NVIDIA's assembler; its version is older or newer than NVRTC's, which PTX says first."""
    if shutil.which("nvcc") is None or shutil.which("ptxas") is None:
        pytest.skip("there is no CUDA compiler (nvcc, ptxas)")
    source = tmp_path / "kernel.cu"
    source.write_text(SOURCE)
    ptx = source.with_suffix(".ptx")
    make = ["nvcc", "--ptx", f"-arch=compute_{architecture}", "-o", ptx, source]
    subprocess.run(make, check=True, capture_output=True)
    assemble = ["ptxas", "-v", f"-arch=sm_{architecture}", "-o", os.devnull, ptx]
    said = subprocess.run(assemble, check=True, capture_output=True, text=True).stderr
    assert "0 bytes spill stores, 0 bytes spill loads" in said
    registers = int(said.split("Used ")[1].split(" registers")[0])
    assert registers <= 64  # so that a multiprocessor holds 1024 threads


SCRIPT = """
import ctypes, json, sys, threading
import numpy as np
from edgeuda.errors import EdgeudaError
from engines.onnx.heads import upsample_argmax
from engines.cuda.labels_kernel import LabelsKernel

driver = ctypes.CDLL("libcuda.so.1")
found = {}
try:
    kernel = LabelsKernel()
    for case, (shape, size) in enumerate(json.loads(sys.argv[1])):
        scores = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        labels = np.full((shape[0], *size), 255, np.uint8)
        launch = lambda: kernel.launch(
            scores.ctypes.data, labels.ctypes.data, tuple(shape), *size, 0)
        if case:
            launch()
        else:
            thread = threading.Thread(target=launch)
            thread.start()
            thread.join()
        expected = np.stack([upsample_argmax(one, *size) for one in scores])
        found[str(case)] = float((labels == expected).mean())
    found["retained"] = driver.stub_retained()
    kernel.close()
except EdgeudaError as err:
    found["error"] = f"{type(err).__name__}: {err}"
found["after"] = driver.stub_retained()
print(json.dumps(found))
"""


def in_a_fresh_process(driver, sm=87):
    """Load and launch by the real cuda-python, on a driver that has no context yet."""
    cubin_of(87)
    root = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(CASES)], capture_output=True, text=True,
        check=False, cwd=root,
        env={
            **os.environ, "PYTHONPATH": root, "LD_LIBRARY_PATH": str(driver), "STUB_SM": str(sm),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_fresh_process_has_no_context_until_the_kernel_makes_one_current(driver):
    """And launches from another thread than the one that loaded it."""
    found = in_a_fresh_process(driver)
    assert found.pop("retained") == 1
    assert found.pop("after") == 0
    assert len(found) == len(CASES)
    assert min(found.values()) > 0.999


def test_a_kernel_that_cannot_be_loaded_gives_its_context_back(driver, tmp_path):
    """On a GPU that NVRTC does not know, and on a driver that refuses what NVRTC made."""
    found = in_a_fresh_process(driver, sm=33)
    assert found["error"].startswith("DeviceError: NVRTC refuses the kernel for sm_33")
    source = (cuda_stub.DATA / "cuda_stub.c").read_text()
    old = source.replace('memcmp(image, "\\177ELF", 4)', "1")
    assert old != source
    (tmp_path / "old.c").write_text(old)
    library = tmp_path / "libcuda.so.1"
    cuda_stub.compiled(tmp_path / "old.c", library, f'-DKERNEL="{driver / "kernel.h"}"')
    found = in_a_fresh_process(tmp_path)
    assert found["error"].startswith("DeviceError: CUDA error 222")
    assert found["after"] == 0
