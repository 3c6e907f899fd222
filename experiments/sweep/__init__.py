"""Train variations of a configuration that a file lists: python -m experiments.sweep."""
