"""Augmentation on the device: pure JAX functions of (key, images). Knows no config, file or data set."""
