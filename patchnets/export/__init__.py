"""python -m patchnets.export: a trained model in the formats of other programs."""
