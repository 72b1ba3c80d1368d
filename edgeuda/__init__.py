"""Unsupervised domain adaptation of lightweight segmentation networks.

What a notebook needs is here; torch is imported when one of it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeuda.accuracy.evaluation import Evaluation
    from edgeuda.data.images import read_image
    from edgeuda.errors import EdgeudaError
    from edgeuda.labels import LabelSpace, label_space
    from edgeuda.methods.registry import register_method
    from edgeuda.training.recipe import load_recipe
    from edgeuda.training.runs import Run, SegmentationModel, adapt, evaluate, train, wrap
    from edgeuda.training.runs import open_network as load_model

__version__ = "0.1.0"
__all__ = [
    "EdgeudaError",
    "Evaluation",
    "LabelSpace",
    "Run",
    "SegmentationModel",
    "adapt",
    "evaluate",
    "label_space",
    "load_model",
    "load_recipe",
    "read_image",
    "register_method",
    "train",
    "wrap",
]
_HOMES = {
    "EdgeudaError": "edgeuda.errors",
    "Evaluation": "edgeuda.accuracy.evaluation",
    "LabelSpace": "edgeuda.labels",
    "label_space": "edgeuda.labels",
    "load_recipe": "edgeuda.training.recipe",
    "read_image": "edgeuda.data.images",
    "register_method": "edgeuda.methods.registry",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        msg = f"module 'edgeuda' has no attribute {name!r}"
        raise AttributeError(msg)
    home = import_module(_HOMES.get(name, "edgeuda.training.runs"))
    return getattr(home, "open_network" if name == "load_model" else name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
