"""Stages that are more than one training: what runs them, by the name of the stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from edgeuda.errors import ConfigError
from edgeuda.methods.registry import METHODS, MethodType
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


def require_runnable(stages: Iterable[str]) -> None:
    """Refuse stages of which nobody has said what they do.

    Raises:
        ConfigError: If a stage's entry has neither ``build`` nor ``run``, nor is there a procedure.
    """
    for stage in stages:
        kind = METHODS[stage]
        if kind.build is None and kind.run is None and procedure_of(kind) is None:
            msg = (
                f"Stage {stage!r}: nobody says what it does. Give its MethodType `build` or `run`, "
                "or import the module with its procedure"
            )
            raise ConfigError(msg)
