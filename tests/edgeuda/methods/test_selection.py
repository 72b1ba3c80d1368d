"""Selectors of pseudo-labels against NumPy and the released code's numbers."""

import numpy as np
import pytest
import torch

from edgeuda.methods.selection import (
    HIGHEST,
    InstanceAdaptive,
    balanced_thresholds,
    confidence_histogram,
    quantiles,
    select,
)


def histogram(*lists):
    confidence = torch.tensor([value for values in lists for value in values])
    label = torch.tensor([c for c, values in enumerate(lists) for _ in values])
    return confidence_histogram(confidence, label.long(), len(lists))


def test_released_numbers():
    rule = InstanceAdaptive(keep=0.5, history=0.9, hardness=8.0)
    theta = torch.full((3,), 0.9, dtype=torch.float64)
    first = histogram([0.99, 0.98, 0.95, 0.90, 0.80], [0.7, 0.6, 0.5], [])
    psi = quantiles(first, theta, 1 - 0.5 * theta**8)
    assert psi.tolist() == pytest.approx([0.9777118, 0.77098596, 0.9], abs=1e-7)
    theta = rule.update(theta, first)
    assert theta.tolist() == pytest.approx([0.90777118, 0.8870986, 0.9], abs=1e-8)
    second = histogram([0.97, 0.96], [0.55, 0.45], [0.999, 0.998, 0.5])
    psi = quantiles(second, theta, 1 - 0.5 * theta**8)
    assert psi.tolist() == pytest.approx([0.9654866, 0.7577435, 0.9983929], abs=1e-7)
    theta = rule.update(theta, second)
    assert theta.tolist() == pytest.approx([0.91354273, 0.87416309, 0.90983929], abs=1e-8)


def test_predecessor_numbers():
    theta = torch.full((3,), 0.9, dtype=torch.float64)
    found = quantiles(histogram([0.5, 0.7], [], [0.95]), theta, 1 - 0.2 * theta**8)
    assert found.tolist() == pytest.approx([0.8655626, 0.9, 0.94569534], abs=2e-4)


def released_update(theta, confidence, label, rule):
    """The released arithmetic, class by class with NumPy."""
    psi = np.ones(len(theta), np.float32)
    for c in range(len(theta)):
        samples = np.concatenate([[theta[c]], confidence[label == c].astype(np.float16)])
        psi[c] = np.quantile(samples, 1 - rule.keep * theta[c] ** rule.hardness)
    theta = rule.history * theta + (1 - rule.history) * psi
    theta[theta >= 1] = HIGHEST
    return theta


@pytest.mark.parametrize("seed", range(3))
def test_no_difference_to_the_released_arithmetic(seed):
    rng = np.random.default_rng(seed)
    rule = InstanceAdaptive(keep=rng.uniform(0.1, 0.9), hardness=rng.uniform(0, 8))
    theta = np.full(7, 0.9)
    ours = torch.from_numpy(theta.copy())
    for _ in range(4):
        confidence = rng.beta(5, 1, (2, 30, 40)).astype(np.float32)
        label = rng.integers(0, 6, confidence.shape)  # class 6 never occurs
        theta = released_update(theta, confidence, label, rule)
        both = torch.from_numpy(confidence), torch.from_numpy(label)
        ours = rule.update(ours, confidence_histogram(*both, 7))
        assert np.array_equal(ours.numpy(), theta)
        expected = np.where(confidence >= theta.astype(np.float32)[label], label, 255)
        assert np.array_equal(select(*both, ours).numpy(), expected)
    assert theta[6] == pytest.approx(0.9)


def test_thresholds_stay_below_one():
    theta = InstanceAdaptive(history=0.0).update(
        torch.tensor([0.9], dtype=torch.float64), histogram([1.0] * 50)
    )
    assert theta.item() == HIGHEST


def test_class_balanced_thresholds_keep_a_share_of_each_class():
    rng = np.random.default_rng(0)
    confidence = torch.from_numpy(rng.uniform(0.3, 0.99, 20000).astype(np.float32))
    label = torch.from_numpy(rng.integers(0, 3, 20000))
    theta = balanced_thresholds(confidence_histogram(confidence, label, 4), 0.2)
    kept = select(confidence, label, theta)
    for c in range(3):
        assert ((kept == c).sum() / (label == c).sum()).item() == pytest.approx(0.2, abs=0.01)
    assert theta[3] == 1
