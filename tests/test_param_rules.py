"""Rules by parameter name: which one applies, and which are refused."""

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

from patchnets.errors import UserError
from patchnets.models.mlp_mixer import MlpMixer
from patchnets.param_rules import match_rules

NAMES = [
    "MixerBlock_0/token_mixing/Dense_0/kernel",
    "MixerBlock_0/token_mixing/Dense_0/bias",
    "MixerBlock_10/token_mixing/Dense_0/kernel",
    "head/kernel",
    "head/bias",
]
PARAMS = traverse_util.unflatten_dict({name: jax.ShapeDtypeStruct((2,), jnp.float32) for name in NAMES}, sep="/")


def matched(rules, params=PARAMS, kind=float):
    return traverse_util.flatten_dict(match_rules(rules, params, "optimizer.lr_mults", kind), sep="/")


def refused(rules, kind=float) -> str:
    with pytest.raises(UserError) as caught:
        match_rules(rules, PARAMS, "optimizer.lr_mults", kind)
    text = str(caught.value)
    assert "\n" not in text and "config.optimizer.lr_mults" in text
    return text


def test_the_first_rule_that_matches_the_whole_name_decides():
    rules = (("head/bias", 3.0), ("head/.*", 2.0), ("MixerBlock_1.*", 0.5), (".*kernel", 7), (".*", 0.0))
    assert matched(rules) == {
        "MixerBlock_0/token_mixing/Dense_0/kernel": 7.0,
        "MixerBlock_0/token_mixing/Dense_0/bias": 0.0,
        "MixerBlock_10/token_mixing/Dense_0/kernel": 0.5,
        "head/kernel": 2.0,
        "head/bias": 3.0,
    }


def test_a_part_of_a_name_is_no_match():
    assert "'head' matches no parameter" in refused((("head", 1.0), (".*", 1.0)))
    assert "'bias' matches no parameter" in refused((("bias", 1.0), (".*", 1.0)))


def test_lists_do_as_well_as_tuples_and_numbers_become_floats_and_truths_stay():
    in_lists = matched([["head/.*", 2], [".*", 1.0]])
    assert in_lists == matched((("head/.*", 2.0), (".*", 1.0)))
    assert {type(value) for value in in_lists.values()} == {float}
    frozen = matched([["head/.*", False], [".*", True]], kind=bool)
    assert frozen["head/bias"] is False and frozen["MixerBlock_0/token_mixing/Dense_0/bias"] is True


def test_one_value_for_the_parameters_of_stacked_blocks():
    model = MlpMixer(
        num_classes=5, patch_size=4, depth=2, hidden_dim=6, tokens_mlp_dim=3, channels_mlp_dim=7, scan=True
    )
    variables = jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, 8, 8, 3)), train=False), jax.random.key(0))
    shapes = variables["params"]
    actual = matched((("MixerBlocks/.*/kernel", 0.5), (".*", 1.0)), shapes)
    assert jax.tree.structure(match_rules(((".*", 1.0),), shapes, "x")) == jax.tree.structure(shapes)
    assert {name for name, value in actual.items() if value == 0.5} == {
        f"MixerBlocks/{mixing}_mixing/Dense_{i}/kernel" for mixing in ("token", "channel") for i in (0, 1)
    }


def test_the_first_parameter_that_no_rule_matches_is_named_with_how_to_end_the_list():
    text = refused((("MixerBlock_0/.*", 1.0), ("head/kernel", 1.0)))
    assert NAMES[2] in text and "('.*', 1.0)" in text  # trees are sorted: head/bias comes after the blocks
    assert "('.*', False)" in refused((("MixerBlock.*", True),), bool)


def test_a_rule_that_matches_nothing_is_named_with_a_name_that_is_near():
    text = refused((("MixerBlock_0/token_mixing/Dense_0/kernl", 1.0), (".*", 1.0)))
    assert "'MixerBlock_0/token_mixing/Dense_0/kernl'" in text and f"such as {NAMES[0]}" in text
    assert "heads/kernel" in (text := refused((("heads/kernel", 1.0), (".*", 1.0)))) and "such as head/kernel" in text


def test_a_rule_behind_others_that_leave_it_nothing_is_refused():
    text = refused(((".*", 1.0), ("head/kernel", 10.0)))
    assert "'head/kernel'" in text and "further up" in text


@pytest.mark.parametrize(
    ("rules", "options"),
    [
        ("head/.*", "'head/.*' is not a list of rules"),
        (("head/.*", 1.0), "'head/.*' is not a pair"),
        (((".*",),), "('.*',) is not a pair"),
        (((".*", 1.0, 2.0),), "is not a pair"),
        (((1.0, ".*"),), "is not a pair"),
        ((("head/(", 1.0), (".*", 1.0)), "'head/(' is not a regular expression"),
        (((".*", "1"),), "the value '1'"),
        (((".*", None),), "the value None"),
        (((".*", True),), "the value True"),
        (((".*", -0.1),), "the value -0.1"),
        (((".*", float("nan")),), "the value nan"),
        (((".*", float("inf")),), "the value inf"),
    ],
)
def test_rules_of_a_wrong_shape_or_value_are_refused(rules, options):
    assert options in refused(rules)


@pytest.mark.parametrize("value", [1, 0, 1.0, "true", None])
def test_only_true_and_false_are_truths(value):
    text = refused(((".*", value),), bool)
    assert f"the value {value!r}" in text and "true or false" in text
