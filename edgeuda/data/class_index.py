"""Which classes are rare."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def rare_class_probability(
    frequencies: npt.NDArray[np.float64], temperature: float
) -> npt.NDArray[np.float64]:
    """Return ``[K]`` probabilities of drawing a class, ``softmax((1 - f) / temperature)``.

    Classes that do not occur are never drawn. Source: Hoyer et al., "DAFormer", CVPR 2022.
    """
    logits = np.where(frequencies > 0, (1 - frequencies) / temperature, -np.inf)
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum(), np.float64)
