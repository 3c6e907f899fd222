"""Configurations: errors and their messages, and the names of configurations."""

import json

import pytest
from ml_collections import ConfigDict

from patchnets import config as config_lib
from patchnets import models
from patchnets.errors import UserError

# Pairs of durations of which one at most may be given.
PAIRS = [
    ("total_epochs", 5.0, "total_steps", 5),
    ("eval_every_epochs", 1.0, "eval_every_steps", 10),
    ("schedule.warmup_epochs", 2.0, "schedule.warmup_steps", 20),
]


def assign(config: ConfigDict, name: str, value) -> None:
    """Sets config.a.b, whatever a ConfigDict itself has against a new name or another type."""
    *parents, leaf = name.split(".")
    with config.unlocked(), config.ignore_type():
        for parent in parents:
            config = config[parent]
        config[leaf] = value


def usable(**values) -> ConfigDict:
    """A configuration that passes, with these values on top; two underscores stand for a dot."""
    config = config_lib.default_config()
    for name, value in {"total_epochs": 1.0, "model.variant": "S/16"}.items():
        assign(config, name, value)
    for name, value in values.items():
        assign(config, name.replace("__", "."), value)
    return config


def error_of(config: ConfigDict) -> str:
    """What `check` has against a configuration: a UserError of one line."""
    with pytest.raises(UserError) as caught:
        config_lib.validate(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- check ------------------------------------------------------------------------------------------------------------


def test_defaults_with_a_length_and_a_network_pass():
    assert config_lib.validate(usable()) is None


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("batchsize", "batch_size"),
        ("totl_epochs", "total_epochs"),
        ("optimizer.learning_rat", "optimizer.learning_rate"),
        ("optimizer.lerning_rate", "optimizer.learning_rate"),
        ("learning_rate", "optimizer.learning_rate"),
        ("model.hiden_dim", "model.hidden_dim"),
    ],
)
def test_unknown_key_is_refused_and_the_nearest_one_suggested(name, nearest):
    config = usable()
    assign(config, name, 1)
    assert error_of(config) == f"unknown key config.{name}; did you mean config.{nearest}?"


@pytest.mark.parametrize(
    ("name", "meant"), [("dataset.batch_size", "batch_size"), ("schedule.total_steps", "total_steps")]
)
def test_key_in_a_wrong_group_is_suggested_in_its_own(name, meant):
    config = usable()
    assign(config, name, 1)
    assert error_of(config) == f"unknown key config.{name}; did you mean config.{meant}?"


