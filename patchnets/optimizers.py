"""Learning-rate schedules and optax chains from the configuration."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from patchnets.errors import UserError


def steps_of(config: ml_collections.ConfigDict, name: str, steps_per_epoch: int) -> int | None:
    """A duration given as `{name}_steps` or as `{name}_epochs`, in steps; None where neither is set."""
    if config.get(f"{name}_steps") is not None:
        return config[f"{name}_steps"]
    epochs = config.get(f"{name}_epochs")
    return None if epochs is None else round(epochs * steps_per_epoch)


def make_schedule(config: ml_collections.ConfigDict, total_steps: int, steps_per_epoch: int) -> optax.Schedule:
    """Step -> learning rate: a linear warm-up from 0, then constant, cosine or linear to `end_factor`.

    Or one_cycle, as ConvMixer was trained (arXiv 2201.09792, and its repository): linear up to the peak over two fifths
    of the run, down to a twentieth of it over two more, and to 0 over the last.

    The end is reached after the last step: that one still takes what is one step before it.

    Raises:
      UserError: the warm-up does not leave any steps of the run, or the schedule has its own.
    """
    peak, schedule = config.optimizer.learning_rate, config.schedule
    warmup = steps_of(schedule, "warmup", steps_per_epoch) or 0
    if schedule.name == "one_cycle":
        if warmup:
            raise UserError("config.schedule.name=one_cycle warms up by itself; do not set a warm-up")
        ends = jnp.array([0.0, 0.4, 0.8, 1.0])
        return lambda step: jnp.interp(step / total_steps, ends, jnp.array([0.0, peak, peak / 20, 0.0]))
    if warmup >= total_steps:
        raise UserError(
            f"the warm-up of {warmup} steps is no shorter than the run of {total_steps}; lower "
            "config.schedule.warmup_epochs or config.schedule.warmup_steps"
        )
    rest, end = total_steps - warmup, peak * schedule.end_factor
    after = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, rest, alpha=schedule.end_factor),
        "linear": optax.linear_schedule(peak, end, rest),
    }[schedule.name]
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after


def decay_mask(params: Any) -> Any:
    """True for the weights that decay: kernels, and not biases, scales of normalisations or embeddings."""
    return jax.tree_util.tree_map_with_path(lambda path, _: str(path[-1].key).endswith("kernel"), params)


def make_optimizer(config: ml_collections.ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) with the decay multiplied by the learning rate, after clipping by the global norm."""
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(
        clip,
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask if config.decay == "kernels" else None),
        optax.scale_by_learning_rate(schedule),
    )
