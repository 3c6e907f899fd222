"""Build optimizers as chains of optax transformations."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from patchnets.errors import UserError
from patchnets.param_rules import Rules, match_rules


def make_optimizer(
    name: str = "adamw",
    *,
    learning_rate: float | optax.Schedule,
    params: Any,
    weight_decay: float = 0.0,
    wd_mask: str = "kernels",
    wd_mults: Rules = (),
    lr_mults: Rules = (),
    frozen: Rules = (),
    grad_clip_norm: float | None = None,
    momentum: float = 0.9,
    nesterov: bool = False,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
) -> optax.GradientTransformation:
    """Return the optimizer called `name`, after clipping by the global norm.

    adamw (arXiv 1711.05101), lamb (1904.00962), lion (2302.06675) and adafactor (1804.04235) take learning rate times
    `weight_decay` off a weight besides; adam and sgd add `weight_decay` times the weight to the gradient, as PyTorch
    does. What has a norm or a mean over a parameter, in lamb and adafactor, has one for each of stacked blocks.

    Args:
      name: adamw, adam, sgd, lamb, lion or adafactor.
      learning_rate: a number, or step -> learning rate.
      params: tree of arrays or shapes, for their names.
      wd_mask: which weights decay: kernels, or all.
      wd_mults: ((regex, factor), ...): the first to match a parameter's name multiplies its decay, in place of
        `wd_mask`.
      lr_mults: the same for its learning rate.
      frozen: ((regex, whether it is frozen), ...). Frozen parameters get updates of 0, have no state, and do not count
        in the norm that is clipped.
      grad_clip_norm: gradients are scaled down to this global norm; None for never.
      momentum, nesterov: of sgd.
      beta1, beta2, epsilon: of the others, as in their papers.

    Raises:
      UserError: rules that do not fit the parameters or freeze all, or Nesterov's momentum without momentum.
    """
    if nesterov and (name != "sgd" or not momentum):
        raise UserError(
            f"config.optimizer.nesterov needs optimizer.name=sgd and momentum > 0 (got {name} with "
            f"momentum={momentum}); unset it"
        )
    is_frozen = frozen_params(frozen, params)
    if all(jax.tree.leaves(is_frozen)):
        raise UserError("config.optimizer.frozen freeze every parameter; leave one to train")
    factors = match_rules(lr_mults, params, "optimizer.lr_mults") if lr_mults else None
    decay_mults = _mask_leaves(weight_decay_mults(params, wd_mults, wd_mask), is_frozen)
    trained = _mask_leaves(params, is_frozen)
    decay = _add_decay(jax.tree.map(lambda factor: weight_decay * factor, decay_mults))
    adam = optax.scale_by_adam(beta1, beta2, epsilon)
    match name:
        case "adamw":
            update_rule = [adam, decay]
        case "adam":
            update_rule = [decay, adam]
        case "sgd":
            update_rule = [decay, optax.trace(momentum, nesterov) if momentum else optax.identity()]
        case "lion":
            update_rule = [optax.scale_by_lion(beta1, beta2), decay]
        case "lamb":
            update_rule = [adam, decay, _trust_ratio(trained, decay_mults)]
        case "adafactor":
            update_rule = [*_adafactor(trained, beta1, beta2), decay]
        case _:
            raise UserError(
                f"config.optimizer.name={name} is not known; take adamw, adam, sgd, lamb, lion or adafactor"
            )
    optimizer = optax.chain(
        optax.identity() if grad_clip_norm is None else optax.clip_by_global_norm(grad_clip_norm),
        *update_rule,
        *([] if factors is None else [_scale_by_tree(_mask_leaves(factors, is_frozen))]),
        optax.scale_by_learning_rate(learning_rate),
    )
    if not any(jax.tree.leaves(is_frozen)):
        return optimizer
    labels = jax.tree.map(lambda hold: "frozen" if hold else "trained", is_frozen)
    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def frozen_params(rules: Rules, params: Any) -> Any:
    """Return True, in a tree like `params`, for those that the rules of optimizer.frozen freeze."""
    if not rules:
        return jax.tree.map(lambda _: False, params)
    return match_rules(rules, params, "optimizer.frozen", kind=bool)


def weight_decay_mults(params: Any, wd_mults: Rules = (), wd_mask: str = "kernels") -> Any:
    """Return what multiplies the weight decay of each parameter: by the rules `wd_mults`, else by `wd_mask`."""
    if wd_mults:
        return match_rules(wd_mults, params, "optimizer.wd_mults")
    if wd_mask == "all":
        return jax.tree.map(lambda _: 1.0, params)
    return jax.tree.map(float, weight_decay_mask(params))


def weight_decay_mask(params: Any) -> Any:
    """True for the weights that decay: kernels, and not biases, scales of normalizations or embeddings."""
    return jax.tree_util.tree_map_with_path(lambda path, _: str(path[-1].key).endswith("kernel"), params)


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


def _adafactor(params: Any, beta1: float, beta2: float) -> list[optax.GradientTransformation]:
    """Adafactor with the changes of arXiv 2106.04560 for image models, so that learning rates of Adam suit it.

    From the first paper: the factored second moment with decay 1 - t^-0.8 and 1e-30 added to the squared gradient, and
    updates of a root mean square of at most 1. Changed: no scaling by the parameter and no relative step size, so that
    the rate is the schedule's; a decay of at most `beta2`; momentum `beta1`, without correction of its bias (0: none).
    `epsilon` has no part. As in optax, a parameter is factored where its two longest axes have at least 128 entries.
    """
    second = optax.scale_by_factored_rms(
        decay_rate_fn=lambda step, exponent: jnp.minimum(beta2, 1 - jnp.float32(step + 1) ** -exponent)
    )
    scaled = _vmap_over_blocks(optax.chain(second, optax.clip_by_block_rms(1.0)), params)
    return [scaled, optax.ema(beta1, debias=False) if beta1 else optax.identity()]


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
