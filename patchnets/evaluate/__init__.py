"""Evaluation of a trained model on labeled images: `python -m patchnets.evaluate MODEL`."""
