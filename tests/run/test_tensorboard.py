"""TensorBoard's own reader sees every step once, however often a run was killed."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from patchnets.run import tensorboard
from patchnets.run.tensorboard import TensorBoard


def write(directory, monkeypatch, now, resumed_at, steps):
    monkeypatch.setattr(tensorboard.time, "time", lambda: now)
    board = TensorBoard(directory, enabled=True)
    board.resume_from(resumed_at)
    for step in steps:
        board.write(step, {"loss": now + step})
    board.close()


@pytest.mark.slow
def test_a_resumed_run_takes_the_place_of_the_steps_after_its_checkpoint(tmp_path, monkeypatch):
    write(tmp_path, monkeypatch, 1000, 0, range(1, 12))
    write(tmp_path, monkeypatch, 2000, 5, range(6, 9))
    write(tmp_path, monkeypatch, 3000, 7, range(8, 13))
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    events.Reload()
    expected = [*((s, 1000 + s) for s in range(1, 6)), (6, 2006), (7, 2007), *((s, 3000 + s) for s in range(8, 13))]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == expected


@pytest.mark.slow
def test_a_run_that_starts_again_takes_the_place_of_all(tmp_path, monkeypatch):
    write(tmp_path, monkeypatch, 1000, 0, range(1, 12))
    write(tmp_path, monkeypatch, 2000, 0, [1, 2])
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2001), (2, 2002)]
