"""The Python of README, docs and notebook runs as it is written, with fewer steps."""

import json
import re

import cv2
import numpy as np
import pytest

import edgeuda
from edgeuda.street import write_dataset
from edgeuda.training import runs
from places import ROOT

SIZE = {"model.input": [64, 128], "geometry.crop": [64, 128], "model.width": 0.125}
FEW = {
    "source.steps": 3, "source.batch": 2, "adabn.batches": 1, "adabn.batch": 2, "stage1.steps": 2,
    "stage1.batch": 2, "stage2.steps": 2, "stage2.batch": 2, "monitor.frames": 2, "stage1.lr": 1e-4,
    "stage2.lr": 1e-4,
}  # fmt: skip


@pytest.fixture
def brief(monkeypatch):
    """Runs with few steps on small images, whatever the page says."""
    whole = runs._recipe

    def few(recipe, settings):
        size = {} if settings and "model.input" in settings else SIZE
        return whole(recipe, {**size, **(settings or {}), **FEW})

    monkeypatch.setattr(runs, "_recipe", few)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    space = edgeuda.label_space("cityscapes-19")
    for name, domain, seed in (
        ("SIMULATOR", "simulator", 0), ("FOOTAGE", "camera", 50), ("LABELLED", "camera", 80),
    ):  # fmt: skip
        write_dataset(tmp_path / name, domain, 4, seed, 64, 128, space)
    cv2.imwrite(str(tmp_path / "frame.png"), np.zeros((64, 128, 3), np.uint8))
    monkeypatch.chdir(tmp_path)


def blocks(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_page_on_python(folder, brief, capsys):
    names = {"__name__": "page"}
    for block in blocks("docs/python.md"):
        exec(compile(block, "docs/python.md", "exec"), names)
    said = capsys.readouterr().out
    assert "points of mIoU" in said
    assert "custom:mine: 64x128" in said
    table = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    for package in ("edgeuda", "engines", "calibration"):
        (row,) = re.findall(rf"^\| `{package}` \| (.*) \|$", table, re.MULTILINE)
        exported = set(__import__(package).__all__)
        assert set(re.findall(r"`(\w+)`", row)) == exported


def test_the_python_of_the_readme(folder, brief):
    (block,) = blocks("README.md")
    edgeuda.train("SIMULATOR", "run", recipe="small")
    names = {"__name__": "page"}
    exec(compile(block, "README.md", "exec"), names)
    assert names["labels"].shape == (64, 128)


def test_the_notebook(tmp_path, monkeypatch, brief):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "examples/adapt_and_deploy.ipynb").read_text(encoding="utf-8"))
    names = {"__name__": "notebook"}
    for cell in notebook["cells"]:
        assert not cell.get("outputs")  # figures of nobody's run are not committed
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert names["labels"].ndim == 2
    assert (tmp_path / "vehicle.edgeuda").stat().st_size > 0
