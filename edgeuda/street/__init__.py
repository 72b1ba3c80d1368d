"""Labelled driving scenes in two domains, drawn from a seed: data for demos and tests."""

from edgeuda.street.dataset import write_dataset
from edgeuda.street.domain import DOMAINS, Domain
from edgeuda.street.scene import Drive, render

__all__ = ["DOMAINS", "Domain", "Drive", "render", "write_dataset"]