def test_unknown_key_like_no_other_points_to_help():
    assert "unknown key config.xyzzy" in error_of(usable(xyzzy=1)) and "--help" in error_of(usable(xyzzy=1))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("batch_size", "128", "int"),
        ("batch_size", 128.0, "int"),
        ("batch_size", True, "int"),
        ("optimizer.learning_rate", "1e-3", "float"),
        ("optimizer.grad_clip_norm", "1", "float"),
        ("augment.flip", 1, "bool"),
        ("normalize", 1, "str"),
        ("dataset.name", ["cifar10"], "str"),
        ("total_epochs", "10", "float"),
        ("model.depth", 8.0, "int"),
        ("model.variant", 16, "str"),
    ],
)
def test_value_of_a_wrong_type_is_refused_with_its_value_type_and_what_is_expected(name, value, expected):
    config = usable()
    assign(config, name, value)
    text = error_of(config)
    assert text.startswith(f"config.{name}={value!r} ")
    assert type(value).__name__ in text and expected in text.split("expected")[1]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("seed", -1, "from 0 up to"),
        ("batch_size", 0, "at least 1"),
        ("eval_batch_size", -5, "at least 1"),
        ("image_size", 0, "from 1 to 16384"),
        ("total_epochs", 0.0, "above 0"),
        ("total_epochs", float("inf"), "above 0"),
        ("optimizer.learning_rate", -1e-3, "at least 0"),
        ("optimizer.learning_rate", float("nan"), "at least 0"),
        ("optimizer.beta1", 1.0, "not including, 1"),
        ("optimizer.epsilon", 0.0, "above 0"),
        ("optimizer.grad_clip_norm", 0.0, "above 0"),
        ("optimizer.wd_mask", "biases", "kernels, all"),
        ("optimizer.name", "sgdm", "adamw"),
        ("schedule.name", "steps", "constant, cosine, linear"),
        ("dataset.loader", "both", "auto, on_device, streaming"),
        ("dataset.on_corrupt", "ignore", "stop, skip"),
        ("dataset.num_workers", -1, "at least 0"),
        ("augment.policy", "randaug", "randaugment, autoaugment_cifar10"),
        ("augment.crop_scale_min", 0.0, "above 0 and at most 1"),
        ("augment.crop_ratio_max", 0.5, "at least 1"),
        ("augment.hue", 0.6, "from 0 to 0.5"),
        ("augment.magnitude", 31.0, "from 0 to 30"),
        ("augment.mixup", -0.1, "at least 0"),
        ("augment.mix_mode", "image", "batch, example"),
        ("augment.random_erasing_mode", "black", "constant, random, pixel"),
        ("grad_accum_steps", 0, "at least 1"),
        ("loss", "hinge", "softmax, sigmoid"),
        ("ema_decay", 1.0, "above 0 and below 1"),
        ("optimizer.sam_rho", 0.0, "above 0"),
        ("schedule.end_factor", 1.01, "0"),
        ("schedule.warmup_steps", -1, "at least 0"),
        ("label_smoothing", 1.0, "not including, 1"),
        ("augment.zoom", -0.1, "from 0"),
        ("normalize", "zscore", "symmetric, unit, imagenet, dataset"),
        ("checkpoint.max_to_keep", 0, "at least 1"),
        ("checkpoint.best_metric", "f1", "accuracy, top5_accuracy, loss"),
        ("mesh.data", 0, "-1"),
        ("mesh.data", -2, "-1"),
        ("model.dropout_rate", 1.0, "not including, 1"),
        ("model.depth", 0, "at least 1"),
    ],
)
def test_value_out_of_range_is_refused_with_its_value_and_what_is_expected(name, value, expected):
    config = usable()
    assign(config, name, value)
    text = error_of(config)
    assert text.startswith(f"config.{name}={value!r} ") and expected in text.split("expected")[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("schedule.end_factor", 1.0),
        ("schedule.end_factor", 0.0),
        ("mesh.data", -1),
        ("mesh.data", 8),
        ("optimizer.learning_rate", 0.0),
        ("optimizer.weight_decay", 0.0),
        ("seed", 0),
        ("schedule.warmup_steps", 0),
        ("batch_size", 1),
        ("augment.zoom", 0.999),
    ],
)
def test_value_at_the_edge_of_its_range_is_taken(name, value):
    config = usable()
    assign(config, name, value)
    assert config_lib.validate(config) is None


@pytest.mark.parametrize("seed", [2**31, 2**40, 10**400], ids=["2**31", "2**40", "10**400"])
def test_seed_that_no_run_can_use_is_refused(seed):
    assert "config.seed" in error_of(usable(seed=seed))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0])
def test_duration_in_both_units_is_refused_with_both_values(pair):
    single, first, other, second = pair

    def configuration(**settings) -> ConfigDict:
        config = usable()
        for name, value in settings.items():
            assign(config, name, value)
        return config

    text = error_of(configuration(**{single: first, other: second}))
    assert f"config.{single}={first}" in text and f"config.{other}={second}" in text
    assert config_lib.validate(configuration(**{single: first, other: None})) is None
    assert config_lib.validate(configuration(**{single: None, other: second})) is None


def test_run_without_a_length_is_refused_with_both_ways_to_give_one():
    text = error_of(usable(total_epochs=None))
    assert "config.total_epochs" in text and "config.total_steps" in text


def test_key_that_was_deleted_is_named():
    config = usable()
    with config.unlocked():
        del config.optimizer.beta1
    assert "config.optimizer.beta1 is missing" in error_of(config)


def test_batch_that_cannot_be_worked_through_in_equal_parts_is_refused():
    assert error_of(usable(batch_size=128, grad_accum_steps=3)).startswith(
        "config.grad_accum_steps=3 does not divide config.batch_size=128"
    )


def test_rules_are_the_same_as_tuples_and_as_a_file_gives_them_back():
    rules = (("head/.*", 2.0), (".*", 1.0))
    settings = usable(optimizer__lr_mults=rules)
    assert config_lib.validate(settings) is None
    saved = json.loads(json.dumps(config_lib.flatten(settings)))
    assert config_lib.diff(saved, config_lib.flatten(settings)) == []
    assert error_of(usable(optimizer__lr_mults="head/.*")).startswith("config.optimizer.lr_mults='head/.*' is of type")


def test_network_that_does_not_fit_the_image_is_refused():
    assert error_of(usable(image_size=65, model__patch_size=8)) == (
        "image_size 65 is not divisible by patch_size 8; use 64 or 72"
    )


