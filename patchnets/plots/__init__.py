"""Plots. `python -m patchnets.plots WORKDIR` draws the plots of a run."""
