"""Build optimizers as chains of optax transformations."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from patchnets.errors import UserError
from patchnets.param_rules import Rules, match_rules, name_of

EMBEDDINGS = ("stem", "class_token", "position_embedding", "embedding")  # names of parameters before the first block


def make_optimizer(
    name: str = "adamw",
    *,
    learning_rate: float | optax.Schedule,
    params: Any,
    weight_decay: float = 0.0,
    wd_mask: str = "kernels",
    wd_mults: Rules = (),
    lr_mults: Rules = (),
    layer_decay: float | None = None,
    frozen: Rules = (),
    grad_clip_norm: float | None = None,
    momentum: float = 0.9,
    nesterov: bool = False,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
) -> optax.GradientTransformation:
    """Return the optimizer `name`, preceded by clipping to a global gradient norm.

    adamw (arXiv 1711.05101), lamb (1904.00962), lion (2302.06675) and adafactor (1804.04235) decouple weight decay:
    they subtract learning rate times `weight_decay` times the weight. adam and sgd add `weight_decay` times the weight
    to the gradient, as PyTorch does. lamb and adafactor compute norms and means per block if blocks are stacked.

    Args:
      name: adamw, adam, sgd, lamb, lion or adafactor.
      learning_rate: a number, or step -> learning rate.
      params: tree of arrays or shapes; rules match its parameter names.
      wd_mask: weights that decay: kernels, or all.
      wd_mults: ((regex, factor), ...): the first regex that matches a parameter's name gives the factor of its weight
        decay; replaces `wd_mask`.
      lr_mults: the same for the learning rate.
      layer_decay: factor of the learning rate from each layer to the one below it (`layer_lr_mults`).
      frozen: ((regex, bool), ...): frozen parameters get updates of 0, have no optimizer state, and do not count in the
        clipped norm.
      grad_clip_norm: scale gradients down to this global norm; None disables clipping.
      momentum, nesterov: for sgd.
      beta1, beta2, epsilon: for the others, as in their papers.

    Raises:
      UserError: unknown `name`, rules that do not match the parameters or freeze all of them, or Nesterov momentum
        without momentum or sgd.
    """
    if nesterov and (name != "sgd" or not momentum):
        raise UserError(
            f"config.optimizer.nesterov needs optimizer.name=sgd and momentum > 0 (got {name} with "
            f"momentum={momentum}); unset it"
        )
    is_frozen = frozen_params(frozen, params)
    if all(jax.tree.leaves(is_frozen)):
        raise UserError("config.optimizer.frozen freezes every parameter; leave at least one to train")
    factors = _lr_factors(params, lr_mults, layer_decay)
    update_rule = _update_rule(
        name,
        _mask_leaves(params, is_frozen),
        _mask_leaves(weight_decay_mults(params, wd_mults, wd_mask), is_frozen),
        weight_decay=weight_decay,
        momentum=momentum,
        nesterov=nesterov,
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
    )
    optimizer = optax.chain(
        optax.identity() if grad_clip_norm is None else optax.clip_by_global_norm(grad_clip_norm),
        *update_rule,
        *([] if factors is None else [_scale_by_tree(_mask_leaves(factors, is_frozen))]),
        optax.scale_by_learning_rate(learning_rate),
    )
    if not any(jax.tree.leaves(is_frozen)):
        return optimizer
    labels = jax.tree.map(lambda freeze: "frozen" if freeze else "trained", is_frozen)
    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def _update_rule(
    name: str,
    params: Any,
    decay_mults: Any,
    *,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> list[optax.GradientTransformation]:
    """Return the transformations of an optimizer between clipping and the learning rate.

    `decay_mults` has the factor of every parameter's weight decay. Raises UserError for an unknown `name`.
    """
    adam = optax.scale_by_adam(beta1, beta2, epsilon)
    decay = _add_decay(jax.tree.map(lambda factor: weight_decay * factor, decay_mults))
    match name:
        case "adamw":
            return [adam, decay]
        case "adam":
            return [decay, adam]
        case "sgd":
            return [decay, optax.trace(momentum, nesterov) if momentum else optax.identity()]
        case "lion":
            return [optax.scale_by_lion(beta1, beta2), decay]
        case "lamb":
            return [adam, decay, _trust_ratio(params, decay_mults)]
        case "adafactor":
            return [*_adafactor(params, beta1, beta2), decay]
    raise UserError(f"config.optimizer.name={name} is unknown; use adamw, adam, sgd, lamb, lion or adafactor")


def _lr_factors(params: Any, lr_mults: Rules, layer_decay: float | None) -> Any:
    """Return a tree like `params` with the factor of each learning rate; None if all have the same."""
    factors = match_rules(lr_mults, params, "optimizer.lr_mults") if lr_mults else None
    if layer_decay is None:
        return factors
    by_layer = layer_lr_mults(params, layer_decay)
    return by_layer if factors is None else jax.tree.map(lambda a, b: a * b, factors, by_layer)


def layer_lr_mults(params: Any, layer_decay: float) -> Any:
    """Return a tree like `params` with the factor of each learning rate: 1 above the blocks, `layer_decay` to the power
    of depth - i in block i, and of depth + 1 in the embedding of patches and positions.

    As in BEiT (arXiv 2106.08254, appendix H) and MAE (arXiv 2111.06377, appendix A.1). Parameters of stacked blocks get
    an array of factors, one for each block.
    """
    names = [name_of(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    apart = [int(match[1]) + 1 for name in names if (match := re.match(r"\w*Block_(\d+)/", name))]
    stacked = [leaf.shape[0] for name, leaf in zip(names, jax.tree.leaves(params)) if re.match(r"\w*Blocks/", name)]
    depth = max(apart + stacked, default=0)

    def factor(path: tuple[Any, ...], leaf: Any) -> Any:
        name = name_of(path)
        if re.match(r"\w*Blocks/", name):
            powers = layer_decay ** np.arange(depth, 0, -1, dtype=np.float32)
            return powers.reshape(-1, *[1] * (len(leaf.shape) - 1))
        if block := re.match(r"\w*Block_(\d+)/", name):
            return layer_decay ** (depth - int(block[1]))
        return layer_decay ** (depth + 1) if name.startswith(EMBEDDINGS) else 1.0

    return jax.tree_util.tree_map_with_path(factor, params)


def frozen_params(rules: Rules, params: Any) -> Any:
    """Return a tree like `params` with True for parameters that the rules of optimizer.frozen freeze."""
    if not rules:
        return jax.tree.map(lambda _: False, params)
    return match_rules(rules, params, "optimizer.frozen", kind=bool)


def weight_decay_mults(params: Any, wd_mults: Rules = (), wd_mask: str = "kernels") -> Any:
    """Return a tree like `params` with the factor of each weight decay: by the rules `wd_mults`, else by `wd_mask`."""
    if wd_mults:
        return match_rules(wd_mults, params, "optimizer.wd_mults")
    if wd_mask == "all":
        return jax.tree.map(lambda _: 1.0, params)
    if wd_mask != "kernels":
        raise UserError(f"config.optimizer.wd_mask={wd_mask} is unknown; use kernels or all")
    return jax.tree.map(float, weight_decay_mask(params))


def weight_decay_mask(params: Any) -> Any:
    """Return a tree like `params` with True for kernels: biases, normalization scales and embeddings do not decay."""
    return jax.tree_util.tree_map_with_path(lambda path, _: name_of(path).endswith("kernel"), params)


def _trust_ratio(params: Any, decays: Any) -> optax.GradientTransformation:
    """Scale by LAMB's trust ratio: norm of the parameter / norm of the update, or 1 if either is 0.

    Only parameters whose `decays` is not 0 are scaled, as in the authors' code: a bias that starts at 0 has norm 0 and
    would stay there.
    """
    adapts = jax.tree.map(bool, decays)
    if not any(jax.tree.leaves(adapts)):
        return optax.identity()
    adapted = _mask_leaves(params, jax.tree.map(lambda adapt: not adapt, adapts))
    return optax.masked(_vmap_over_blocks(optax.scale_by_trust_ratio(), adapted), adapts)


def _adafactor(params: Any, beta1: float, beta2: float) -> list[optax.GradientTransformation]:
    """Return Adafactor with the changes of arXiv 2106.04560 for image models, so that Adam's learning rates suit it.

    From arXiv 1804.04235: a factored second moment with decay 1 - t^-0.8 and 1e-30 added to the squared gradient, and
    updates clipped to a root mean square of 1. Changed: no scaling by the parameter and no relative step size, so that
    the schedule sets the learning rate; a decay of at most `beta2`; momentum `beta1` without bias correction (0
    disables it). `epsilon` is not used. As in optax, a parameter is factored if its two longest axes have at least 128
    entries.
    """
    second_moment = optax.scale_by_factored_rms(
        decay_rate_fn=lambda step, exponent: jnp.minimum(beta2, 1 - jnp.float32(step + 1) ** -exponent)
    )
    scaled = _vmap_over_blocks(optax.chain(second_moment, optax.clip_by_block_rms(1.0)), params)
    return [scaled, optax.ema(beta1, debias=False) if beta1 else optax.identity()]


def _vmap_over_blocks(transform: optax.GradientTransformation, params: Any) -> optax.GradientTransformation:
    """Apply `transform` to each block separately if `model.scan` has stacked block parameters along a first axis."""

    def group_of(path: tuple[Any, ...], _: Any) -> str:
        return str(path[0].key) if str(path[0].key).endswith("Blocks") else "others"

    labels = jax.tree_util.tree_map_with_path(group_of, params)
    over_blocks = optax.GradientTransformation(jax.vmap(transform.init), jax.vmap(transform.update))
    groups = {label: transform if label == "others" else over_blocks for label in jax.tree.leaves(labels)}
    return transform if set(groups) == {"others"} else optax.partition(groups, labels)


def _add_decay(rates: Any) -> optax.GradientTransformation:
    """Add rate times parameter to the update of every parameter whose rate is not 0."""
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, p, rate: u + rate * p if rate else u, updates, params, rates)
    )


def _scale_by_tree(factors: Any) -> optax.GradientTransformation:
    """Multiply the update of every parameter by its factor."""
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u, factor: factor * u, updates, factors))


def _mask_leaves(tree: Any, hidden: Any) -> Any:
    """Replace the `hidden` leaves of `tree` by optax.MaskedNode."""
    return jax.tree.map(lambda leaf, hide: optax.MaskedNode() if hide else leaf, tree, hidden)
