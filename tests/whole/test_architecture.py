"""The walls between the packages, read from the source."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgeuda import schemas
from places import ROOT

PACKAGES = ("edgeuda", "engines", "calibration", "cli")
FREE = {
    "camera", "errors", "files", "interrupts", "labels", "schemas", "spec", "records", "accuracy",
    "decision", "cluster", "data", "data_check", "street", "annotation", "frame_selection",
}  # fmt: skip
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
            or (importer == "engines/onnx_export.py" and part == "models")
        )
    return package == "engines" or importer.startswith("calibration/")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_who_imports_whom(path):
    importer = str(path.relative_to(ROOT))
    for imported in imports(path):
        if imported.split(".")[0] in PACKAGES:
            assert allowed(importer, imported), f"{importer} imports {imported}"


BELOW = {
    "edgeuda/records": {"errors", "files", "schemas", "labels", "spec", "records"},
    "edgeuda/data": {
        "camera", "records", "errors", "files", "schemas", "labels", "spec", "data", "street"
    },
    "edgeuda/street": {"records", "errors", "files", "schemas", "labels", "data", "street"},
    "edgeuda/accuracy": {
        "records", "errors", "files", "schemas", "labels", "spec", "data", "accuracy"
    },
    "edgeuda/annotation": {
        "records", "errors", "files", "schemas", "labels", "data", "annotation"
    },
    "edgeuda/views": {"errors", "files", "schemas", "labels", "data", "views"},
    "edgeuda/models": {
        "records", "errors", "files", "schemas", "labels", "spec", "data", "accuracy", "models"
    },
    "edgeuda/methods": {
        "records", "errors", "files", "schemas", "labels", "spec", "data", "views", "models",
        "methods",
    },
}  # fmt: skip
"""What each room of `edgeuda` may look into; `edgeuda.training` stands above them all."""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_looks_only_into_those_below(path):
    room = "/".join(path.relative_to(ROOT).parts[:2])
    seen = {name.split(".")[1] for name in imports(path) if name.startswith("edgeuda.")}
    assert seen - {"__version__"} <= BELOW.get(room, seen)


def test_only_the_command_line_knows_the_report():
    theirs = [
        str(path.relative_to(ROOT))
        for path in FILES
        if any(name.startswith("engines.report.page") for name in imports(path))
        and path.relative_to(ROOT).parts[:2] != ("engines", "report")
    ]
    assert all(name.startswith("cli/") or name == "calibration/page.py" for name in theirs), theirs


def test_rooms_import_in_no_circle():
    def room(name: str) -> str:
        parts = name.split(".")
        folder = ROOT.joinpath(*parts[:2])
        return ".".join(parts[: 2 if folder.is_dir() else 1])

    graph: dict[str, set[str]] = {}
    for path in FILES:
        mine = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
        ours = {room(name) for name in imports(path) if name.split(".")[0] in PACKAGES}
        graph.setdefault(mine, set()).update(ours - {mine})
    # Flat files of a package stand on both sides of its rooms; between rooms there is no circle.
    for node in PACKAGES:
        graph.pop(node, None)
    while free := [node for node, below in graph.items() if not below & graph.keys()]:
        for node in free:
            del graph[node]
    assert not {node: below & graph.keys() for node, below in graph.items()}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_who_imports_torch(path):
    parts = path.relative_to(ROOT).parts
    may = parts[:2] in {
        ("edgeuda", "models"), ("edgeuda", "methods"), ("edgeuda", "views"),
        ("edgeuda", "training"),
        ("calibration", "finetune.py"), ("calibration", "torch_graph.py"),
    } or parts == ("engines", "onnx_export.py")  # fmt: skip
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
        "             'onnxscript', 'onnxruntime', 'timm', 'torchvision', 'huggingface_hub',\n"
        "             'mcap', 'mcap_protobuf', 'foxglove_schemas_protobuf', 'rerun',\n"
        "             'pycocotools'):\n"
        "    sys.modules[name] = None\n"
        "import cli.app, engines.bench.measure, engines.report.page, engines.runner\n"
        "import edgeuda.accuracy.evaluation, edgeuda.street, edgeuda.data.folders\n"
        "import engines.onnxruntime_runner, cli.verbs.run, engines.live.loop, engines.live.web\n"
        "import engines.live.mcap_sink, engines.live.rerun_sink\n"
        "import edgeuda.annotation.exchange, edgeuda.frame_selection\n"
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


def test_a_schema_is_named_in_one_place_and_the_docs_list_them():
    home = ROOT / "edgeuda/schemas.py"
    others = [
        f"{path.relative_to(ROOT)}: {found}"
        for path in FILES
        if path != home
        for found in re.findall(r'"edgeuda\.[a-z_-]+/\d"', path.read_text(encoding="utf-8"))
    ]
    assert not others
    assert schemas.table() in (ROOT / "docs/records.md").read_text(encoding="utf-8")
