"""Train and report published tables: python -m experiments.reproduce."""
