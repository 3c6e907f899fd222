"""Architectures by their names in a configuration; `create_model` makes a network."""

import dataclasses
from typing import Any, cast

import flax.linen as nn
import jax.numpy as jnp

from patchnets.errors import UserError
from patchnets.models import blocks, convmixer, fnet, gmlp, layers, mlp_mixer, ops, tutorials, vit

# name in the configuration -> (module, its published variants)
MODELS: dict[str, tuple[type[nn.Module], dict[str, dict[str, Any]]]] = {
    "mlp_mixer": (mlp_mixer.MlpMixer, mlp_mixer.VARIANTS),
    "fnet": (fnet.Fnet, fnet.VARIANTS),
    "gmlp": (gmlp.Gmlp, gmlp.VARIANTS),
    "convmixer": (convmixer.ConvMixer, convmixer.VARIANTS),
    "vit": (vit.VisionTransformer, vit.VARIANTS),
    "keras_mixer": (tutorials.KerasMixer, tutorials.MLP_VARIANTS),
    "keras_fnet": (tutorials.KerasFnet, tutorials.MLP_VARIANTS),
    "keras_gmlp": (tutorials.KerasGmlp, tutorials.MLP_VARIANTS),
    "keras_vit": (tutorials.KerasVit, tutorials.VIT_VARIANTS),
    "keras_convmixer": (tutorials.KerasConvMixer, tutorials.CONVMIXER_VARIANTS),
    "blog_mixer_pytorch": (tutorials.BlogMixerPytorch, tutorials.BLOG_PYTORCH_VARIANTS),
    "blog_mixer_keras": (tutorials.BlogMixerKeras, tutorials.BLOG_KERAS_VARIANTS),
}

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# Meaning of every field, in any architecture. `dtype` is a name here and a type in the module.
FIELD_HELP = {
    "patch_size": "side of a square patch, in pixels",
    "depth": "number of blocks",
    "hidden_dim": "channels of every patch",
    "tokens_mlp_dim": "hidden units of the token-mixing MLP (D_S)",
    "channels_mlp_dim": "hidden units of the channel-mixing MLP (D_C)",
    "dropout_rate": "share of units dropped, where the source of the network has dropout",
    "drop_path_rate": "probability of dropping the last block's branches",
    "drop_path_schedule": "that probability over the blocks: linear from 0, or constant",
    "drop_path_scale_by_keep": "whether a branch that is kept is divided by the probability of keeping it",
    "norm_epsilon": "added to the variance in every LayerNorm",
    "mlp_dim": "hidden units of a block's MLP",
    "embedding_norm": "whether a LayerNorm follows the position embedding",
    "fourier_impl": (
        "how FNet computes its transform: fft, matrix (real matrix products), or auto (the faster on this backend)"
    ),
    "ffn_dim": "hidden units of a gMLP block, before they are split in halves (d_ffn)",
    "survival_probability": "probability of keeping the last block's branch",
    "kernel_size": "side of ConvMixer's depthwise kernels, in patches",
    "activation": "ConvMixer's activation: gelu or relu",
    "batch_norm_epsilon": "added to the variance in every BatchNorm",
    "batch_norm_momentum": "share of BatchNorm's running statistics that stays at each step",
    "depthwise_impl": "how depthwise convolutions are computed: conv, shifts, or auto (the faster on this backend)",
    "num_heads": "heads of attention; divides hidden_dim",
    "pool_type": "input of the head: cls (a class token), gap (the mean of the patches) or map (attention pooling)",
    "posemb": "position embedding: learned, sincos2d (fixed) or none",
    "rep_size": "units of a dense layer with tanh before the head; 0 for none",
    "norm_after_pooling": "whether the last LayerNorm comes after the pooling, not before it",
    "attention_dropout_rate": "share of attention weights dropped",
    "head_dropout_rate": "share of units dropped before and within the head of the tutorial's ViT",
    "layer_scale": "initial value of the learned factors of every branch; 0 for no factors",
    "attention_impl": "how attention is computed: plain, fused, or auto (the faster on this backend)",
    "gelu": "form of GELU: tanh or exact",
    "remat": "recompute a block's activations in the backward pass, instead of keeping them",
    "scan": "compile one block and loop over it, with the parameters of all blocks stacked",
    "dtype": "type of the activations: float32 or bfloat16",
}
CHOICES: dict[str, Any] = {
    "gelu": tuple(layers.GELU),
    "dtype": tuple(DTYPES),
    "fourier_impl": ("auto", *fnet.FOURIER_IMPLS),
    "activation": convmixer.ACTIVATIONS,
    "drop_path_schedule": tuple(blocks.DROP_PATH_SCHEDULES),
    "depthwise_impl": ("auto", *ops.DEPTHWISE_IMPLS),
    "pool_type": vit.POOL_TYPES,
    "posemb": vit.POSEMBS,
    "attention_impl": ("auto", *vit.ATTENTION_IMPLS),
}
# Fields that change neither the parameters of a network nor what it computes of them, but how it is trained or run.
TRAINING_FIELDS = (
    *("dropout_rate", "attention_dropout_rate", "head_dropout_rate", "batch_norm_momentum"),
    *("drop_path_rate", "drop_path_schedule", "drop_path_scale_by_keep", "survival_probability"),
    *("fourier_impl", "depthwise_impl", "attention_impl", "remat", "scan", "dtype"),
)
NONE_IF_ZERO = ("rep_size",)  # whole numbers that may be 0
NOT_NEGATIVE = ("layer_scale",)
POSITIVE = ("norm_epsilon", "batch_norm_epsilon")
MAX_SIZE = 2**20  # of whole numbers: units, patches, blocks
MAX_POSITIONS = 2**27  # numbers in a table of fixed positions, which a file of weights could ask for
NON_CONFIG_FIELDS = ("parent", "name", "num_classes", "param_init", "head_init")  # not for configurations


