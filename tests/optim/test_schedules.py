"""Schedules against their closed forms, step by step, and which combinations are refused."""

import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from patchnets import config as config_lib
from patchnets.errors import UserError
from patchnets.experiment import build_schedule
from patchnets.optim.schedules import in_steps

PEAK, TOTAL, WARMUP = 0.4, 100, 20
# After the warm-up, as a function of the share of the way from the peak to the end of the run.
FORMS = {
    "constant": lambda share, end: 1.0,
    "cosine": lambda share, end: end + (1 - end) * (1 + math.cos(math.pi * share)) / 2,
    "linear": lambda share, end: 1 - (1 - end) * share,
}


def config_of(learning_rate: float = PEAK, **schedule) -> ml_collections.ConfigDict:
    config = config_lib.default_config()
    config.update(dict(optimizer=dict(learning_rate=learning_rate), schedule=schedule))
    return config


def rates(config: ml_collections.ConfigDict, steps, total_steps: int = TOTAL, steps_per_epoch: int = 1) -> list[float]:
    schedule = build_schedule(config, total_steps, steps_per_epoch)
    return [float(schedule(step)) for step in steps]


def refused(config: ml_collections.ConfigDict, total_steps: int = TOTAL, steps_per_epoch: int = 1) -> str:
    with pytest.raises(UserError) as caught:
        build_schedule(config, total_steps, steps_per_epoch)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- constant, cosine, linear, and the warm-up ------------------------------------------------------------------------


