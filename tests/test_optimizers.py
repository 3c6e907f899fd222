"""AdamW against a NumPy AdamW, schedules against their closed forms, and which weights decay."""

import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from flax import traverse_util

from patchnets import config as config_lib
from patchnets.errors import UserError
from patchnets.models.mlp_mixer import MlpMixer
from patchnets.optimizers import decay_mask, make_optimizer, make_schedule, steps_of

STEPS = 8
SHAPES = {"Dense_0/kernel": (3, 4), "Dense_0/bias": (4,), "LayerNorm_0/scale": (4,), "LayerNorm_0/bias": (4,)}


def config_of(schedule: dict | None = None, **optimizer) -> ml_collections.ConfigDict:
    config = config_lib.default_config()
    config.update(dict(optimizer=optimizer, schedule=schedule or {}))
    return config


def rates(config: ml_collections.ConfigDict, total_steps: int, steps_per_epoch: int, steps: list[int]) -> list[float]:
    schedule = make_schedule(config, total_steps, steps_per_epoch)
    return [float(schedule(step)) for step in steps]


# --- AdamW ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {path: rng.standard_normal(shape).astype(np.float32) for path, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def gradients() -> list[dict[str, np.ndarray]]:
    """One tree a step, of global norms from about 0.5 to about 50, so that some are clipped and some are not."""
    rng = np.random.default_rng(2)
    scale = np.geomspace(0.1, 10, STEPS)
    return [
        {path: (s * rng.standard_normal(shape)).astype(np.float32) for path, shape in SHAPES.items()} for s in scale
    ]


def adamw_reference(start, gradients, rate, *, beta1, beta2, epsilon, weight_decay, decays, clip_norm) -> dict:
    """Algorithm 2 of arXiv 1711.05101 in float64, with the decay multiplied by the learning rate of the step."""
    params = {path: value.astype(np.float64) for path, value in start.items()}
    first = {path: np.zeros_like(value) for path, value in params.items()}
    second = {path: np.zeros_like(value) for path, value in params.items()}
    for t, gradient in enumerate(gradients, start=1):
        norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradient.values()))
        shrink = min(1.0, clip_norm / norm) if clip_norm else 1.0
        for path in params:
            g = gradient[path].astype(np.float64) * shrink
            first[path] = beta1 * first[path] + (1 - beta1) * g
            second[path] = beta2 * second[path] + (1 - beta2) * g**2
            step = first[path] / (1 - beta1**t) / (np.sqrt(second[path] / (1 - beta2**t)) + epsilon)
            decay = weight_decay * params[path] if decays(path) else 0.0
            params[path] = params[path] - rate(t - 1) * (step + decay)
    return params


@pytest.mark.parametrize(
    ("decay", "clip_norm"), [("kernels", None), ("all", None), ("kernels", 2.0)], ids=["kernels", "all", "clipped"]
)
def test_trajectory_equals_adamw_in_numpy(start, gradients, decay, clip_norm):
    given = dict(beta1=0.8, beta2=0.95, epsilon=0.05, weight_decay=0.3)
    config = config_of(
        dict(name="linear", warmup_steps=2), learning_rate=0.1, decay=decay, clip_norm=clip_norm, **given
    )
    optimizer = make_optimizer(config.optimizer, make_schedule(config, STEPS, 1))

    def run(params, gradients):
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    nest = lambda flat: traverse_util.unflatten_dict(flat, sep="/")
    found = jax.jit(run)(nest(start), [nest(gradient) for gradient in gradients])

    def rate(step: int) -> float:
        return 0.1 * step / 2 if step < 2 else 0.1 * (STEPS - step) / (STEPS - 2)

    decays = (lambda path: path.endswith("kernel")) if decay == "kernels" else (lambda path: True)
    expected = adamw_reference(start, gradients, rate, **given, decays=decays, clip_norm=clip_norm)
    for path, value in traverse_util.flatten_dict(found, sep="/").items():
        np.testing.assert_allclose(value, expected[path], atol=2e-6, err_msg=path)
        assert np.abs(expected[path] - start[path]).max() > 0.05, "nothing moved"


def test_first_step_moves_every_weight_by_the_learning_rate_and_its_share_of_decay():
    """Adam's first step is the sign of the gradient; a weight of 2 then loses learning rate x decay x 2 besides."""
    config = config_of(dict(name="constant"), learning_rate=0.01, weight_decay=0.5, epsilon=1e-12)
    optimizer = make_optimizer(config.optimizer, make_schedule(config, 10, 1))
    params = {"kernel": jnp.full(3, 2.0), "bias": jnp.full(3, 2.0)}
    updates, _ = optimizer.update(jax.tree.map(lambda x: jnp.full(3, -7.0), params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], 0.01 - 0.01 * 0.5 * 2.0, atol=1e-7)
    np.testing.assert_allclose(updates["bias"], 0.01, atol=1e-7)


