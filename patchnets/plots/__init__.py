"""Plots. `python -m patchnets.plots WORKDIR` draws those of a run."""
