"""Adaptive class thresholds against the published vector and a slow reference."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeuda.methods.thresholds import ThresholdRule, update_thresholds

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
