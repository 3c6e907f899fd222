"""Patch-based image classifiers in JAX/Flax: MLP-Mixer and its relatives, trained, compared and reproduced."""

__version__ = "0.1.0"
