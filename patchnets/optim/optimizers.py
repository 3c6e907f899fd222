"""Build optimizers as chains of optax transformations."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from patchnets.errors import UserError
from patchnets.param_rules import match_rules


def make_optimizer(
    config: ml_collections.ConfigDict, schedule: optax.Schedule, params: Any
) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer`, after clipping by the global norm.

    adamw (arXiv 1711.05101), lamb (1904.00962), lion (2302.06675) and adafactor (1804.04235) take learning rate times
    `weight_decay` off a weight besides; adam and sgd add `weight_decay` times the weight to the gradient, as PyTorch
    does. What has a norm or a mean over a parameter, in lamb and adafactor, has one for each of stacked blocks.

    Args:
      config: config.optimizer.
      schedule: step -> learning rate, which `lr_mults` multiply.
      params: tree of arrays or shapes, for their names. Parameters that `frozen` freeze get updates of 0, have no
        state, and do not count in the norm that is clipped.

    Raises:
      UserError: rules that do not fit the parameters or freeze all, or Nesterov's momentum without momentum.
    """
    if config.nesterov and (config.name != "sgd" or not config.momentum):
        raise UserError(
            f"config.optimizer.nesterov needs optimizer.name=sgd and momentum > 0 (got {config.name} with "
            f"momentum={config.momentum}); unset it"
        )
    frozen = frozen_params(config, params)
    if all(jax.tree.leaves(frozen)):
        raise UserError("config.optimizer.frozen freeze every parameter; leave one to train")
    factors = match_rules(config.lr_mults, params, "optimizer.lr_mults") if config.lr_mults else None
    decays = weight_decay_mults(config, params)
    optimizer = optax.chain(
        optax.identity() if config.grad_clip_norm is None else optax.clip_by_global_norm(config.grad_clip_norm),
        *_update_rule(config, _mask_leaves(params, frozen), _mask_leaves(decays, frozen)),
        *([] if factors is None else [_scale_by_tree(_mask_leaves(factors, frozen))]),
        optax.scale_by_learning_rate(schedule),
    )
    if not any(jax.tree.leaves(frozen)):
        return optimizer
    labels = jax.tree.map(lambda is_frozen: "frozen" if is_frozen else "trained", frozen)
    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def frozen_params(config: ml_collections.ConfigDict, params: Any) -> Any:
    """True, in a tree like `params`, for those that `frozen` of config.optimizer freeze."""
    if not config.frozen:
        return jax.tree.map(lambda _: False, params)
    return match_rules(config.frozen, params, "optimizer.frozen", kind=bool)


def weight_decay_mults(config: ml_collections.ConfigDict, params: Any) -> Any:
    """What multiplies the weight decay of each parameter: by `wd_mults` of config.optimizer, else by `decay`."""
    if config.wd_mults:
        return match_rules(config.wd_mults, params, "optimizer.wd_mults")
    if config.wd_mask == "all":
        return jax.tree.map(lambda _: 1.0, params)
    return jax.tree.map(float, weight_decay_mask(params))


def weight_decay_mask(params: Any) -> Any:
    """True for the weights that decay: kernels, and not biases, scales of normalizations or embeddings."""
    return jax.tree_util.tree_map_with_path(lambda path, _: str(path[-1].key).endswith("kernel"), params)


def _update_rule(config: ml_collections.ConfigDict, params: Any, decays: Any) -> list[optax.GradientTransformation]:
    """What turns clipped gradients into what the learning rate multiplies."""
    decay = _add_decay(jax.tree.map(lambda factor: config.weight_decay * factor, decays))
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    match config.name:
        case "adamw":
            return [adam, decay]
        case "adam":
            return [decay, adam]
        case "sgd":
            return [decay, optax.trace(config.momentum, config.nesterov) if config.momentum else optax.identity()]
        case "lion":
            return [optax.scale_by_lion(config.beta1, config.beta2), decay]
        case "lamb":
            return [adam, decay, _trust_ratio(params, decays)]
        case "adafactor":
            return [*_adafactor(config, params), decay]
    raise UserError(f"config.optimizer.name={config.name} is not known; take adamw, adam, sgd, lamb, lion or adafactor")


def _trust_ratio(params: Any, decays: Any) -> optax.GradientTransformation:
    """LAMB's norm of the parameter over norm of the update, or 1 where either is 0.

    Only for parameters that would decay, whatever the decay is, as in its authors' code: the norm of a bias that starts
    at 0 would keep it there.
    """
    adapts = jax.tree.map(bool, decays)
    if not any(jax.tree.leaves(adapts)):
        return optax.identity()
    adapted = _mask_leaves(params, jax.tree.map(lambda yes: not yes, adapts))
    return optax.masked(_vmap_over_blocks(optax.scale_by_trust_ratio(), adapted), adapts)


def _adafactor(config: ml_collections.ConfigDict, params: Any) -> list[optax.GradientTransformation]:
    """Adafactor with the changes of arXiv 2106.04560 for image models, so that learning rates of Adam suit it.

    From the first paper: the factored second moment with decay 1 - t^-0.8 and 1e-30 added to the squared gradient, and
    updates of a root mean square of at most 1. Changed: no scaling by the parameter and no relative step size, so that
    the rate is the schedule's; a decay of at most `beta2`; momentum `beta1`, without correction of its bias (0: none).
    `epsilon` has no part. As in optax, a parameter is factored where its two longest axes have at least 128 entries.
    """
    second = optax.scale_by_factored_rms(
        decay_rate_fn=lambda step, exponent: jnp.minimum(config.beta2, 1 - jnp.float32(step + 1) ** -exponent)
    )
    scaled = _vmap_over_blocks(optax.chain(second, optax.clip_by_block_rms(1.0)), params)
    return [scaled, optax.ema(config.beta1, debias=False) if config.beta1 else optax.identity()]


def _vmap_over_blocks(transform: optax.GradientTransformation, params: Any) -> optax.GradientTransformation:
    """`transform` on each block by itself where `model.scan` has stacked their parameters along a first axis."""

    def stack_of(path: tuple[Any, ...], _: Any) -> str:
        return str(path[0].key) if str(path[0].key).endswith("Blocks") else "others"

    labels = jax.tree_util.tree_map_with_path(stack_of, params)
    over_blocks = optax.GradientTransformation(jax.vmap(transform.init), jax.vmap(transform.update))
    groups = {label: transform if label == "others" else over_blocks for label in jax.tree.leaves(labels)}
    return transform if set(groups) == {"others"} else optax.partition(groups, labels)


def _add_decay(rates: Any) -> optax.GradientTransformation:
    """Adds the rate times the parameter to the updates of every parameter whose rate is not 0."""
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, p, rate: u + rate * p if rate else u, updates, params, rates)
    )


def _scale_by_tree(factors: Any) -> optax.GradientTransformation:
    """Multiplies the updates of every parameter by its factor."""
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u, factor: factor * u, updates, factors))


def _mask_leaves(tree: Any, hidden: Any) -> Any:
    """`tree` without the leaves that are `hidden`, as optax's masks leave them out."""
    return jax.tree.map(lambda leaf, hide: optax.MaskedNode() if hide else leaf, tree, hidden)
