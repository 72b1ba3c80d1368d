"""What the package asks for: pinned versions, extras by CUDA, extras that messages name."""

from __future__ import annotations

import re

from packaging.requirements import Requirement

from places import ROOT

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OTHER_CUDA = {"tensorrt-cu12", "jetpack6", "jetpack7"}
"""Extras for machines whose CUDA is not that of the pinned versions."""


def test_pins_lie_within_the_ranges() -> None:
    others = [lines for name, lines in EXTRAS.items() if name not in OTHER_CUDA]
    groups = [PROJECT["dependencies"], *others]
    ranges = [Requirement(line) for group in groups for line in group]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {
        pin.name.lower(): next(iter(pin.specifier)).version
        for pin in (Requirement(line) for line in lines if line and not line.startswith("#"))
    }
    outside = [str(r) for r in ranges if r.name in pins and pins[r.name] not in r.specifier]
    assert not outside


def test_extras_pin_cuda_python_by_its_major() -> None:
    for name, major in {"cu12": 12, "cu13": 13, "jetpack6": 12, "jetpack7": 13}.items():
        extra = name if name.startswith("jetpack") else f"tensorrt-{name}"
        (pin,) = [Requirement(one) for one in EXTRAS[extra] if one.startswith("cuda-python")]
        versions = [
            "11.8.0",
            "12.3.0",
            "12.6.2.post1",
            "12.6.2",
            "12.9.0",
            "13.0.3",
            "13.4.4",
            "14.0.0",
        ]
        taken = [one for one in versions if pin.specifier.contains(one)]
        assert taken
        assert {int(one.split(".")[0]) for one in taken} == {major}
        tensorrt = [one for one in EXTRAS[extra] if one.startswith("tensorrt")]
        assert len(tensorrt) == (0 if name.startswith("jetpack") else 1)  # it is in the image


def test_messages_name_extras_that_exist() -> None:
    named = set()
    packages = ("edgeuda", "engines", "calibration", "cli", "benchmarks", "tests")
    sources = [path for package in packages for path in ROOT.glob(f"{package}/**/*.py")]
    for path in (*sources, *ROOT.glob("docs/*.md"), ROOT / "README.md"):
        for found in re.findall(r"edgeuda\[([\w,-]+)\]", path.read_text(encoding="utf-8")):
            named |= set(found.split(","))
    assert {"cpu", "gpu", "train"} <= named
    assert named <= set(EXTRAS)
