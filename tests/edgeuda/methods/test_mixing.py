"""Cross-domain image mixing, long-tail pasting, related classes."""

import pytest
import torch

from edgeuda.labels import IGNORE, SPACES
from edgeuda.methods.mixing import (
    ALPHA,
    TRUSTED,
    Mixed,
    MixSettings,
    class_mask,
    mix,
    related_classes,
)

K = 6


def generators(count, seed=0):
    return [torch.Generator().manual_seed(1000 * seed + place) for place in range(count)]


def scene(n=3, height=8, width=12):
    torch.manual_seed(1)
    label = torch.randint(K, (n, height, width))
    label[:, 0, 0] = 255
    pseudo = torch.randint(K, (n, height, width))
    confidence = torch.rand(n, height, width)
    return {
        "source": torch.rand(n, 3, height, width),
        "source_label": label,
        "target": torch.rand(n, 3, height, width) + 2,
        "pseudo_label": pseudo,
        "confidence": confidence,
        "thresholds": torch.full((K,), 0.8),
    }


def crop(index, generator):
    """The class in the upper half, its neighbour below, in a colour that tells it."""
    if index == 5:
        return None
    label = torch.full((8, 12), (index + 1) % K)
    label[:4] = index
    return torch.full((3, 8, 12), -1.0 - index), label


def test_mask_holds_half_of_the_classes_rounded_up_and_never_ignore():
    label = torch.tensor([[0, 0, 1], [2, 3, 255], [4, 4, 255]])
    seen = set()
    for generator in generators(30):
        mask = class_mask(label, generator)
        drawn = set(label[mask].tolist())
        assert len(drawn) == 3  # ceil(5 / 2)
        assert 255 not in drawn
        for c in range(5):  # a class is taken whole or not at all
            part = mask[label == c]
            assert part.all() or not part.any()
        seen |= drawn
        assert len(set(label[class_mask(label, generator, fewer=2)].tolist())) == 1
        assert len(set(label[class_mask(label, generator, fewer=9)].tolist())) == 1
    assert seen == {0, 1, 2, 3, 4}


def test_related_classes_come_along():
    related = torch.eye(5, dtype=torch.bool)
    related[:, 4] = True
    label = torch.tensor([[0, 1, 2, 3, 4, 255]])
    for generator in generators(10):
        assert class_mask(label, generator, related=related)[0, 4]
        assert not class_mask(label, generator, related=related)[0, 5]


def test_an_unlabelled_image_is_left_alone():
    inputs = scene(1) | {"source_label": torch.full((1, 8, 12), 255)}
    for mode in ("single", "dual-soft"):
        mixed = mix(
            **inputs, settings=MixSettings(mode=mode), related=torch.eye(K, dtype=torch.bool),
            crop=None, generators=generators(1),
        )  # fmt: skip
        assert torch.equal(mixed.images[-1:], inputs["target"])
        assert torch.equal(mixed.terms[-1][0][-1:], inputs["pseudo_label"])


def test_single_mode_pastes_source_and_weighs_the_rest_by_trust():
    inputs = scene()
    kept = {name: value.clone() for name, value in inputs.items()}
    mixed = mix(
        **inputs, settings=MixSettings(), related=torch.eye(K, dtype=torch.bool), crop=None,
        generators=generators(3),
    )  # fmt: skip
    assert all(torch.equal(inputs[name], kept[name]) for name in kept)
    ((label, weight),) = mixed.terms
    trust = (inputs["confidence"] >= TRUSTED).float().mean((1, 2))
    assert torch.equal(mixed.trust, trust)
    for n in range(3):
        pasted = mixed.images[n, 0] < 1  # target images are brighter than 2
        drawn = set(inputs["source_label"][n][pasted].tolist())
        assert len(drawn) == K // 2
        assert 255 not in drawn
        assert torch.equal(pasted, torch.isin(inputs["source_label"][n], torch.tensor([*drawn])))
        assert torch.equal(label[n][pasted], inputs["source_label"][n][pasted])
        assert torch.equal(label[n][~pasted], inputs["pseudo_label"][n][~pasted])
        assert (weight[n][pasted] == 1).all()
        assert (weight[n][~pasted] == trust[n]).all()


