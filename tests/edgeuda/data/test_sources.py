"""Several labelled sources as one."""

import json

import numpy as np
import pytest

from edgeuda.data.images import write_image, write_label
from edgeuda.data.sources import open_sources
from edgeuda.errors import ConfigError
from edgeuda.files import write_json
from edgeuda.labels import SPACES, LabelSpace
from edgeuda.records.run import RUN_FILE
from edgeuda.street import write_dataset
from edgeuda.training.confidence import hold_out
from edgeuda.training.fitting import load_domains
from edgeuda.training.loader import Images, Joined
from edgeuda.training.pipeline import RunOptions, adapt, train_source
from edgeuda.training.recipe import load_recipe

SPACE = SPACES["camvid-11"]
FEW = LabelSpace.from_record(
    {"name": "few", "classes": ["road", "car"], "palette": [[0, 0, 0], [9, 9, 9]]}
)
SIZE = (64, 128)
TINY = (
    "model.width=0.125", "model.input=[64, 128]", "geometry.crop=[64, 128]", "precision=32-true",
    "source.steps=2", "source.batch=2", "source.warmup=0", "adabn.batches=2", "adabn.batch=2",
    "entropy.steps=2", "entropy.batch=2", "monitor.frames=2", 'stages=["adabn", "entropy"]',
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    write_dataset(root / "city", "simulator", 6, 0, *SIZE, SPACE)
    write_dataset(root / "target", "camera", 4, 9, *SIZE, SPACE)
    for number in range(3):  # a source with two classes, the upper half without label
        label = np.full(SIZE, number % 2, np.uint8)
        label[: SIZE[0] // 2] = 255
        write_image(root / "few/images" / f"{number}.png", np.full((*SIZE, 3), 90, np.uint8))
        write_label(root / "few/labels" / f"{number}.png", label)
    write_json(
        root / "few/dataset.json", {"schema": "edgeuda.dataset/1", "label_space": FEW.to_record()}
    )
    return root


def test_the_first_source_names_the_classes_and_ids_are_translated(data):
    sources = open_sources([data / "city", data / "few"])
    assert sources.space == SPACE
    domains = load_domains(sources, None, SIZE)
    assert len(domains.source) == 9
    assert domains.counts.shape == (9, len(SPACE))
    theirs = domains.counts[6:].sum(0)
    present = {SPACE.classes[index] for index in np.flatnonzero(theirs)}
    assert present == {"road", "car"}
    assert theirs.sum() == 3 * SIZE[0] * SIZE[1] // 2
    image, label = domains.source[7]
    assert image.mean() == 90
    assert set(np.unique(label)) == {SPACE.classes.index("car"), 255}
    assert domains.source.names[6].endswith("few/images/0.png")


def test_one_folder_is_read_as_before(data):
    domains = load_domains(open_sources(data / "city"), None, SIZE)
    assert type(domains.source) is Images
    assert domains.source.draw(range(6), 3, 0) == domains.source.draw(range(6), 3, 0)
    assert sorted(domains.source.draw(range(6), 3, 0)) == list(range(6))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 4.0)])
def test_images_are_drawn_by_weight_and_all_of_them(weights, data):
    joined = load_domains(
        open_sources([data / "city", data / "few"], weights=weights), None, SIZE
    ).source
    assert isinstance(joined, Joined)
    drawn = joined.draw(range(4000), 5, 0)
    assert drawn[100:110] == joined.draw(range(100, 110), 5, 0)
    counts = np.bincount(drawn, minlength=9)
    share = weights[1] / sum(weights)
    assert counts[6:].sum() / 4000 == pytest.approx(share, abs=0.03)
    assert counts[:6].min() > 0.7 * counts[:6].max()
    assert counts[6:].min() > 0.7 * counts[6:].max()
    assert joined.draw(range(50), 5, 0) != joined.draw(range(50), 6, 0)


def test_each_source_holds_images_out(data):
    domains = load_domains(
        open_sources([data / "city", data / "few"], weights=(1.0, 3.0)), None, SIZE
    )
    taught, held = hold_out(domains, 0.34)
    assert len(held) == 3
    assert len(taught.source) == len(taught.counts) == 6
    assert set(held.names) | set(taught.source.names) == set(domains.source.names)
    assert sum("few" in name for name in held.names) == 1
    assert taught.source.weights == (1.0, 3.0)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, 1.0, 1.0)])
def test_weights_that_do_not_fit_are_refused(weights, data):
    with pytest.raises(ConfigError, match="`source_weights`: expected one positive number"):
        open_sources([data / "city", data / "few"], weights=weights)


def test_a_run_learns_from_both_and_resumes_only_with_the_same(data, tmp_path):
    both = [data / "city", data / "few"]
    recipe = load_recipe("small", TINY)
    options = RunOptions(tmp_path / "run", source_weights=(2.0, 1.0))
    train_source(recipe, both, None, options)
    record = json.loads((tmp_path / "run" / RUN_FILE).read_text())
    assert record["data"]["source_weights"] == [2.0, 1.0]
    adapt(recipe, tmp_path / "run", both, data / "target", RunOptions(tmp_path / "adapted"))
    assert (tmp_path / "adapted/model.safetensors").exists()
    again = RunOptions(tmp_path / "run", resume=True, source_weights=(1.0, 1.0))
    with pytest.raises(Exception, match="another recipe, seed, model or data"):
        train_source(recipe, both, None, again)
