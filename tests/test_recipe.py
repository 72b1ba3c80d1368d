"""Recipes: validation, overrides, errors that name the key."""

import pytest

from edgeuda.errors import ConfigError
from edgeuda.training.recipe import load_recipe, parse_recipe
from edgeuda.training.recipe_files import built_in


@pytest.mark.parametrize("name", built_in())
def test_built_in_recipes_are_valid_and_survive_toml(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert parse_recipe(recipe.to_toml(), "again") == recipe


def test_published_defaults():
    stage = load_recipe("tufl-cim").stage1
    assert (stage.lr, stage.gamma, stage.target_weight, stage.modulator) == (
        5e-5, 2.0, 0.01, "one-minus-q",
    )  # fmt: skip
    rule = stage.settings().threshold
    assert (rule.initial, rule.keep, rule.hardness, rule.history) == (0.8, 0.8, 8.0, 0.9)


def test_overrides():
    recipe = load_recipe("small", ("stage1.steps=7", "stage1.style=fourier", "model.width=0.25"))
    assert (recipe.stage1.steps, recipe.stage1.style, recipe.model.width) == (7, "fourier", 0.25)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage1.stepz=7", r"unknown key 'stage1\.stepz'; did you mean 'steps'"),
        ("steps=5", r"--set steps=5: unknown key 'steps'; .* sections: source\.steps, "),
        ("source.steps=none", r"--set source\.steps=none: source\.steps: .*integer"),
        ("stage1.threshold.initail=1", r"'stage1\.threshold\.initail'; did you mean 'initial'"),
        ("colour=1", r"unknown key 'colour'; known keys: name"),
        ("stage1.lr=-1", r"stage1\.lr: .*greater than 0, found -1"),
        ("stage1.style=oil", r"stage1\.style: .*'histogram' or 'fourier', found 'oil'"),
        ("model.input=[100, 320]", "multiples of 32"),
        ("steps", r"section\.key=value"),
        ("name.steps=3", "is a value"),
    ],
)
def test_bad_settings_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe("small", (override,))


@pytest.mark.parametrize(("name", "meant"), [("smal", "small"), ("edgy", "edge")])
def test_a_mistyped_recipe_is_recognised(name, meant):
    with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
        load_recipe(name)


def test_unknown_recipe_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match="tufl-cim"):
        load_recipe("tufl")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(ConfigError, match=r"bad\.toml: expected TOML"):
        load_recipe(str(tmp_path / "bad.toml"))


def test_hiast_refuses_what_concerns_source_images():
    with pytest.raises(ConfigError, match=r"small\.toml: hiast: .*target images alone"):
        load_recipe("small", ("hiast.style=colour",))