def test_decay_mask_covers_exactly_the_kernels_of_a_mixer():
    model = MlpMixer(num_classes=5, patch_size=4, depth=2, hidden_dim=6, tokens_mlp_dim=3, channels_mlp_dim=7)
    shapes = jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, 8, 8, 3)), train=False), jax.random.key(0))
    decays = traverse_util.flatten_dict(decay_mask(shapes["params"]), sep="/")
    dense = [f"MixerBlock_{i}/{m}_mixing/Dense_{j}" for i in (0, 1) for m in ("token", "channel") for j in (0, 1)]
    assert {path for path, yes in decays.items() if yes} == {f"{layer}/kernel" for layer in ["stem", "head", *dense]}
    assert set(decays) == set(traverse_util.flatten_dict(shapes["params"], sep="/"))


# --- schedules --------------------------------------------------------------------------------------------------------

PEAK, TOTAL, WARMUP = 0.4, 100, 20
# After the warm-up, as a function of the share of the way from the peak to the end of the run.
FORMS = {
    "constant": lambda share, end: 1.0,
    "cosine": lambda share, end: end + (1 - end) * (1 + math.cos(math.pi * share)) / 2,
    "linear": lambda share, end: 1 - (1 - end) * share,
}


@pytest.mark.parametrize("end_factor", [0.0, 0.25])
@pytest.mark.parametrize("name", list(FORMS))
def test_schedule_equals_its_closed_form_from_the_first_step_to_the_last(name, end_factor):
    config = config_of(dict(name=name, warmup_steps=WARMUP, end_factor=end_factor), learning_rate=PEAK)
    steps = [0, 1, WARMUP // 2, WARMUP - 1, WARMUP, WARMUP + 1, 60, TOTAL - 1, TOTAL]
    expected = [
        PEAK * (step / WARMUP if step < WARMUP else FORMS[name]((step - WARMUP) / (TOTAL - WARMUP), end_factor))
        for step in steps
    ]
    np.testing.assert_allclose(rates(config, TOTAL, 1, steps), expected, rtol=1e-6, atol=1e-8)
    assert expected[0] == 0.0 and expected[4] == PEAK
    if name != "constant":
        assert expected[-1] == pytest.approx(PEAK * end_factor)


@pytest.mark.parametrize("name", list(FORMS))
def test_schedule_without_warm_up_starts_at_the_peak(name):
    config = config_of(dict(name=name, end_factor=0.1), learning_rate=PEAK)
    expected = [PEAK * FORMS[name](step / TOTAL, 0.1) for step in (0, 50, 99, 100)]
    np.testing.assert_allclose(rates(config, TOTAL, 1, [0, 50, 99, 100]), expected, rtol=1e-6)
    config.schedule.warmup_steps = 0
    np.testing.assert_allclose(rates(config, TOTAL, 1, [0, 50, 99, 100]), expected, rtol=1e-6)


def test_warm_up_in_epochs_equals_the_same_in_steps():
    in_epochs = config_of(dict(name="cosine", warmup_epochs=2.5), learning_rate=PEAK)
    in_steps = config_of(dict(name="cosine", warmup_steps=20), learning_rate=PEAK)
    every = list(range(TOTAL + 1))
    assert rates(in_epochs, TOTAL, 8, every) == rates(in_steps, TOTAL, 8, every)


def test_one_cycle_has_the_corners_of_convmixer_and_is_linear_between_them():
    config = config_of(dict(name="one_cycle"), learning_rate=PEAK)
    found = rates(config, 100, 7, [0, 20, 40, 60, 80, 90, 100])
    np.testing.assert_allclose(found, [0, PEAK / 2, PEAK, PEAK * 0.525, PEAK / 20, PEAK / 40, 0], rtol=1e-5, atol=1e-9)


def test_one_cycle_takes_no_warm_up_besides_its_own():
    config = config_of(dict(name="one_cycle", warmup_epochs=1.0), learning_rate=PEAK)
    with pytest.raises(UserError, match="one_cycle warms up by itself"):
        make_schedule(config, 100, 7)


@pytest.mark.parametrize(
    ("schedule", "warmup"),
    [(dict(warmup_steps=100), 100), (dict(warmup_steps=250), 250), (dict(warmup_epochs=13.0), 104)],
)
def test_warm_up_that_is_no_shorter_than_the_run_is_refused_with_both_lengths(schedule, warmup):
    with pytest.raises(UserError) as caught:
        make_schedule(config_of(schedule, learning_rate=PEAK), TOTAL, 8)
    text = str(caught.value)
    assert "\n" not in text and f"{warmup} steps" in text and str(TOTAL) in text and "config.schedule.warmup" in text


def test_warm_up_one_step_shorter_than_the_run_is_taken():
    config = config_of(dict(name="linear", warmup_steps=TOTAL - 1), learning_rate=PEAK)
    np.testing.assert_allclose(rates(config, TOTAL, 8, [TOTAL - 2, TOTAL - 1]), [PEAK * 98 / 99, PEAK], rtol=1e-6)


def test_duration_is_none_where_neither_unit_is_given_and_rounds_epochs_to_whole_steps():
    config = config_lib.default_config()
    assert steps_of(config, "total", 7) is None
    config.total_epochs = 1.5
    assert steps_of(config, "total", 7) in (10, 11) and steps_of(config, "total", 6) == 9
    config.total_epochs = None
    config.total_steps = 3
    assert steps_of(config, "total", 7) == 3
