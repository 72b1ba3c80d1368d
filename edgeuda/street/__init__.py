"""Labelled driving scenes in two domains, drawn from a seed: data for demos and tests."""

from edgeuda.street.dataset import write_dataset
from edgeuda.street.domain import DOMAINS, StreetDomain
from edgeuda.street.scene import Drive, render

__all__ = ["DOMAINS", "Drive", "StreetDomain", "render", "write_dataset"]
