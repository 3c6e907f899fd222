"""Each optimizer against its paper's update in NumPy; decay, clipping, rules, frozen parameters, stacked blocks."""

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
from patchnets.models.blocks import stack_blocks
from patchnets.models.mlp_mixer import MlpMixer
from patchnets.optim.optimizers import frozen_params, make_optimizer, weight_decay_mask
from patchnets.optim.schedules import make_schedule

STEPS = 5
# Both axes of the large kernel have the 128 entries from which adafactor factors its second moment.
SHAPES = {"Dense_0/kernel": (3, 4), "Dense_0/bias": (4,), "LayerNorm_0/scale": (4,), "large/kernel": (2, 128, 130)}
TOLERANCE = dict(atol=1e-5, rtol=1e-5)


def config_of(**optimizer) -> ml_collections.ConfigDict:
    config = config_lib.default_config()
    config.update(dict(optimizer=optimizer))
    return config.optimizer


def optimizer_of(config: ml_collections.ConfigDict, learning_rate, params) -> optax.GradientTransformation:
    """The optimizer of config.optimizer; its own learning rate and the radius of SAM are not of it."""
    options = {name: value for name, value in config.items() if name not in ("learning_rate", "sam_rho")}
    return make_optimizer(**options, learning_rate=learning_rate, params=params)


def nest(flat: dict) -> dict:
    return traverse_util.unflatten_dict(flat, sep="/")


def flat(tree) -> dict:
    return traverse_util.flatten_dict(tree, sep="/")


def rate(step):
    return 0.1 * (step + 1) / 4


def trained(config, start, gradients) -> dict[str, np.ndarray]:
    """The parameters after a step with each of the gradients, compiled."""
    optimizer = optimizer_of(config, rate, nest(start))

    def step(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    def run(params, gradients):
        return jax.lax.scan(step, (params, optimizer.init(params)), gradients)[0][0]

    every = nest({path: np.stack([gradient[path] for gradient in gradients]) for path in start})
    return jax.tree.map(np.asarray, flat(jax.jit(run)(nest(start), every)))


@pytest.fixture(scope="module")
def start() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {path: rng.standard_normal(shape).astype(np.float32) for path, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def gradients() -> list[dict[str, np.ndarray]]:
    """One tree a step, of global norms from about 20 to about 2000, so that some are clipped and some are not."""
    rng = np.random.default_rng(2)
    scales = np.geomspace(0.1, 10, STEPS)
    return [{path: (s * rng.standard_normal(sh)).astype(np.float32) for path, sh in SHAPES.items()} for s in scales]


# --- the papers' updates, in float64 ----------------------------------------------------------------------------------
# (gradient, weight, step from 1, what is kept of the weight, configuration) -> what the learning rate multiplies


def adam_direction(g, w, t, kept, c):
    """arXiv 1412.6980, algorithm 1."""
    kept["m"] = c.beta1 * kept.get("m", 0) + (1 - c.beta1) * g
    kept["v"] = c.beta2 * kept.get("v", 0) + (1 - c.beta2) * g**2
    return kept["m"] / (1 - c.beta1**t) / (np.sqrt(kept["v"] / (1 - c.beta2**t)) + c.epsilon)


def adamw(g, w, t, kept, c, decay):
    """arXiv 1711.05101, algorithm 2, with the decay multiplied by the learning rate of the step."""
    return adam_direction(g, w, t, kept, c) + decay * w


def adam(g, w, t, kept, c, decay):
    return adam_direction(g + decay * w, w, t, kept, c)


def sgd(g, w, t, kept, c, decay):
    """As PyTorch's documentation of SGD has it."""
    g = g + decay * w
    kept["b"] = c.momentum * kept["b"] + g if t > 1 else g
    return g + c.momentum * kept["b"] if c.nesterov else kept["b"]


def lion(g, w, t, kept, c, decay):
    """arXiv 2302.06675, program 1."""
    m = kept.get("m", np.zeros_like(g))
    kept["m"] = c.beta2 * m + (1 - c.beta2) * g
    return np.sign(c.beta1 * m + (1 - c.beta1) * g) + decay * w


def lamb(g, w, t, kept, c, decay):
    """arXiv 1904.00962, algorithm 2, with layers adapted that decay."""
    r = adam_direction(g, w, t, kept, c) + decay * w
    return np.linalg.norm(w) / np.linalg.norm(r) * r if decay else r


def adafactor(g, w, t, kept, c, decay):
    """arXiv 1804.04235, algorithms 2 (matrices), 3 (vectors) and 4 (clipping), with the momentum of 2106.04560."""
    decay_rate = min(1 - t**-0.8, c.beta2)
    square = g**2 + 1e-30
    mean = lambda key, value: kept.update({key: decay_rate * kept.get(key, 0) + (1 - decay_rate) * value}) or kept[key]
    if g.shape[-2:] == (128, 130):
        rows, columns = mean("rows", square.sum(-1, keepdims=True)), mean("columns", square.sum(-2, keepdims=True))
        u = g / np.sqrt(rows * columns / rows.sum(-2, keepdims=True))
    else:
        u = g / np.sqrt(mean("v", square))
    u = u / max(1.0, math.sqrt(np.mean(u**2)))
    kept["m"] = c.beta1 * kept.get("m", 0) + (1 - c.beta1) * u
    return kept["m"] + decay * w


def reference(direction, config, start, gradients, *, decays, factor=lambda path: 1.0) -> dict[str, np.ndarray]:
    params = {path: value.astype(np.float64) for path, value in start.items()}
    kept: dict[str, dict] = {path: {} for path in params}
    for t, gradient in enumerate(gradients, start=1):
        norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradient.values()))
        shrink = min(1.0, config.grad_clip_norm / norm) if config.grad_clip_norm else 1.0
        for path, w in params.items():
            decay = config.weight_decay * decays(path)
            update = direction(gradient[path].astype(np.float64) * shrink, w, t, kept[path], config, decay)
            params[path] = w - rate(t - 1) * factor(path) * update
    return params


