"""Unsupervised domain adaptation of lightweight segmentation networks."""

__version__ = "0.1.0"
