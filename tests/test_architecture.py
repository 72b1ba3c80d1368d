"""The walls between the packages, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("edgeuda", "engines", "calibration", "cli")
FREE = {"errors", "files", "labels", "spec", "evaluation", "boundary", "data"}
"""Parts of `edgeuda` that a vehicle has: no torch in them."""
FILES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def allowed(importer: str, imported: str) -> bool:
    package, *rest = imported.split(".")
    if importer.startswith("cli"):
        return True
    if importer.startswith("edgeuda"):
        return package == "edgeuda"
    if package == "edgeuda":
        part = rest[0]
        return (
            part in FREE
            or part == "__version__"
            or (importer == "engines/export.py" and part == "models")
        )
    return package == "engines" or importer.startswith("calibration/")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_who_imports_whom(path):
    importer = str(path.relative_to(ROOT))
    for imported in imports(path):
        if imported.split(".")[0] in PACKAGES:
            assert allowed(importer, imported), f"{importer} imports {imported}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_who_imports_torch(path):
    parts = path.relative_to(ROOT).parts
    may = parts[:2] in {
        ("edgeuda", "models"), ("edgeuda", "methods"), ("edgeuda", "training"),
    } or parts == ("engines", "export.py")  # fmt: skip
    heavy = {name.split(".")[0] for name in imports(path)} & {
        "torch", "kornia", "lightning_fabric", "safetensors", "pydantic",
    }  # fmt: skip
    assert may or not heavy


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_who_imports_timm(path):
    """Its import takes seconds: `edgeuda.models` does it when a network needs it."""
    text = path.read_text(encoding="utf-8")
    theirs = {name.split(".")[0] for name in imports(path)} & {"timm", "torchvision"}
    assert not theirs
    assert 'import_module("timm")' not in text or path.name == "timm_library.py"


def test_vehicle_side_runs_without_training_packages():
    """With torch and its companions blocked, everything a vehicle imports still imports."""
    code = (
        "import sys\n"
        "for name in ('torch', 'kornia', 'lightning_fabric', 'safetensors', 'pydantic', 'onnx',\n"
        "             'onnxscript', 'onnxruntime', 'timm', 'torchvision', 'huggingface_hub'):\n"
        "    sys.modules[name] = None\n"
        "import cli.app, engines.bench.measure, engines.report.page, engines.runner\n"
        "import edgeuda.accuracy.evaluation, edgeuda.street, edgeuda.data.folders\n"
        "import engines.onnxruntime_runner\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_help_imports_neither_torch_nor_timm():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from cli.app import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print([name for name in ('torch', 'timm', 'torchvision') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"
