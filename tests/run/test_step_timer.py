"""Steps a dispatch and images a second, by a clock that the test moves."""

import time

import pytest

from patchnets.run.step_timer import SECONDS_PER_CALL, StepTimer


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", made)
    return made


def dispatch(timer: StepTimer, clock: Clock, steps: int, images: int, seconds: float) -> None:
    with timer.measure(steps, images):
        clock.now += seconds
    clock.now += 1000.0  # what happens between two dispatches is not counted


def test_fixed_steps_are_given_unless_fewer_are_left(clock):
    timer = StepTimer(fixed_steps=7)
    assert [timer.steps_per_call(100), timer.steps_per_call(7), timer.steps_per_call(3)] == [7, 7, 3]
    for _ in range(3):
        dispatch(timer, clock, 7, 70, 0.001)
    assert timer.steps_per_call(1000) == 7


def test_steps_fill_about_the_time_of_a_dispatch_once_a_dispatch_after_compilation_was_timed(clock):
    timer = StepTimer()
    assert timer.steps_per_call(1000) == 1
    dispatch(timer, clock, 1, 10, 60.0)  # compiles
    assert timer.steps_per_call(1000) == 1
    dispatch(timer, clock, 1, 10, SECONDS_PER_CALL / 16)
    assert timer.steps_per_call(1000) == 16
    dispatch(timer, clock, 16, 160, SECONDS_PER_CALL / 2)  # twice as fast by now
    assert timer.steps_per_call(1000) == 32


def test_steps_are_never_more_than_at_most_and_few_where_a_step_is_slow(clock):
    timer = StepTimer()
    dispatch(timer, clock, 1, 10, 60.0)
    dispatch(timer, clock, 1, 10, SECONDS_PER_CALL / 64)
    assert [timer.steps_per_call(64), timer.steps_per_call(63), timer.steps_per_call(5), timer.steps_per_call(1)] == [
        64,
        63,
        5,
        1,
    ]
    dispatch(timer, clock, 1, 10, 10 * SECONDS_PER_CALL)
    assert 1 <= timer.steps_per_call(1000) <= 4 and timer.steps_per_call(1) == 1


def test_first_dispatch_counts_only_while_there_is_no_other(clock):
    timer = StepTimer()
    dispatch(timer, clock, 1, 128, 60.0)
    assert (timer.images, timer.seconds, timer.images_per_second) == (0, 0.0, 128 / 60)
    dispatch(timer, clock, 2, 256, 0.5)
    dispatch(timer, clock, 4, 512, 1.5)
    assert timer.images == 768 and timer.seconds == pytest.approx(2.0)
    assert timer.images_per_second == pytest.approx(384.0)


def test_dispatch_that_fails_is_not_counted(clock):
    timer = StepTimer()
    dispatch(timer, clock, 1, 10, 1.0)
    dispatch(timer, clock, 1, 10, 1.0)
    with pytest.raises(RuntimeError, match="lost"), timer.measure(1, 10):
        clock.now += 50.0
        raise RuntimeError("lost")
    assert (timer.images, timer.seconds) == (10, pytest.approx(1.0))


def test_lap_gives_the_rate_since_the_last_lap(clock):
    timer = StepTimer()
    assert timer.rate_since_last() is None
    dispatch(timer, clock, 1, 100, 60.0)
    assert timer.rate_since_last() is None
    dispatch(timer, clock, 1, 100, 2.0)
    dispatch(timer, clock, 1, 100, 2.0)
    assert timer.rate_since_last() == pytest.approx(50.0)
    dispatch(timer, clock, 1, 100, 0.5)
    assert timer.rate_since_last() == pytest.approx(200.0)
    assert timer.rate_since_last() is None
    assert timer.images_per_second == pytest.approx(300 / 4.5)


def test_continued_run_adds_to_what_an_earlier_process_counted_and_laps_from_there(clock):
    timer = StepTimer(images=1000, seconds=10.0)
    assert timer.images_per_second == pytest.approx(100.0)
    dispatch(timer, clock, 1, 500, 60.0)  # compiles, in this process
    dispatch(timer, clock, 1, 500, 5.0)
    assert (timer.images, timer.seconds) == (1500, pytest.approx(15.0))
    assert timer.rate_since_last() == pytest.approx(100.0)
