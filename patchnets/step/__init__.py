"""What is compiled: the training and evaluation step, its loss, gradients, metrics and state."""
