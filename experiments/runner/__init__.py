"""Runs many trainings and reports them: shared by reproduce, sweep, compare and launch."""