def kernels(path: str) -> float:
    return float(path.endswith("kernel"))


def assert_same(actual, expected, start):
    for path in start:
        np.testing.assert_allclose(actual[path], expected[path], **TOLERANCE, err_msg=path)
        assert np.abs(expected[path] - start[path]).max() > 0.05, "nothing moved"


BETAS = dict(beta1=0.8, beta2=0.95, epsilon=0.05, weight_decay=0.3)
CASES = {
    "adamw": (adamw, BETAS),
    "adamw of all": (adamw, BETAS | dict(wd_mask="all")),
    "adamw clipped": (adamw, BETAS | dict(grad_clip_norm=60.0)),
    "adam": (adam, BETAS | dict(name="adam", grad_clip_norm=60.0)),
    "sgd": (sgd, dict(name="sgd", momentum=0.7, weight_decay=0.3)),
    "sgd nesterov": (sgd, dict(name="sgd", momentum=0.7, weight_decay=0.3, nesterov=True, grad_clip_norm=60.0)),
    "sgd plain": (sgd, dict(name="sgd", momentum=0.0, weight_decay=0.3, wd_mask="all")),
    "lion": (lion, dict(name="lion", beta1=0.9, beta2=0.6, weight_decay=0.3)),
    "lamb": (lamb, BETAS | dict(name="lamb")),
    "lamb of all": (lamb, BETAS | dict(name="lamb", wd_mask="all", grad_clip_norm=60.0)),
    "adafactor": (adafactor, dict(name="adafactor", beta1=0.8, beta2=0.6, weight_decay=0.3)),
    "adafactor plain": (adafactor, dict(name="adafactor", beta1=0.0, grad_clip_norm=60.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_trajectory_equals_the_papers_in_numpy(start, gradients, case):
    direction, settings = CASES[case]
    config = config_of(**settings)
    decays = (lambda path: 1.0) if config.wd_mask == "all" else kernels
    expected = reference(direction, config, start, gradients, decays=decays)
    assert_same(trained(config, start, gradients), expected, start)


def test_lamb_moves_a_kernel_by_a_share_of_its_norm_even_without_decay_and_a_zero_one_as_adam_does(start, gradients):
    started = start | {"large/kernel": np.zeros_like(start["large/kernel"])}
    actual = trained(config_of(name="lamb"), started, gradients[:1])
    moved = {path: np.linalg.norm(actual[path] - started[path]) for path in started}
    norm = np.linalg.norm(started["Dense_0/kernel"])
    assert moved["Dense_0/kernel"] == pytest.approx(rate(0) * norm, rel=1e-4)
    assert moved["Dense_0/bias"] == pytest.approx(rate(0) * math.sqrt(4), rel=1e-4)
    assert moved["large/kernel"] == pytest.approx(rate(0) * math.sqrt(2 * 128 * 130), rel=1e-4)


def test_adafactor_keeps_rows_and_columns_of_large_kernels_and_no_momentum_where_there_is_none(start):
    config = config_of(name="adafactor", beta1=0.0)
    state = jax.eval_shape(optimizer_of(config, rate, nest(start)).init, nest(start))
    sizes = sorted(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))
    assert sizes[-2:] == [2 * 128, 2 * 130]


def test_first_step_moves_every_weight_by_the_learning_rate_and_its_share_of_decay():
    """Adam's first step is the sign of the gradient; a weight of 2 then loses learning rate x decay x 2 besides."""
    params = {"kernel": jnp.full(3, 2.0), "bias": jnp.full(3, 2.0)}
    optimizer = make_optimizer(
        learning_rate=make_schedule("constant", learning_rate=0.01, total_steps=10),
        params=params,
        weight_decay=0.5,
        epsilon=1e-12,
    )
    updates, _ = optimizer.update(jax.tree.map(lambda x: jnp.full(3, -7.0), params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], 0.01 - 0.01 * 0.5 * 2.0, atol=1e-7)
    np.testing.assert_allclose(updates["bias"], 0.01, atol=1e-7)


@pytest.mark.parametrize("settings", [dict(nesterov=True), dict(name="sgd", nesterov=True, momentum=0.0)])
def test_nesterovs_momentum_is_refused_where_there_is_no_momentum(start, settings):
    with pytest.raises(UserError, match=r"optimizer\.nesterov needs optimizer\.name=sgd and momentum"):
        optimizer_of(config_of(**settings), rate, nest(start))


# --- rules ------------------------------------------------------------------------------------------------------------


def test_learning_rate_rules_multiply_the_update_and_the_decay_in_it(start, gradients):
    config = config_of(lr_mults=[["Dense_0/.*", 0.5], [".*", 2.0]], **BETAS)
    factor = lambda path: 0.5 if path.startswith("Dense_0") else 2.0
    expected = reference(adamw, config, start, gradients, decays=kernels, factor=factor)
    assert_same(trained(config, start, gradients), expected, start)


def test_decay_rules_take_the_place_of_the_mask(start, gradients):
    config = config_of(wd_mults=(("Dense_0/bias", 2.0), ("Dense_0/.*", 0.5), (".*", 0)), wd_mask="all", **BETAS)
    decays = lambda path: {"Dense_0/bias": 2.0, "Dense_0/kernel": 0.5}.get(path, 0.0)
    expected = reference(adamw, config, start, gradients, decays=decays)
    assert_same(trained(config, start, gradients), expected, start)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "adafactor"])
