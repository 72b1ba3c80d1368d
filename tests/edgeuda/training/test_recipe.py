"""Recipes: validation, overrides, errors that name the key."""

import hashlib
import json

import pytest
import tomli_w

from edgeuda.errors import ConfigError
from edgeuda.training.recipe import load_recipe, parse_recipe
from edgeuda.training.recipe_files import built_in
from places import DATA


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
    rule = stage.threshold
    assert (rule.initial, rule.keep, rule.hardness, rule.history) == (0.8, 0.8, 8.0, 0.9)


def test_stage_0_of_the_published_method_is_coincheungs():
    recipe = load_recipe("tufl-cim")
    source = recipe.source
    assert (source.loss, source.class_weights, source.lr, source.head_factor) == (
        "ohem", "none", 1e-2, 10.0,
    )  # fmt: skip
    assert (source.warmup, source.power, source.steps, source.batch) == (1000, 0.9, 80_000, 16)
    assert (recipe.class_weights, recipe.stage1.class_weights) == ("raw", None)
    assert load_recipe("edge").source.class_weights == "normalised"


@pytest.mark.parametrize("name", ["hiast-gta5-to-cityscapes", "iast-gta5-to-cityscapes"])
def test_warm_up_of_iast_and_hiast(name):
    section = load_recipe(name).adversarial
    assert (section.discriminator_schedule, section.schedule_of_discriminators()) == (
        "as-network", "cosine",
    )  # fmt: skip
    assert section.discriminator_betas == (0.9, 0.999)
    assert (section.discriminator_lr, section.loss, section.weight) == (2e-5, "ls", 0.05)
    assert load_recipe(name).source.affine


def test_discriminators_of_adaptsegnet_decay_over_its_whole_schedule():
    section = load_recipe("ass-gta5-to-cityscapes").ass
    assert (section.discriminator_betas, section.schedule_of_discriminators()) == (
        (0.9, 0.99), "polynomial",
    )  # fmt: skip
    assert (section.steps, section.decay_steps) == (120_000, 250_000)
    other = load_recipe("small", ("adversarial.discriminator_schedule=constant",))
    assert other.adversarial.schedule_of_discriminators() == "constant"


def test_rounds_of_iast():
    hiast = load_recipe("iast-gta5-to-cityscapes").hiast
    assert (hiast.steps, hiast.decay_steps, hiast.label_sizes) == (6200, 9300, ((640, 1280),))
    assert load_recipe("hiast-gta5-to-cityscapes").hiast.label_sizes == ()


def test_settings_of_lse():
    for name, divisor in (("lse-gta5-to-cityscapes", None), ("lse-synthia-to-cityscapes-16", 19)):
        recipe = load_recipe(name)
        assert recipe.model.architecture == "deeplabv2-r101-single"
        assert (recipe.lse.optimizer, recipe.lse.divisor) == ("sgd", divisor)
        fcn = load_recipe(name.replace("lse-", "lse-fcn8s-"))
        assert fcn.model.architecture == "fcn8s-vgg16"
        assert (fcn.lse.divisor, fcn.lse.portions()) == (divisor, recipe.lse.portions())
        assert len(fcn.published) == 1
        assert "FCN8s" in fcn.published[0].setting


def test_recipes_of_earlier_versions_still_load():
    """Resolved recipes lie in run folders; keys that were added since have defaults."""
    added = {
        "betas", "bias_factor", "decay_steps", "affine", "label_sizes", "divisor",
        "discriminator_betas", "discriminator_schedule",
    }  # fmt: skip
    table = load_recipe("hiast-gta5-to-cityscapes").model_dump(mode="json", exclude_none=True)
    for section in table.values():
        for key in added & set(section if isinstance(section, dict) else ()):
            del section[key]
    old = parse_recipe(tomli_w.dumps(table), "old")
    assert not old.source.affine
    assert old.adversarial.discriminator_betas == (0.9, 0.99)
    assert old.source.betas == (0.9, 0.999)


def test_overrides():
    recipe = load_recipe("small", ("stage1.steps=7", "stage1.style=fourier", "model.width=0.25"))
    assert (recipe.stage1.steps, recipe.stage1.style, recipe.model.width) == (7, "fourier", 0.25)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage1.stepz=7", r"unknown key 'stage1\.stepz'; did you mean 'steps'"),
        ("steps=5", r"`steps=5`: unknown key 'steps'; .* sections: source\.steps, "),
        ("source.steps=none", r"`source\.steps=none`: source\.steps: .*integer"),
        ("stage1.threshold.initail=1", r"'stage1\.threshold\.initail'; did you mean 'initial'"),
        ("colour=1", r"unknown key 'colour'; known keys: name"),
        ("stage1.lr=-1", r"stage1\.lr: .*greater than 0, found -1"),
        ("stage1.style=oil", r"stage1\.style: .*'histogram' or 'fourier', found 'oil'"),
        ("model.input=[100, 320]", "multiples of 32"),
        ("hiast.label_sizes=[[100, 320]]", r"multiples of 32"),
        ("stage1.decay_steps=1", r"stage1: .*decay_steps: expected at least the 200 of steps"),
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


EARLIER = json.loads((DATA / "recipes.json").read_text())


@pytest.mark.parametrize("name", EARLIER)
def test_recipes_resolve_as_they_did_before_there_was_a_registry(name):
    """Values, and the checksums that decide whether a run is resumed.

    The file was written by commit 1d61ca7, whose recipe model listed every section by hand. It
    changes only together with a recipe.
    """
    recipe, known = load_recipe(name), EARLIER[name]
    assert recipe.model_dump(mode="json") == known["values"]
    assert recipe.digest() == known["digest"]
    for section, digest in known["sections_sha256"].items():
        text = getattr(recipe, section).model_dump_json()
        assert hashlib.sha256(text.encode()).hexdigest() == digest, section