@pytest.mark.parametrize(
    "name", ["optimizer.learning_rate", "total_epochs", "augment.zoom", "optimizer.grad_clip_norm"]
)
def test_whole_number_is_taken_where_a_fraction_is_meant_and_is_the_same_run(name):
    """Assigned as a user would, with the checks of ConfigDict in force."""
    value = 0 if name == "augment.zoom" else 1
    full, fraction = usable(), usable()
    full.update_from_flattened_dict({name: value})
    fraction.update_from_flattened_dict({name: float(value)})
    assert config_lib.validate(full) is None
    assert config_lib.config_hash(full) == config_lib.config_hash(fraction)


# --- the table of keys ------------------------------------------------------------------------------------------------


def test_configuration_is_locked():
    config = config_lib.default_config()
    with pytest.raises((AttributeError, KeyError)):
        config.batchsize = 3
    with pytest.raises((AttributeError, KeyError)):
        config.optimizer.moment = 0.9


def test_every_default_obeys_its_own_rule_and_every_key_is_explained_in_one_line():
    for name, key in config_lib.known_keys().items():
        assert len(key.help) > 8 and "\n" not in key.help, name
        if not isinstance(key.default, type):
            assert key.rule[1](key.default), name
            assert type(key.default) in (int, float, str, bool, tuple), name


def test_fields_of_every_architecture_can_be_set_and_start_unset():
    config = config_lib.default_config()
    for name, (kind, _) in models.all_config_fields().items():
        assert config.model[name] is None
        assert config.model.get_type(name) is kind


def test_describe_names_every_key_once_with_its_value():
    config = usable(batch_size=77, optimizer__grad_clip_norm=0.125)
    lines = {line.split()[0]: line.split()[1] for line in config_lib.format_help(config).splitlines()}
    assert len(config_lib.format_help(config).splitlines()) == len(lines)
    assert set(lines) == {f"--config.{name}" for name in config_lib.known_keys()}
    assert lines["--config.batch_size"] == "77" and lines["--config.optimizer.grad_clip_norm"] == "0.125"
    assert lines["--config.total_steps"] == "-" and lines["--config.model.variant"] == "S/16"
    assert "--config.batch_size" in config_lib.format_help() and " 77 " not in config_lib.format_help()


# --- the name of a configuration --------------------------------------------------------------------------------------


def test_flatten_joins_names_by_dots_and_leaves_out_what_is_not_set():
    nested = {"b": {"c": (1, 2), "d": {"e": "x", "none": None}}, "a": 1, "none": None}
    expected = {"a": 1, "b.c": [1, 2], "b.d.e": "x"}
    assert config_lib.flatten(nested) == config_lib.flatten(ConfigDict(nested)) == expected
    flat = config_lib.flatten(config_lib.default_config())
    assert flat["optimizer.beta1"] == 0.9 and "total_steps" not in flat and "model.depth" not in flat


def test_digest_is_the_same_on_every_machine():
    """A pinned value: work directories that exist are recognized by it."""
    assert config_lib.config_hash(ConfigDict({"b": {"d": "x", "c": [1, 2]}, "a": 1, "n": None})) == "9a817ce9937f"


def test_digest_does_not_depend_on_the_order_of_keys():
    def reverse(tree):
        return {k: reverse(v) if isinstance(v, dict) else v for k, v in reversed(tree.items())}

    plain = usable().to_dict()
    assert list(reverse(plain)) != list(plain)
    assert config_lib.config_hash(reverse(plain)) == config_lib.config_hash(plain) == config_lib.config_hash(usable())


def test_digest_changes_with_every_value_that_figures_may_hang_on():
    start = config_lib.config_hash(usable())
    actual = {start}
    flat = config_lib.flatten(usable())
    for name, value in flat.items():
        config = usable()
        other = not value if isinstance(value, bool) else value + {str: "x", list: [["x", 1]]}.get(type(value), 1)
        assign(config, name, other)
        actual.add(config_lib.config_hash(config))
    actual.add(config_lib.config_hash(usable(model__depth=3)))
    essential = [name for name in flat if name not in config_lib.KEYS_IGNORED_BY_HASH]
    assert len(actual) == len(essential) + 2 and len(essential) > 20
    assert all(len(name) == 12 and set(name) <= set("0123456789abcdef") for name in actual)


def test_differences_tell_both_sides_of_every_key_that_differs():
    old = {"batch_size": 128, "total_epochs": 5.0, "optimizer.grad_clip_norm": 1.0, "same": "x"}
    new = {"batch_size": 256, "total_steps": 100, "optimizer.grad_clip_norm": 1, "same": "x"}
    assert config_lib.diff(old, new) == [
        "batch_size: 128 there, 256 here",
        "total_epochs: 5.0 there, not set here",
        "total_steps: not set there, 100 here",
    ]
    assert config_lib.diff(old, dict(old)) == []
