"""Adaptive class thresholds against the published vector and a slow reference."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeuda.methods.thresholds import CAP, ThresholdRule, update_thresholds


def by_sorting(old, confidence, winner, rule):
    """The rule as it is written down: sort each class, take the element at the index."""
    nearest = old.clone()
    for k in range(old.numel()):
        values = confidence[winner == k]
        if values.numel():
            pool = torch.cat((values, old[k : k + 1])).sort(descending=True).values
            place = int(pool.numel() * rule.keep * float(old[k]) ** rule.hardness)
            nearest[k] = pool[min(place, pool.numel() - 1)]
    mixed = rule.history * old + (1 - rule.history) * nearest
    return torch.where(mixed >= 1, torch.full_like(mixed, CAP), mixed).clamp(min=rule.floor)


VALUES = [0.99, 0.97, 0.95, 0.92, 0.90, 0.85, 0.82, 0.78, 0.66, 0.51]


@pytest.mark.parametrize(("keep", "expected"), [(0.8, 0.817), (0.2, 0.819)])
def test_published_vector(keep, expected):
    new = update_thresholds(
        torch.tensor([0.8]), torch.tensor(VALUES), torch.zeros(10, dtype=torch.long),
        ThresholdRule(keep=keep),
    )  # fmt: skip
    assert new.item() == pytest.approx(expected, abs=1e-6)


def test_absent_class_keeps_its_threshold():
    old = torch.tensor([0.8, 0.6])
    new = update_thresholds(old, torch.tensor([0.9]), torch.tensor([0]), ThresholdRule())
    assert new[1] == old[1]
    assert new[0] != old[0]


@given(
    st.lists(st.tuples(st.floats(0.25, 1.0, width=32), st.integers(0, 2)), max_size=60),
    st.floats(0.05, 0.999),
)
@settings(max_examples=60, deadline=None)
def test_matches_a_plain_reference_and_stays_below_the_cap(pixels, start):
    rule = ThresholdRule()
    old = torch.full((3,), start)
    confidence = torch.tensor([c for c, _ in pixels])
    winner = torch.tensor([k for _, k in pixels], dtype=torch.long)
    new = update_thresholds(old, confidence, winner, rule)
    for k in range(3):
        t = float(old[k])
        chosen = [float(torch.tensor(c)) for c, w in pixels if w == k]
        expected = t
        if chosen:
            pool = sorted([*chosen, t], reverse=True)
            expected = 0.9 * t + 0.1 * pool[math.floor(len(pool) * rule.keep * t**rule.hardness)]
        assert float(new[k]) == pytest.approx(min(expected, 0.999) if expected < 1 else 0.999)
        assert 0 <= float(new[k]) <= 0.9991


@pytest.mark.parametrize("rule", [ThresholdRule(), ThresholdRule(keep=1.0, hardness=0.0),
                                  ThresholdRule(keep=0.5, hardness=0.0, floor=0.6)])  # fmt: skip
@pytest.mark.parametrize("pixels", [0, 1, 7, 5000])
@pytest.mark.parametrize("classes", [1, 3, 19])
@pytest.mark.parametrize("kind", ["spread", "ties", "certain", "half"])
def test_selection_equals_sorting_to_the_last_bit(rule, pixels, classes, kind):
    generator = torch.Generator().manual_seed(pixels + classes)
    confidence = torch.rand(pixels, generator=generator) * (1 - 1 / 20) + 1 / 20
    if kind == "ties":
        confidence = (confidence * 4).ceil() / 4
    if kind == "certain":
        confidence = torch.where(confidence > 0.5, 1.0, 1 - 1e-7 * confidence)
    if kind == "half":
        confidence = confidence.bfloat16().float()
    winner = torch.randint(classes, (pixels,), generator=generator)
    winner[winner == 1] = 0  # a class that nothing is predicted as
    old = 0.3 + 0.69 * torch.rand(classes, generator=generator)
    if pixels:
        old[0] = confidence[0]  # a threshold that equals a pixel's confidence
    for _ in range(3):
        new = update_thresholds(old, confidence, winner, rule)
        assert torch.equal(new, by_sorting(old, confidence, winner, rule))
        old = new


def test_decay_moves_fast_at_first_and_slowly_later():
    """History 1 - a exp(-step * decay), as released: with a = 0.9, 0.1 at step 0, towards 1."""
    rule = ThresholdRule(history=0.9, decay=0.01)
    for step, weight in ((0, 0.1), (100, 1 - 0.9 * math.exp(-1)), (10**6, 1.0)):
        new = update_thresholds(
            torch.tensor([0.8]), torch.tensor(VALUES), torch.zeros(10).long(), rule, step
        )
        assert new.item() == pytest.approx(weight * 0.8 + (1 - weight) * 0.97, abs=1e-6)
