"""Run many trainings and report them: shared by reproduce, sweep, compare and launch."""
