"""Steps of the head alone, beside steps of the network of which all else is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from patchnets.optim.optimizers import make_optimizer
from patchnets.step.head_steps import _only_head, _with_head
from patchnets.step.metrics import TrainMetrics
from patchnets.step.train_state import TrainState

FROZEN = (("head/.*", False), (".*", True))
PARAMS = {
    "stem": {"kernel": jnp.ones((2, 3))},
    "head": {"kernel": jnp.arange(6.0).reshape(3, 2) / 6, "bias": jnp.zeros(2)},
}


def state_of(optimizer, ema=False):
    averaged = {"params": PARAMS, "batch_stats": {"norm": jnp.ones(2)}}
    return TrainState(
        step=jnp.int32(0),
        params=PARAMS,
        batch_stats={"norm": jnp.ones(2)},
        ema=averaged if ema else {},
        opt_state=optimizer.init(PARAMS),
        metrics=TrainMetrics.empty(),
    )


@pytest.mark.parametrize("options", [{}, dict(layer_decay=0.5, lr_mults=(("head/bias", 2.0), (".*", 0.5)))])
@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lamb", "lion", "adafactor"])
@pytest.mark.slow
def test_every_optimizer_updates_the_head_as_if_the_rest_were_there(name, options):
    optimizer = make_optimizer(
        name, learning_rate=0.1, params=PARAMS, frozen=FROZEN, weight_decay=0.1, grad_clip_norm=1.0, **options
    )
    state = state_of(optimizer)
    grads = jax.tree.map(lambda leaf: jnp.cos(leaf), PARAMS)
    grads["stem"] = jax.tree.map(jnp.zeros_like, PARAMS["stem"])
    full, full_state = optimizer.update(grads, state.opt_state, PARAMS)
    head = _only_head(state)
    masked = _only_head(state.replace(params=grads)).params
    assert len(jax.tree.leaves(head.params)) == 2
    only, only_state = optimizer.update(masked, head.opt_state, head.params)
    jax.tree.map(np.testing.assert_array_equal, only["head"], full["head"])
    jax.tree.map(np.testing.assert_array_equal, only_state, full_state)
    assert np.abs(full["head"]["kernel"]).max() > 0
    assert len(jax.tree.leaves(optax.apply_updates(head.params, only))) == 2


@pytest.mark.parametrize("ema", [False, True])
def test_a_state_is_the_same_after_it_was_taken_apart(ema):
    state = state_of(make_optimizer("sgd", learning_rate=0.1, params=PARAMS, frozen=FROZEN), ema)
    again = _with_head(state, _only_head(state))
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)
