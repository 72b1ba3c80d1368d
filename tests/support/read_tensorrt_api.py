"""Write what NVIDIA's binding wheels offer, per version, to data/tensorrt_api.json.

    python tests/read_tensorrt_api.py WHEEL [WHEEL ...]

Wheels are of tensorrt-bindings (8.6) or tensorrt-cu1x-bindings (10, 11), for the Python that runs
this. They link against TensorRT's libraries. Empty ones with the same entry points take their place
(a C compiler is needed): enough to list classes, not to call them.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CLASSES = [
    "Builder", "BuilderFlag", "ComputeCapability", "DataType", "DeviceType", "EngineInspector",
    "HardwareCompatibilityLevel", "IBuilderConfig", "ICudaEngine", "IExecutionContext",
    "IHostMemory", "IInt8EntropyCalibrator2", "IInt8MinMaxCalibrator", "ILayer", "ILogger",
    "INetworkDefinition", "IOptimizationProfile", "ITensor", "ITimingCache",
    "LayerInformationFormat", "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser",
    "ParserError", "PreviewFeature", "ProfilingVerbosity", "Runtime", "TensorIOMode",
]  # fmt: skip
LIST = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("tensorrt", sys.argv[1])
trt = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trt)
found = {name: sorted(n for n in dir(getattr(trt, name)) if not n.startswith("_"))
         for name in json.loads(sys.argv[2]) if hasattr(trt, name)}
print(json.dumps(found))
"""


def listing(wheel: Path, folder: Path) -> dict[str, list[str]]:
    """Unpack a wheel beside empty libraries and list its classes in a process of its own."""
    zipfile.ZipFile(wheel).extractall(folder)
    (library,) = folder.rglob("tensorrt.so")
    needed = subprocess.run(
        ["readelf", "-d", str(library)], capture_output=True, text=True, check=True
    ).stdout
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True
    ).stdout
    entries = re.findall(r" U ((?:create|get|init)\w+|_Z\w*nv\w+)$", undefined, re.MULTILINE)
    source = folder / "entries.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in entries))
    for name in re.findall(r"\[(libnv\w+\.so[.\d]*)\]", needed):
        subprocess.run(
            [
                "gcc",
                "-shared",
                "-fPIC",
                "-o",
                str(folder / name),
                str(source),
                f"-Wl,-soname,{name}",
            ],
            check=True,
        )
    done = subprocess.run(
        [sys.executable, "-c", LIST, str(library), json.dumps(CLASSES)],
        capture_output=True, text=True, check=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(folder)},
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """List every wheel and write the file."""
    found = {}
    for wheel in map(Path, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as folder:
            found[wheel.name.split("-")[1]] = listing(wheel, Path(folder))
    out = Path(__file__).parent / "data" / "tensorrt_api.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(found, indent=0) + "\n")


if __name__ == "__main__":
    main()
