"""Patch-based image classifiers in JAX/Flax: MLP-Mixer and its relatives, trained, compared and reproduced."""

import time

STARTED = time.monotonic()  # when this process began to be patchnets: what "first step after" counts from

__version__ = "0.1.0"