def test_a_picture_shows_the_label_that_weighs_most():
    shape = (2, 4, 6)
    pasted = torch.zeros(shape, dtype=torch.bool)
    pasted[..., 4:] = True
    above = torch.full(shape, 3), torch.where(pasted, 1.6, 0.0)
    below = torch.full(shape, 1), torch.where(pasted, 0.4, 2.0)
    images, trust = torch.zeros(2, 3, 4, 6), torch.ones(2)
    assert torch.equal(Mixed(images, (above, below), trust).label(), torch.where(pasted, 3, 1))
    assert torch.equal(Mixed(images, (above,), trust).label(), above[0])


@pytest.mark.parametrize("mode", ["single", "dual-soft"])
def test_draws_do_not_depend_on_the_batch(mode):
    inputs, settings = scene(4), MixSettings(mode=mode, long_tail=0.5, related=True, boundary=1)
    related = related_classes([str(c) for c in range(K)])

    def run(part):
        tensors = {k: v[part] if k != "thresholds" else v for k, v in inputs.items()}
        return mix(
            **tensors, settings=settings, related=related, crop=crop,
            generators=generators(4)[part],
        )  # fmt: skip

    whole, first, second = run(slice(0, 4)), run(slice(0, 2)), run(slice(2, 4))
    blocks = len(whole.images) // 4
    joined = torch.cat([
        torch.cat([a, b])
        for a, b in zip(first.images.chunk(blocks), second.images.chunk(blocks), strict=True)
    ])  # fmt: skip
    assert torch.equal(whole.images, joined)


def test_long_tail_classes_are_cut_with_what_goes_along_and_hard_ones_more_often():
    inputs = scene(1)
    inputs["thresholds"] = torch.tensor([0.3, 0.9, 0.9, 0.9, 0.9, 0.9])
    related = torch.eye(K, dtype=torch.bool)
    related[2, 3] = True  # crops of class 2 hold class 3 below it
    seen = torch.zeros(K)
    for seed in range(150):
        mixed = mix(
            **inputs, settings=MixSettings(long_tail=1.0), related=related, crop=crop,
            generators=generators(1, seed),
        )  # fmt: skip
        ((label, weight),) = mixed.terms
        red = mixed.images[0, 0]
        for c in range(K):
            cut = red == -1.0 - c
            if not cut.any():
                continue
            seen[c] += 1
            assert (weight[0][cut] == 1).all()
            allowed = {c, c + 1} if c == 2 else {c}
            assert set(label[0][cut].tolist()) <= allowed
    assert seen[5] == 0  # no source image has it
    assert seen[0] > 1.5 * seen[1:5].max()


def test_long_tail_counts_and_the_uniform_draw():
    inputs = scene(1)
    for settings, adaptive, counts in (
        (MixSettings(mode="dual-soft"), False, {2}),
        (MixSettings(mode="dual-soft"), True, {2}),
        (MixSettings(long_tail=1.0), False, {2}),
        (MixSettings(long_tail=1.0), True, {2, 3, 4}),
    ):
        seen = []
        for seed in range(30):
            asked = []
            mix(
                **inputs, settings=settings, related=torch.eye(K, dtype=torch.bool),
                crop=lambda c, _, asked=asked: asked.append(c), generators=generators(1, seed),
                adaptive=adaptive,
            )  # fmt: skip
            seen.append(asked)
        assert {len(asked) for asked in seen} == counts
        assert adaptive or all(len(set(asked)) == 2 for asked in seen)