def test_frozen_parameters_stay_have_no_state_and_do_not_count_in_the_norm(start, gradients, name):
    """The others go the way that they go where the frozen ones are not there at all."""
    settings = dict(name=name, weight_decay=0.3, grad_clip_norm=2.0, wd_mask="all")
    rules = dict(frozen=(("large/.*|.*scale", True), (".*", False)), lr_mults=((".*kernel", 0.5), (".*", 1.0)))
    actual = trained(config_of(**settings, **rules), start, gradients)
    for path in ("large/kernel", "LayerNorm_0/scale"):
        np.testing.assert_array_equal(actual[path], start[path])
    left = {path: start[path] for path in ("Dense_0/kernel", "Dense_0/bias")}
    config = config_of(**settings, lr_mults=rules["lr_mults"])
    alone = trained(config, left, [{path: gradient[path] for path in left} for gradient in gradients])
    for path in left:
        np.testing.assert_allclose(actual[path], alone[path], rtol=1e-6, err_msg=path)
        assert np.abs(actual[path] - start[path]).max() > 1e-3
    shapes = lambda config, params: sorted(
        leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(optimizer_of(config, rate, params).init, params))
    )
    assert shapes(config_of(**settings, **rules), nest(start)) == shapes(config, nest(left))


def test_which_parameters_are_frozen_is_told_and_not_all_may_be(start):
    config = config_of(frozen=(("large/.*", True), (".*", False)))
    assert flat(frozen_params(config.frozen, nest(start))) == {path: path == "large/kernel" for path in start}
    assert not any(jax.tree.leaves(frozen_params((), nest(start))))
    with pytest.raises(UserError, match="freezes every parameter"):
        optimizer_of(config_of(frozen=((".*", True),)), rate, nest(start))


