"""Compare the speed of patchnets with Keras and timm: python -m experiments.benchmark."""
