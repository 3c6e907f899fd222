"""Every picture the project draws. `python -m patchnets.plots WORKDIR` draws those of a run."""