def test_soft_paste_blends_images_and_splits_the_loss():
    """Per pixel, and summed over both images as released: 0.8 pasted, 0.2 of what lies beneath.

    Trust weighs a target image's pseudo-labels outside of the paste only.
    """
    inputs = scene(2)
    half = torch.zeros(8, 12, dtype=torch.bool)
    half[:, :5] = True  # only the left of the crop holds the class
    mixed = mix(
        **inputs, settings=MixSettings(mode="dual-soft"), related=torch.eye(K, dtype=torch.bool),
        crop=lambda c, _: (torch.zeros(3, 8, 12), torch.where(half, c, IGNORE)),
        generators=generators(2),
    )  # fmt: skip
    assert mixed.images.shape[0] == 4
    background = torch.cat([inputs["source"], inputs["target"]])
    assert torch.allclose(mixed.images, torch.where(half, 1 - ALPHA, 1.0) * background)
    (pasted, inside), (below, outside) = mixed.terms
    assert torch.equal(below, torch.cat([inputs["source_label"], inputs["pseudo_label"]]))
    assert torch.equal(pasted[:2], pasted[2:])
    assert (mixed.trust < 1).all()
    loss = torch.rand(2, 4, 8, 12)  # of the pasted label, of the label beneath
    expected = 0.0
    for n in range(4):
        trust = 1.0 if n < 2 else mixed.trust[n - 2].item()
        of_image = 0.0
        for y in range(8):
            for x in range(12):
                first, second = loss[:, n, y, x].tolist()
                blend = ALPHA * first + (1 - ALPHA) * second
                of_image += blend if half[y, x] else trust * second
        expected += of_image / (8 * 12) / 2  # the mean over N of source, plus that of target
    found = (inside * loss[0]).mean() + (outside * loss[1]).mean()
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_boundary_weighs_double_on_a_band_of_its_width():
    inputs = scene(1)
    label = torch.zeros(1, 8, 12, dtype=torch.long)
    label[:, :, 6:] = 255  # one class on the left half, drawn for certain
    inputs |= {"source_label": label, "confidence": torch.ones(1, 8, 12)}
    mixed = mix(
        **inputs, settings=MixSettings(boundary=2), related=torch.eye(K, dtype=torch.bool),
        crop=None, generators=generators(1),
    )  # fmt: skip
    assert mixed.terms[0][1][0, 3].tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1]


def ids(table):
    return {
        row: set(line.nonzero()[:, 0].tolist()) - {row}
        for row, line in enumerate(table)
        if line.sum() > 1
    }


def test_related_tables_are_the_published_ones():
    assert ids(related_classes(SPACES["cityscapes-19"].classes)) == {
        0: {9, 12, 13, 14, 15, 16, 17, 18}, 1: {9, 11}, 3: {4}, 4: {3}, 5: {6, 7}, 6: {5, 7},
        7: {5, 6}, 8: {9}, 9: {8}, 12: {17, 18}, 17: {12, 18}, 18: {12, 17},
    }  # fmt: skip
    assert ids(related_classes(SPACES["cityscapes-16"].classes)) == {
        0: {10, 11, 12, 13, 14, 15}, 1: {10, 11, 14, 15}, 2: {5, 6, 7}, 5: {6, 7}, 6: {5, 7},
        7: {5, 6}, 11: {14, 15}, 14: {11, 15}, 15: {11, 14},
    }  # fmt: skip
    thirteen = SPACES["cityscapes-13"].classes
    named = {
        thirteen[a]: {thirteen[b] for b in others}
        for a, others in ids(related_classes(thirteen)).items()
    }
    assert named == {
        "traffic light": {"traffic sign"}, "traffic sign": {"traffic light"},
        "rider": {"motorcycle", "bicycle"}, "motorcycle": {"rider", "bicycle"},
        "bicycle": {"rider", "motorcycle"},
    }  # fmt: skip
    camvid = SPACES["camvid-11"].classes
    assert ids(related_classes(camvid))[camvid.index("pole")] == {camvid.index("signsymbol")}
    assert ids(related_classes(["a", "b"])) == {}
