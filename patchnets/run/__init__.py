"""What a run leaves behind and shows: work directory, checkpoints, terminal, TensorBoard events."""
