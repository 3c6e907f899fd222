"""Measurements of single parts: augmentation, compilation, CPU tuning, decoding, Keras accuracy."""
