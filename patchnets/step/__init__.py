"""The compiled part: training and evaluation steps, losses, gradients, metrics and train state."""
