"""The wheel that users install, and the images that are built around it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from places import ROOT
from tiny_models import exported, random_frames, write_frames

DOCKERFILES = sorted(ROOT.glob("docker/*.Dockerfile"))
CONSTRAINTS = ROOT / "constraints.txt"


def run(*command: str | Path, cwd: Path | None = None) -> str:
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    found = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert found.returncode == 0, f"{command}\n{found.stdout[-3000:]}"
    return found.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of the sources as `make wheel` does, from a copy: building leaves files."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("edgeuda", "engines", "calibration", "cli"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (line,) = [one for one in (ROOT / "Makefile").read_text().splitlines() if "pip wheel" in one]
    command = line.strip().replace("$(BIN)/python", sys.executable).replace("dist", str(dist))
    run("sh", "-c", command, cwd=source)
    (path,) = dist.glob("edgeuda-*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_all_that_the_packages_read(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    ours = {
        path.relative_to(ROOT).as_posix()
        for name in ("edgeuda", "engines", "calibration", "cli")
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert ours <= inside
    others = {name for name in inside - ours if ".dist-info/" not in name}
    assert not others  # no tests, no benchmarks


PREDICT = "predict --model model.onnx --target frames --out predicted"
CALIBRATE = (
    "calibrate --model model.onnx --target frames --out int8.onnx "
    "--min-agreement 0 --min-class-agreement 0"
)
RENDER = "data render --out streets --count 2 --size 64x96 --label-space camvid-11"
EXPORT = "data export-labels --data streets --format coco --out coco"
TRAIN = (
    "train --source streets --recipe small --out run --log tensorboard --set source.steps=2 "
    "--set model.width=0.125 --set model.input=[64,96] --set geometry.crop=[64,96]"
)
VERBS = {
    "": ["labels", RENDER],
    "cpu,quantize,labels": [PREDICT, CALIBRATE, RENDER, EXPORT],
    "train,tensorboard": [RENDER, TRAIN],
}
"""Verbs of the extras that a machine without a GPU can install, in one environment each."""


@pytest.mark.slow
@pytest.mark.parametrize("extras", VERBS)
def test_a_fresh_environment_runs_the_verb_of_an_extra(
    wheel: Path, tmp_path: Path, extras: str
) -> None:
    home = tmp_path / "environment"
    venv.create(home, with_pip=True)
    wanted = f"{wheel}[{extras}]" if extras else str(wheel)
    run(
        home / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--no-compile", "-c", CONSTRAINTS, wanted,
    )  # fmt: skip
    (tmp_path / "model.onnx").write_bytes(exported("labels"))
    write_frames(tmp_path / "frames", random_frames(2, 64, 128))
    for verb in VERBS[extras]:
        run(home / "bin/edgeuda", *verb.split(), cwd=tmp_path)
    assert bool(list(home.glob("lib/*/*/torch"))) == ("train" in extras)


class Stage:
    """A stage of a Dockerfile: its base, and its instructions as they stand."""

    def __init__(self, base: str) -> None:
        self.base, self.steps = base, list[tuple[str, str]]()


def stages(path: Path) -> dict[str, Stage]:
    lines = [one for one in path.read_text().splitlines() if not one.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found: dict[str, Stage] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, rest = line.split(maxsplit=1)
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name or "last"] = Stage(base)
        else:
            found[list(found)[-1]].steps.append((instruction, rest))
    return found


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_dockerfiles_copy_what_is_there_and_nothing_is_left_out(path: Path) -> None:
    shown = (ROOT / ".dockerignore").read_text().splitlines()
    for stage in stages(path).values():
        for instruction, rest in stage.steps:
            if instruction == "COPY" and not rest.startswith("--from"):
                for source in rest.split()[:-1]:
                    assert (ROOT / source).exists(), source
                    assert f"!{source}" in shown, f".dockerignore hides {source}"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_dockerfiles_are_linted(path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed (extra dev)")
    run(hadolint, "--config", ROOT / ".hadolint.yaml", path)


def test_dockerfiles_build_the_same_wheel() -> None:
    first, *others = [stages(path)["wheel"] for path in DOCKERFILES]
    assert len(others) == 2
    for other in others:
        assert (other.base, other.steps) == (first.base, first.steps)


@pytest.mark.slow
def test_the_cpu_image_stage_by_stage(tmp_path: Path) -> None:
    """Do in folders what Docker would do in layers, by the commands of the file itself.

    Its base is this machine's Python; the system's packages and user are not touched.
    """
    stand_ins = tmp_path / "stand-ins"
    stand_ins.mkdir()
    for name in ("apt-get", "useradd"):
        (stand_ins / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/system.log\n')
        (stand_ins / name).chmod(0o755)
    roots: dict[str, Path] = {}
    for name, stage in stages(ROOT / "docker/cpu.Dockerfile").items():
        root = roots[name] = tmp_path / name
        venv.create(root / "python", with_pip=True)
        place = root
        for instruction, rest in stage.steps:
            words = rest.split()
            if instruction == "WORKDIR":
                place = root / rest.lstrip("/")
                place.mkdir(parents=True, exist_ok=True)
            elif instruction == "COPY":
                start = ROOT
                if words[0].startswith("--from="):
                    start = roots[words.pop(0).removeprefix("--from=")]
                *sources, to = words
                folder = root / to.lstrip("/") if to.startswith("/") else place / to
                for source in sources:
                    copied(start / source.lstrip("/"), folder, one=len(sources) == 1)
            elif instruction == "RUN":
                here = re.sub(r"(?<=\s)/(dist|constraints)", rf"{root}/\1", rest)
                here = here.replace("/var/lib/apt/lists/", f"{root}/apt-lists/")
                path = f"{root / 'python/bin'}:{stand_ins}:/usr/bin:/bin"
                run("env", f"PATH={path}", "sh", "-c", here, cwd=place)
            else:
                assert instruction in {"USER", "ENTRYPOINT", "CMD"}, instruction
    edgeuda = roots["last"] / "python/bin/edgeuda"
    assert "adapt" in run(edgeuda, "--help")
    (tmp_path / "model.onnx").write_bytes(exported("labels"))
    write_frames(tmp_path / "frames", random_frames(2, 64, 128))
    run(edgeuda, *PREDICT.split(), cwd=tmp_path)
    assert (tmp_path / "predicted/predictions.json").exists()
    assert "useradd --create-home edgeuda" in (tmp_path / "system.log").read_text()


def copied(source: Path, to: Path, *, one: bool) -> None:
    if source.is_dir():
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, to, dirs_exist_ok=True, ignore=skipped)
    else:
        folder = to.parent if one and to.suffix else to
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder)
