"""Train families with one recipe at equal cost: python -m experiments.compare."""