@pytest.mark.parametrize("end_factor", [0.0, 0.25])
@pytest.mark.parametrize("name", list(FORMS))
def test_schedule_equals_its_closed_form_from_the_first_step_to_the_last(name, end_factor):
    config = config_of(name=name, warmup_steps=WARMUP, end_factor=end_factor)
    steps = [0, 1, WARMUP // 2, WARMUP - 1, WARMUP, WARMUP + 1, 60, TOTAL - 1, TOTAL]
    expected = [
        PEAK * (step / WARMUP if step < WARMUP else FORMS[name]((step - WARMUP) / (TOTAL - WARMUP), end_factor))
        for step in steps
    ]
    np.testing.assert_allclose(rates(config, steps), expected, rtol=1e-6, atol=1e-8)
    assert expected[0] == 0.0 and expected[4] == PEAK
    if name != "constant":
        assert expected[-1] == pytest.approx(PEAK * end_factor)


@pytest.mark.parametrize("name", list(FORMS))
def test_schedule_without_warm_up_starts_at_the_peak(name):
    config = config_of(name=name, end_factor=0.1)
    expected = [PEAK * FORMS[name](step / TOTAL, 0.1) for step in (0, 50, 99, 100)]
    np.testing.assert_allclose(rates(config, [0, 50, 99, 100]), expected, rtol=1e-6)
    config.schedule.warmup_steps = 0
    np.testing.assert_allclose(rates(config, [0, 50, 99, 100]), expected, rtol=1e-6)


def test_warm_up_in_epochs_equals_the_same_in_steps():
    in_epochs, in_steps = config_of(name="cosine", warmup_epochs=2.5), config_of(name="cosine", warmup_steps=20)
    every = range(TOTAL + 1)
    assert rates(in_epochs, every, steps_per_epoch=8) == rates(in_steps, every, steps_per_epoch=8)


@pytest.mark.parametrize(
    ("schedule", "warmup"),
    [(dict(warmup_steps=100), 100), (dict(warmup_steps=250), 250), (dict(warmup_epochs=13.0), 104)],
)
def test_warm_up_that_is_no_shorter_than_the_run_is_refused_with_both_lengths(schedule, warmup):
    text = refused(config_of(**schedule), steps_per_epoch=8)
    assert f"{warmup} steps" in text and str(TOTAL) in text and "config.schedule.warmup" in text


def test_warm_up_one_step_shorter_than_the_run_is_taken():
    config = config_of(name="linear", warmup_steps=TOTAL - 1)
    np.testing.assert_allclose(rates(config, [TOTAL - 2, TOTAL - 1]), [PEAK * 98 / 99, PEAK], rtol=1e-6)


def test_duration_is_none_where_neither_unit_is_given_and_rounds_epochs_to_whole_steps():
    def total(per_epoch, steps=None, epochs=None):
        return in_steps("total", steps=steps, epochs=epochs, steps_per_epoch=per_epoch)

    assert total(7) is None
    assert total(7, epochs=1.5) in (10, 11) and total(6, epochs=1.5) == 9
    assert total(7, steps=3) == 3


# --- one_cycle --------------------------------------------------------------------------------------------------------


def test_one_cycle_has_the_corners_of_convmixer_and_is_linear_between_them():
    actual = rates(config_of(name="one_cycle"), [0, 20, 40, 60, 80, 90, 100], steps_per_epoch=7)
    np.testing.assert_allclose(actual, [0, PEAK / 2, PEAK, PEAK * 0.525, PEAK / 20, PEAK / 40, 0], rtol=1e-5, atol=1e-9)


def test_one_cycle_takes_no_warm_up_besides_its_own():
    assert "one_cycle has its own warmup" in refused(config_of(name="one_cycle", warmup_epochs=1.0))
    assert rates(config_of(name="one_cycle", warmup_steps=0), [40]) == pytest.approx([PEAK])


# --- step -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0, 10, 35])
def test_steps_multiply_the_peak_at_multiples_counted_from_the_start_of_the_run(warmup):
    config = config_of(name="step", step_every_steps=30, step_factor=0.2, warmup_steps=warmup)
    steps = [warmup, *(step for step in (29, 30, 31, 59, 60, 89, 90, 99) if step > warmup)]
    expected = [PEAK * 0.2 ** (step // 30) for step in steps]
    np.testing.assert_allclose(rates(config, steps), expected, rtol=1e-6)
    if warmup:
        np.testing.assert_allclose(rates(config, [0, warmup // 2]), [0, PEAK * (warmup // 2) / warmup], rtol=1e-6)


def test_steps_in_epochs_equal_the_same_in_steps():
    in_epochs, in_steps = config_of(name="step", step_every_epochs=2.5), config_of(name="step", step_every_steps=20)
    assert rates(in_epochs, range(TOTAL), steps_per_epoch=8) == rates(in_steps, range(TOTAL), steps_per_epoch=8)
    shorter_than_a_step = config_of(name="step", step_every_epochs=0.1, step_factor=0.5)
    np.testing.assert_allclose(rates(shorter_than_a_step, [0, 1, 4]), [PEAK, PEAK / 2, PEAK / 16], rtol=1e-6)


def test_steps_are_given_to_the_step_schedule_and_to_no_other():
    assert "config.schedule.step_every_epochs" in refused(config_of(name="step"))
    text = refused(config_of(name="cosine", step_every_steps=5))
    assert "name=cosine has no steps" in text and "step_every_steps" in text


# --- rsqrt and the cooldown -------------------------------------------------------------------------------------------


def test_rsqrt_falls_with_the_root_of_the_steps_since_the_warm_up():
    config = config_of(name="rsqrt", timescale_steps=16, warmup_steps=WARMUP)
    steps = [0, 5, 19, 20, 21, 68, 99]
    expected = [step / 20 if step < 20 else math.sqrt(16 / (16 + step - 20)) for step in steps]
    np.testing.assert_allclose(rates(config, steps), PEAK * np.array(expected), rtol=1e-6)
    assert rates(config, [68]) == pytest.approx([PEAK / 2])  # 48 = 3 x 16 steps later


@pytest.mark.parametrize("name", ["constant", "rsqrt"])
def test_the_cooldown_goes_linearly_from_the_rate_at_its_start_to_zero_after_the_last_step(name):
    settings = dict(name=name, timescale_steps=10, warmup_steps=WARMUP)
    steps = [0, 10, 20, 50, 74, 75, 80, 99, 100]
    plain = rates(config_of(**settings), [min(step, 75) for step in steps])
    expected = [rate * min(1.0, (100 - step) / 25) for rate, step in zip(plain, steps)]
    np.testing.assert_allclose(rates(config_of(**settings, cooldown_steps=25), steps), expected, rtol=1e-5, atol=1e-9)
    assert expected[-3:] == pytest.approx([plain[5] * 0.8, plain[5] / 25, 0.0])
    assert rates(config_of(**settings, cooldown_epochs=5.0), steps, steps_per_epoch=5) == rates(
        config_of(**settings, cooldown_steps=25), steps
    )


@pytest.mark.parametrize("name", ["cosine", "linear", "one_cycle", "step"])
def test_only_constant_and_rsqrt_take_a_cooldown(name):
    every = dict(step_every_steps=10) if name == "step" else {}
    text = refused(config_of(name=name, cooldown_steps=10, **every))
    assert f"config.schedule.name={name} takes no cooldown" in text
    assert rates(config_of(name=name, cooldown_steps=0, **every), [40]) == rates(config_of(name=name, **every), [40])


def test_warm_up_and_cooldown_fit_into_the_run_just_so():
    fits = config_of(name="constant", warmup_steps=WARMUP, cooldown_steps=TOTAL - WARMUP)
    np.testing.assert_allclose(rates(fits, [10, 20, 60, 99]), PEAK * np.array([0.5, 1, 0.5, 1 / 80]), rtol=1e-6)
    text = refused(config_of(name="constant", warmup_steps=WARMUP, cooldown_steps=TOTAL - WARMUP + 1))
    assert "20 steps" in text and "81" in text and "100" in text and "config.schedule.cooldown" in text
    assert "cooldown (101 steps)" in refused(config_of(name="rsqrt", cooldown_steps=101))


# --- compiled ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    [
        dict(name="constant", warmup_steps=7, cooldown_steps=9),
        dict(name="cosine", warmup_steps=7),
        dict(name="linear", end_factor=0.1),
        dict(name="one_cycle"),
        dict(name="step", warmup_steps=7, step_every_steps=13),
        dict(name="rsqrt", warmup_steps=7, cooldown_steps=9, timescale_steps=3),
    ],
    ids=lambda schedule: schedule["name"],
)
def test_the_same_rates_come_out_of_compiled_code_that_steps_are_arguments_of(schedule):
    config = config_of(**schedule)
    function = build_schedule(config, TOTAL, 1)
    steps = jnp.arange(TOTAL, dtype=jnp.int32)
    with jax.debug_nans(True):
        compiled = jax.jit(lambda steps: jax.lax.map(function, steps))(steps)
    assert compiled.dtype == jnp.float32
    np.testing.assert_allclose(compiled, rates(config, range(TOTAL)), rtol=1e-5, atol=1e-8)  # fused, rounded otherwise
    assert np.isfinite(compiled).all() and float(compiled.max()) <= PEAK * (1 + 1e-6)
