"""Stages that are more than one training: what runs them, by the name of the stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeuda.methods.registry import MethodType
from edgeuda.models.network import Network
from edgeuda.training.fitting import Domains, Job
from edgeuda.training.recipe import Recipe

Procedure = Callable[[Recipe, Any, Network, Domains, Job], None]
"""Called with the recipe, the stage's settings, the network, both domains and where to run; adapts
the network in place and writes it to the job's folder."""

_PROCEDURES: dict[str, Procedure] = {}


def procedure(kind: MethodType) -> Callable[[Procedure], Procedure]:
    """Let a function be what a stage does.

    Args:
        kind: The stage's entry, which has neither ``build`` nor ``run``.
    """

    def keep(function: Procedure) -> Procedure:
        _PROCEDURES[kind.name] = function
        return function

    return keep


def procedure_of(kind: MethodType) -> Procedure | None:
    """Return what was kept for a stage by `procedure`, or None."""
    return _PROCEDURES.get(kind.name)
