"""The documentation as a site: its hooks, and the pictures that are drawn from the code."""

import importlib.util

import pytest

import calibration
import edgeuda
import engines
from places import ROOT


def module(name):
    found = importlib.util.spec_from_file_location(name, ROOT / "docs" / "site" / f"{name}.py")
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    return made


pictures = module("pictures")


@pytest.mark.parametrize("package", pictures.PACKAGES)
def test_the_pictures_are_those_of_the_code(package):
    drawn = pictures.picture_of(package).read_text(encoding="utf-8")
    assert drawn == pictures.draw(package), "run python docs/site/pictures.py"
    for name in pictures.imports(package):
        assert f">{name}<" in drawn or f">{name}/<" in drawn


@pytest.mark.parametrize("package", pictures.PACKAGES)
def test_nothing_is_imported_from_a_floor_above(package):
    """Else there is a circle, which the picture would show as an arrow that goes up."""
    graph = pictures.imports(package)
    floor = {name: n for n, names in enumerate(pictures.floors(graph)) for name in names}
    for name, below in graph.items():
        assert all(floor[other] < floor[name] for other in below), (name, below)


def test_the_reference_has_every_exported_name():
    pytest.importorskip("mkdocs")
    page = module("hooks").reference()
    for package in (edgeuda, engines, calibration):
        for name in package.__all__:
            assert f"heading: '{package.__name__}.{name}'" in page


def test_every_table_of_a_recipe_is_described():
    pytest.importorskip("mkdocs")
    page = module("hooks").recipe_keys()
    recipe = edgeuda.load_recipe("edge")
    for name, value in recipe.model_dump().items():
        if isinstance(value, dict):
            assert f"heading: '[{name}]'" in page
