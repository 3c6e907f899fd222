"""Families at equal cost, trained alike: python -m experiments.compare."""