@pytest.mark.parametrize("key", ["lr_mults", "wd_mults", "frozen"])
def test_mistakes_in_rules_are_told_of_shapes_alone(start, key):
    value = True if key == "frozen" else 1.0
    shapes = jax.eval_shape(lambda: nest(start))
    with pytest.raises(UserError, match=rf"config\.optimizer\.{key}: 'heads/\.\*' matches no parameter"):
        optimizer_of(config_of(**{key: (("heads/.*", value), (".*", value))}), rate, shapes)
    with pytest.raises(UserError, match=rf"config\.optimizer\.{key}: no rule matches the parameter Dense_0/bias"):
        optimizer_of(config_of(**{key: ((".*kernel", value),)}), rate, shapes)


# --- networks and their blocks ----------------------------------------------------------------------------------------


def test_decay_mask_covers_exactly_the_kernels_of_a_mixer():
    model = MlpMixer(num_classes=5, patch_size=4, depth=2, hidden_dim=6, tokens_mlp_dim=3, channels_mlp_dim=7)
    shapes = jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, 8, 8, 3)), train=False), jax.random.key(0))
    decays = flat(weight_decay_mask(shapes["params"]))
    dense = [f"MixerBlock_{i}/{m}_mixing/Dense_{j}" for i in (0, 1) for m in ("token", "channel") for j in (0, 1)]
    assert {path for path, yes in decays.items() if yes} == {f"{layer}/kernel" for layer in ["stem", "head", *dense]}
    assert set(decays) == set(flat(shapes["params"]))


BLOCK = {"Dense_0/kernel": (128, 130), "Dense_0/bias": (130,), "Dense_1/kernel": (3, 4), "LayerNorm_0/scale": (128,)}
NETWORK = {f"MixerBlock_{i}/{name}": shape for i in (0, 1) for name, shape in BLOCK.items()} | {"stem/kernel": (4, 6)}
FROZEN = (("stem/.*|.*/LayerNorm_0/.*", True), (".*", False))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "freeze"), [("adamw", ()), ("lamb", ()), ("lamb", FROZEN), ("adafactor", FROZEN)])
def test_stacked_blocks_are_trained_as_the_same_blocks_apart(name, freeze):
    """Norms and means are of one block: blocks of very different weights and gradients would tell."""
    rng = np.random.default_rng(3)
    draw = lambda path, shape: rng.standard_normal(shape).astype(np.float32) * (10 if "Block_1" in path else 1)
    start, *gradients = [{path: draw(path, shape) for path, shape in NETWORK.items()} for _ in range(3)]
    stacked = lambda tree: flat(stack_blocks({"params": nest(tree)})["params"])
    config = config_of(name=name, weight_decay=0.1, grad_clip_norm=5.0, frozen=freeze)
    apart = stacked(trained(config, start, gradients))
    before = stacked(start)
    together = trained(config, before, [stacked(gradient) for gradient in gradients])
    for path, value in together.items():
        np.testing.assert_allclose(value, apart[path], rtol=1e-4, atol=1e-5, err_msg=path)
        is_frozen = bool(freeze) and (path.startswith("stem") or "LayerNorm_0" in path)
        assert (np.abs(value - before[path]).max() > 1e-4) is not is_frozen, path


def test_layers_further_down_learn_more_slowly_stacked_or_not():
    model = MlpMixer(num_classes=3, patch_size=2, depth=3, hidden_dim=4, tokens_mlp_dim=4, channels_mlp_dim=4)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), train=False))["params"]
    ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), dict(params))

    def updates(tree, **options):
        optimizer = make_optimizer("sgd", learning_rate=1.0, params=tree, momentum=0.0, layer_decay=0.5, **options)
        return optimizer.update(tree, optimizer.init(tree), tree)[0]

    steps = flat(updates(ones))
    expected = {"stem": 1 / 16, "MixerBlock_0": 1 / 8, "MixerBlock_1": 1 / 4, "MixerBlock_2": 1 / 2}
    for name, step in steps.items():
        np.testing.assert_array_equal(step, -expected.get(name.split("/")[0], 1.0), err_msg=name)
    stacked = jax.device_get(stack_blocks({"params": ones}))["params"]
    actual, apart = updates(stacked), stack_blocks({"params": nest(steps)})["params"]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(actual), jax.device_get(apart))
    twice = flat(updates(ones, lr_mults=(("head/.*", 3.0), (".*", 2.0))))
    assert (twice["head/bias"] == -3).all() and (twice["stem/bias"] == -1 / 8).all()
