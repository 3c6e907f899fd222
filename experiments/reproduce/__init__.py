"""Published tables, trained and reported: python -m experiments.reproduce."""
