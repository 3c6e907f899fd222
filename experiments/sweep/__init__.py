"""Variations of a configuration, named in a file: python -m experiments.sweep."""
