"""How learning rates fall over a stage, for networks and for what methods train beside them."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["polynomial", "cosine", "constant"]


def decayed(done: float, schedule: Schedule, power: float = 0.9) -> float:
    """Return the factor on a learning rate.

    Args:
        done: Share of the schedule that lies behind, 0 to 1.
        schedule: ``"polynomial"``: ``(1 - done) ** power``; ``"cosine"``, down to a thousandth;
            ``"constant"``: 1.
        power: Of the polynomial.
    """
    if schedule == "cosine":
        return 0.001 + 0.999 * (1 + math.cos(math.pi * done)) / 2
    return 1.0 if schedule == "constant" else float((1 - done) ** power)
