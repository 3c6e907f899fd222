"""Learning-rate schedules: pure functions of the step."""

import jax.numpy as jnp
import optax

from patchnets.errors import UserError

NAMES = ("constant", "cosine", "linear", "one_cycle", "step", "rsqrt")
LARGEST_INT = 2**31 - 1  # steps are counted in 32 bits


def in_steps(name: str, *, steps: int | None, epochs: float | None, steps_per_epoch: int) -> int | None:
    """Return a duration in steps, from `steps` or else from `epochs`; None if neither is set.

    Raises:
      UserError: more steps than a 32-bit counter holds; `name` is the name of the duration in the message.
    """
    if steps is not None:
        return steps
    if epochs is None:
        return None
    if epochs * steps_per_epoch > LARGEST_INT:
        raise UserError(f"config.{name}_epochs={epochs:g} is more than {LARGEST_INT:,} steps; lower it")
    return round(epochs * steps_per_epoch)


def make_schedule(
    name: str = "cosine",
    *,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    cooldown_steps: int = 0,
    end_factor: float = 0.0,
    step_factor: float = 0.1,
    step_every_steps: int | None = None,
    timescale_steps: int = 10_000,
) -> optax.Schedule:
    """Return step (from 0) -> learning rate: a linear warmup from 0 to the peak, `learning_rate`, and then by `name`

      constant: the peak
      cosine, linear: from the peak to `end_factor` times the peak over the rest of the run
      step: the peak, multiplied by `step_factor` every `step_every_steps`, counted from the start of the run
      rsqrt: peak * sqrt(timescale / (timescale + steps since the warmup)), as in arXiv 2106.04560
      one_cycle, without a warmup, as ConvMixer was trained (arXiv 2201.09792, and its repository): linear from 0 to the
        peak over 2/5 of the run, to peak / 20 over the next 2/5, and to 0 over the last 1/5.

    A cooldown (constant and rsqrt only) decays the learning rate linearly to 0 over the last steps of the run. A
    schedule reaches its end value after the last step: the last step uses the value one step before the end.

    Raises:
      UserError: an unknown name, arguments that the schedule does not use, or warmup and cooldown that do not fit into
        the run.
    """
    peak, warmup, cooldown = learning_rate, warmup_steps, cooldown_steps
    _check(name, total_steps, warmup, cooldown, step_every_steps)
    if name == "one_cycle":
        ends = jnp.array([0.0, 0.4, 0.8, 1.0])
        return lambda step: jnp.interp(step / total_steps, ends, jnp.array([0.0, peak, peak / 20, 0.0]))
    rest, end = total_steps - warmup, peak * end_factor
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=end_factor),
        "linear": lambda: optax.linear_schedule(peak, end, rest),
        "step": lambda: _step(peak, step_factor, max(1, step_every_steps or 0), warmup),
        "rsqrt": lambda: _rsqrt(peak, timescale_steps),
    }[name]()
    joined = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after
    return _cooled(joined, total_steps, cooldown) if cooldown else joined


def _check(name: str, total: int, warmup: int, cooldown: int, step_every: int | None) -> None:
    """Raise UserError for an unknown name, or durations that it does not use or that do not fit into the run."""
    if name not in NAMES:
        raise UserError(f"config.schedule.name={name} is unknown; use one of {', '.join(NAMES)}")
    if name == "one_cycle" and warmup:
        raise UserError("config.schedule.name=one_cycle has its own warmup; unset warmup_epochs and warmup_steps")
    if cooldown and name not in ("constant", "rsqrt"):
        raise UserError(
            f"config.schedule.name={name} takes no cooldown; unset config.schedule.cooldown_epochs and "
            "cooldown_steps, or use constant or rsqrt"
        )
    if name == "step" and step_every is None:
        raise UserError(
            "config.schedule.name=step needs an interval; set config.schedule.step_every_epochs or "
            "config.schedule.step_every_steps"
        )
    if name != "step" and step_every is not None:
        raise UserError(
            f"config.schedule.name={name} has no steps; unset config.schedule.step_every_epochs and step_every_steps, "
            "or use step"
        )
    if warmup >= total:
        raise UserError(
            f"warmup ({warmup} steps) must be shorter than the run ({total} steps); lower "
            "config.schedule.warmup_epochs or config.schedule.warmup_steps"
        )
    if warmup + cooldown > total:
        raise UserError(
            f"warmup ({warmup} steps) and cooldown ({cooldown} steps) are longer than the run ({total} steps); lower "
            "config.schedule.cooldown_epochs or config.schedule.cooldown_steps"
        )


def _step(peak: float, factor: float, every: int, warmup: int) -> optax.Schedule:
    """Return steps since the warmup -> peak * factor^floor(steps since the start of the run / every)."""
    return lambda since: peak * factor ** ((since + warmup) // every)


def _rsqrt(peak: float, timescale: int) -> optax.Schedule:
    """Return steps since the warmup -> peak * sqrt(timescale / (timescale + steps)); the peak before."""
    return lambda since: peak * jnp.sqrt(timescale / (timescale + jnp.maximum(since, 0)))


def _cooled(schedule: optax.Schedule, total: int, cooldown: int) -> optax.Schedule:
    """Follow `schedule` up to the cooldown, then decay linearly to 0 at the end of the run."""
    start = total - cooldown
    return lambda step: schedule(jnp.minimum(step, start)) * jnp.clip((total - step) / cooldown, 0.0, 1.0)