def config_fields(name: str) -> dict[str, dataclasses.Field]:
    """Return the fields of an architecture that a configuration may set."""
    return {f.name: f for f in dataclasses.fields(MODELS[name][0]) if f.name not in NON_CONFIG_FIELDS}


def all_config_fields() -> dict[str, tuple[type, str]]:
    """Return {field: (type in a configuration, meaning)} over all architectures."""
    types: dict[str, tuple[type, str]] = {}
    for name in MODELS:
        for field in config_fields(name).values():
            kind = cast(type, str if field.name in CHOICES else field.type)
            types[field.name] = (kind, FIELD_HELP[field.name])
    return types


def resolve_fields(name: str, variant: str | None = None, **fields: Any) -> dict[str, Any]:
    """Return the fields of a network: those of its published `variant`, overridden by `fields` that are not None.

    Raises:
      UserError: an unknown name, variant or field, or a field that neither the variant nor `fields` has.
    """
    if name not in MODELS:
        raise UserError(f"config.model.name={name!r} is unknown; known: {', '.join(MODELS)}")
    _, variants = MODELS[name]
    if variant is not None and variant not in variants:
        raise UserError(f"config.model.variant={variant!r} is unknown for {name}; known: {', '.join(variants)}")
    chosen = dict(variants[variant]) if variant else {}
    known = config_fields(name)
    for field, value in fields.items():
        if value is None:
            continue
        if field not in known:
            raise UserError(
                f"config.model.{field}={repr(value)[:80]}: {name} has no such field; it has {', '.join(known)}"
            )
        chosen[field] = value
    missing = [n for n, f in known.items() if n not in chosen and f.default is dataclasses.MISSING]
    if missing:
        raise UserError(
            f"config.model.{missing[0]} is not set; set it, or choose a config.model.variant: {', '.join(variants)}"
        )
    return chosen


def variant_fields(name: str, variant: str | None) -> list[str]:
    """Return the fields that a variant defines; none for an unknown one, which `resolve_fields` refuses."""
    _, variants = MODELS.get(name, (None, {}))
    return list(variants.get(variant, ())) if variant else []


def validate(image_size: int, name: str, variant: str | None = None, **fields: Any) -> None:
    """Raise UserError unless these fields make a network for images of `image_size` pixels a side."""
    chosen = resolve_fields(name, variant, **fields)
    for field, value in chosen.items():
        if field in CHOICES and value not in CHOICES[field]:
            raise UserError(
                f"config.model.{field}={repr(value)[:80]} is unknown; expected one of {', '.join(CHOICES[field])}"
            )
        if expected := out_of_range(field, value):
            raise UserError(f"config.model.{field}={value} is out of range; expected {expected}")
        if field == "ffn_dim" and value % 2:
            raise UserError(f"config.model.{field}={value} is odd; expected an even number, to split in halves")
    width, heads = chosen["hidden_dim"], chosen.get("num_heads", 1)
    if name == "vit" and width % heads:
        raise UserError(f"config.model.hidden_dim={width} does not divide into config.model.num_heads={heads} heads")
    if chosen.get("posemb") == "sincos2d" and width % 4:
        raise UserError(
            f"config.model.hidden_dim={width} does not divide by 4, which config.model.posemb=sincos2d needs"
        )
    if chosen.get("posemb") == "sincos2d" and (image_size // chosen["patch_size"]) ** 2 * width > MAX_POSITIONS:
        raise UserError(
            f"config.model.posemb=sincos2d makes a table of more than {MAX_POSITIONS:,} numbers for images of "
            f"{image_size} px, patches of {chosen['patch_size']} and width {width}; make these smaller"
        )
    if image_size % (patch := chosen["patch_size"]):
        below, over = image_size // patch * patch, -(-image_size // patch) * patch
        use = f"{below} or {over}" if below else str(over)
        raise UserError(f"image_size {image_size} is not divisible by patch_size {patch}; use {use}")


def out_of_range(name: str, value: Any) -> str | None:
    """Return the range expected of a field, or None if `value` is in it."""
    if (name.endswith("_rate") or name == "batch_norm_momentum") and not 0 <= value < 1:
        return "from 0 up to, not including, 1"
    if name == "survival_probability" and not 0 < value <= 1:
        return "above 0, up to 1"
    if name in NOT_NEGATIVE and not 0 <= value < float("inf"):
        return "at least 0"
    if name in POSITIVE and not 0 < value < float("inf"):
        return "above 0"
    least = 0 if name in NONE_IF_ZERO else 1
    if type(value) is int and not least <= value <= MAX_SIZE:
        return f"from {least} to {MAX_SIZE:,}" if value > MAX_SIZE else f"at least {least}"
    return None


def create_model(name: str, variant: str | None = None, *, num_classes: int, **fields: Any) -> nn.Module:
    """Return a network; `model.apply(variables, images, train=...)` gives its logits.

    create_model("vit", "S/16", num_classes=10, patch_size=4). Raise UserError as `resolve_fields`.
    """
    chosen = resolve_fields(name, variant, **fields)
    if "dtype" in chosen:
        chosen["dtype"] = DTYPES[chosen["dtype"]]
    return MODELS[name][0](num_classes=num_classes, **chosen)
