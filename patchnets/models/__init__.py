"""The architectures, by the name they have in a configuration, and how one is made from it."""

import dataclasses
from typing import Any, cast

import flax.linen as nn
import jax.numpy as jnp
import ml_collections

from patchnets.errors import UserError
from patchnets.models import fnet, gmlp, layers, mlp_mixer

# name in the configuration -> (module, its published variants)
MODELS: dict[str, tuple[type[nn.Module], dict[str, dict[str, Any]]]] = {
    "mlp_mixer": (mlp_mixer.MlpMixer, mlp_mixer.VARIANTS),
    "fnet": (fnet.Fnet, fnet.VARIANTS),
    "gmlp": (gmlp.Gmlp, gmlp.VARIANTS),
}

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# What every field means, whichever architecture has it. `dtype` is a name here and a type in the module.
FIELD_HELP = {
    "patch_size": "side of a square patch, in pixels",
    "depth": "number of blocks",
    "hidden_dim": "channels of every patch",
    "tokens_mlp_dim": "hidden units of the token-mixing MLP (D_S)",
    "channels_mlp_dim": "hidden units of the channel-mixing MLP (D_C)",
    "dropout_rate": "share of units dropped after each dense layer of an MLP",
    "stochastic_depth_rate": "probability of dropping the last block's branches; grows linearly with depth",
    "mlp_dim": "hidden units of a block's MLP",
    "embedding_norm": "whether a LayerNorm follows the position embedding",
    "fourier": "how FNet computes its transform: fft, matrix (real matrix products), or auto, the platform's faster",
    "ffn_dim": "hidden units of a gMLP block, before they are split in halves (d_ffn)",
    "survival_probability": "probability of keeping the last block's branch; falls linearly from 1 with depth",
    "gelu": "form of GELU: tanh or exact",
    "dtype": "what activations are computed in: float32 or bfloat16",
}
CHOICES = {"gelu": tuple(layers.GELU), "dtype": tuple(DTYPES), "fourier": ("auto", *fnet.FOURIER)}
RATES = ("dropout_rate", "stochastic_depth_rate")


def fields(name: str) -> dict[str, dataclasses.Field]:
    """The fields of an architecture that a configuration may set."""
    inner = ("parent", "name", "num_classes")
    return {f.name: f for f in dataclasses.fields(MODELS[name][0]) if f.name not in inner}


def all_fields() -> dict[str, tuple[type, str]]:
    """{field: (type in a configuration, meaning)} over all architectures."""
    found: dict[str, tuple[type, str]] = {}
    for name in MODELS:
        for field in fields(name).values():
            kind = cast(type, str if field.name in CHOICES else field.type)
            found[field.name] = (kind, FIELD_HELP[field.name])
    return found


def settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The fields of the network that `config` describes: the variant's, overridden by those that are set.

    Raises:
      UserError: an unknown name, variant or field, or a field that neither the variant nor the configuration gives.
    """
    if config.name not in MODELS:
        raise UserError(f"config.model.name={config.name!r} is unknown; known: {', '.join(MODELS)}")
    _, variants = MODELS[config.name]
    if config.variant is not None and config.variant not in variants:
        raise UserError(
            f"config.model.variant={config.variant!r} is unknown for {config.name}; known: {', '.join(variants)}"
        )
    chosen = dict(variants[config.variant]) if config.variant else {}
    known = fields(config.name)
    for name, value in config.items():
        if name in ("name", "variant") or value is None:
            continue
        if name not in known:
            raise UserError(
                f"config.model.{name}={value!r}: {config.name} has no such field; it has {', '.join(known)}"
            )
        chosen[name] = value
    missing = [n for n, f in known.items() if n not in chosen and f.default is dataclasses.MISSING]
    if missing:
        raise UserError(
            f"config.model.{missing[0]} is not set; set it, or choose a config.model.variant: {', '.join(variants)}"
        )
    return chosen


def variant_fields(config: ml_collections.ConfigDict) -> list[str]:
    """The fields that the variant named in `config` defines; none for an unknown one, which `settings` refuses."""
    _, variants = MODELS.get(config.name, (None, {}))
    return list(variants.get(config.variant, ()))


def check(config: ml_collections.ConfigDict, image_size: int) -> None:
    """Raises UserError where `config` describes no network that takes images of `image_size` pixels a side."""
    for name, value in settings(config).items():
        if name in CHOICES and value not in CHOICES[name]:
            raise UserError(f"config.model.{name}={value!r} is unknown; expected one of {', '.join(CHOICES[name])}")
        if name in RATES and not 0 <= value < 1:
            raise UserError(f"config.model.{name}={value} is out of range; expected from 0 up to, not including, 1")
        if name == "survival_probability" and not 0 < value <= 1:
            raise UserError(f"config.model.{name}={value} is out of range; expected above 0, up to 1")
        if name == "ffn_dim" and value % 2:
            raise UserError(f"config.model.{name}={value} is odd; expected an even number, for it is split in halves")
        if type(value) is int and value < 1:
            raise UserError(f"config.model.{name}={value} is out of range; expected at least 1")
    patch = settings(config).get("patch_size")
    if patch and image_size % patch:
        below, over = image_size // patch * patch, -(-image_size // patch) * patch
        use = f"{below} or {over}" if below else str(over)
        raise UserError(f"image_size {image_size} is not divisible by patch_size {patch}; use {use}")


def create_model(config: ml_collections.ConfigDict, num_classes: int) -> nn.Module:
    """The network that `config.model` describes; `model.apply(variables, images, train=...)` gives its logits."""
    chosen = settings(config)
    if "dtype" in chosen:
        chosen["dtype"] = DTYPES[chosen["dtype"]]
    return MODELS[config.name][0](num_classes=num_classes, **chosen)
