"""Networks from a configuration: where fields come from, and errors for invalid ones."""

import re

import jax.numpy as jnp
import ml_collections
import pytest

from patchnets import config as config_lib
from patchnets import models
from patchnets.errors import UserError
from patchnets.models.mlp_mixer import VARIANTS, MlpMixer

SIZES = dict(patch_size=8, depth=2, hidden_dim=16, tokens_mlp_dim=4, channels_mlp_dim=32)


def model_config(**values) -> ml_collections.ConfigDict:
    """The model group of a configuration; values that it does not know, or of other types, are taken too."""
    config = config_lib.default_config().model
    with config.unlocked(), config.ignore_type():
        config.update(values)
    return config


def error_of(image_size: int = 64, **values) -> str:
    """What `models.validate` has against these values: a UserError of one line."""
    with pytest.raises(UserError) as caught:
        models.validate(image_size, **model_config(**values))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unknown_architecture_lists_the_known_ones():
    text = error_of(name="mlp_mixxer")
    assert "config.model.name='mlp_mixxer'" in text
    assert all(name in text.split("known:")[1] for name in models.MODELS)


def test_unknown_variant_lists_the_known_ones():
    text = error_of(variant="Q/99")
    assert "config.model.variant='Q/99'" in text and "mlp_mixer" in text
    assert all(name in text.split("known:")[1] for name in VARIANTS)


def test_field_that_the_architecture_does_not_have_is_refused_and_its_own_are_listed():
    text = error_of(**SIZES, num_heads=3)
    assert "config.model.num_heads=3" in text and "mlp_mixer" in text
    assert all(name in text.split("it has")[1] for name in SIZES)


@pytest.mark.parametrize("field", list(SIZES))
def test_field_that_nothing_gives_is_named_with_the_way_out(field):
    text = error_of(**{k: v for k, v in SIZES.items() if k != field})
    assert f"config.model.{field} is not set" in text
    assert "config.model.variant" in text and "B/16" in text


def test_field_in_the_configuration_beats_the_variant():
    actual = models.resolve_fields(**model_config(variant="S/16", depth=3, tokens_mlp_dim=7))
    assert actual == VARIANTS["S/16"] | dict(depth=3, tokens_mlp_dim=7)
    assert VARIANTS["S/16"]["depth"] == 8, "the table itself was changed"


def test_model_is_made_with_the_fields_given_and_the_defaults_of_the_rest():
    model = models.create_model(
        **model_config(**SIZES, gelu="exact", dtype="bfloat16", dropout_rate=0.25), num_classes=11
    )
    assert model == MlpMixer(num_classes=11, **SIZES, gelu="exact", dtype=jnp.bfloat16, dropout_rate=0.25)
    assert models.create_model(**model_config(**SIZES), num_classes=3) == MlpMixer(num_classes=3, **SIZES)
    assert models.create_model(**model_config(**SIZES, dtype="float32"), num_classes=3).dtype == jnp.float32


@pytest.mark.parametrize(("image_size", "patch_size"), [(65, 8), (5, 8), (224, 32 - 1), (23, 12)])
def test_image_that_does_not_divide_names_both_sizes_and_suggests_ones_that_work(image_size, patch_size):
    text = error_of(image_size, **SIZES | dict(patch_size=patch_size))
    assert f"image_size {image_size} " in text and f"patch_size {patch_size};" in text
    suggested = [int(number) for number in re.findall(r"\d+", text.split("use ")[1])]
    assert suggested and 0 not in suggested
    for size in suggested:
        models.validate(size, **model_config(**SIZES | dict(patch_size=patch_size)))
        assert abs(size - image_size) < patch_size


def test_patch_size_of_a_variant_is_held_against_the_image_too():
    assert error_of(100, variant="S/16") == "image_size 100 is not divisible by patch_size 16; use 96 or 112"


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("gelu", "erf", ("tanh", "exact")),
        ("dtype", "float16", ("float32", "bfloat16")),
        ("dropout_rate", 1.0, ("0", "1")),
        ("dropout_rate", -0.1, ("0", "1")),
        ("drop_path_rate", float("nan"), ("0", "1")),
        ("depth", 0, ("at least 1",)),
        ("patch_size", -8, ("at least 1",)),
        ("hidden_dim", 0, ("at least 1",)),
        ("norm_epsilon", 0.0, ("above 0",)),
    ],
)
def test_value_out_of_range_is_named_with_what_is_expected(field, value, expected):
    text = error_of(**SIZES | {field: value})
    assert text.startswith(f"config.model.{field}={value!r}")
    assert all(word in text.split("expected")[1] for word in expected)


def test_usable_configuration_passes():
    assert models.validate(64, **model_config(**SIZES)) is None
    assert models.validate(224, **model_config(variant="H/14")) is None


def test_every_field_of_every_architecture_is_explained():
    actual = models.all_config_fields()
    assert set(actual) >= set(SIZES)
    for name, (kind, text) in actual.items():
        assert kind in (int, float, str, bool), name
        assert len(text) > 10 and "\n" not in text, name


VIT = dict(name="vit", patch_size=8, depth=2, hidden_dim=18, mlp_dim=32, num_heads=3)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (dict(num_heads=4), "hidden_dim=18 does not divide into config.model.num_heads=4"),
        (dict(posemb="sincos2d"), "hidden_dim=18 does not divide by 4"),
        (dict(posemb="learnt"), "posemb='learnt' is unknown; expected one of learned, sincos2d, none"),
        (dict(pool_type="mean"), "pool_type='mean' is unknown; expected one of cls, gap, map"),
        (dict(rep_size=-1), "rep_size=-1 is out of range; expected at least 0"),
        (dict(layer_scale=-1.0), "layer_scale=-1.0 is out of range; expected at least 0"),
        (dict(attention_dropout_rate=1.0), "attention_dropout_rate=1.0 is out of range"),
    ],
)
def test_what_a_transformer_cannot_be_is_told(values, words):
    assert words in error_of(**VIT | values)


def test_a_transformer_without_representation_and_layer_scale_passes():
    assert models.validate(64, **model_config(**VIT, rep_size=0, layer_scale=0.0)) is None


def test_a_table_of_positions_that_takes_gigabytes_is_refused():
    fields = dict(patch_size=1, depth=1, hidden_dim=1024, mlp_dim=4, num_heads=1, posemb="sincos2d")
    with pytest.raises(UserError, match="more than 134,217,728 numbers for images of 16384 px"):
        models.validate(16384, "vit", **fields)
    models.validate(1024, "vit", variant="H/16", posemb="sincos2d")
