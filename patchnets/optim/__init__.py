"""Optimizers, learning-rate schedules, and what happens on a plateau of the validation loss."""
