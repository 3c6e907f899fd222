"""Estimate memory, FLOPs and time of a run before it starts: `python -m patchnets.estimate`."""
