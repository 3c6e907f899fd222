"""Sweeps: what python -m experiments.sweep --sweep=FILE runs."""
