"""Importing timm beside any build of torch."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

from edgeuda.errors import ConfigError

OPERATORS = ("nms", "qnms")
"""Those of torchvision that its import expects to exist; no network of timm uses them."""


def timm() -> ModuleType:
    """Import timm.

    Raises:
        ConfigError: If timm is not installed, or cannot be imported.
    """
    found = sys.modules.get("timm")
    if found is not None:
        return found
    if importlib.util.find_spec("timm") is None:
        msg = (
            "Encoders are those of timm, which is missing. Install it: pip install 'edgeuda[train]'"
        )
        raise ConfigError(msg)
    _declare_operators()
    try:
        return importlib.import_module("timm")
    except (AttributeError, ImportError, OSError, RuntimeError) as err:
        msg = (
            f"timm cannot be imported beside torch {torch.__version__}: {err}. It needs the "
            "torchvision that belongs to this torch: pip install --upgrade timm torchvision"
        )
        raise ConfigError(msg) from err


def _declare_operators() -> None:
    """Declare torchvision's operators if its compiled part cannot be loaded.

    It is built against one kind of torch: the package index's does not load beside a build for CPUs
    alone, and torchvision's import then fails for want of operators.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or "torchvision" in sys.modules:
        return
    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:
            break
        return
    missing = [name for name in OPERATORS if not hasattr(torch.ops.torchvision, name)]
    declared = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in missing:
        signature = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        declared.define(signature)  # type: ignore[no-untyped-call]
    _KEPT.append(declared)


_KEPT: list[torch.library.Library] = []
"""Operators are gone when what declared them is collected."""
