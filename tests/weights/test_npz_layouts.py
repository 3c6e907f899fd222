"""Official checkpoints of every layout, made by hand, give the logits of NumPy's forward pass of the plain layout."""

import functools
import re

import jax
import numpy as np
import official
import pytest

from patchnets.errors import RunError, UserError
from patchnets.models import vit
from patchnets.weights.pretrained import read_pretrained

IMAGES = np.random.default_rng(2).standard_normal((2, official.SIZE, official.SIZE, 3)).astype(np.float32)


@functools.cache
def compiled(network):
    return jax.jit(functools.partial(network.apply, train=False))


def logits(pretrained, images=IMAGES):
    return np.asarray(compiled(pretrained.spec.create_model())(pretrained.variables, images))


def written(path, arrays):
    np.savez(path, **arrays)
    return read_pretrained(path)


def prefixed(prefix, arrays):
    return {prefix + name: value for name, value in arrays.items()}


def big_vision(arrays):
    """Positions outside of the encoder, where they fold the class token's into it; flax.linen's counters."""
    renamed = {}
    for name, value in arrays.items():
        name = name.replace("Attention_1", "Attention_0").replace("LayerNorm_2", "LayerNorm_1")
        renamed[name.replace("MlpBlock_3", "MlpBlock_0")] = value
    positions = renamed.pop("Transformer/posembed_input/pos_embedding")
    if "cls" in renamed:
        renamed["cls"], positions = renamed["cls"] + positions[:, :1], positions[:, 1:]
    return renamed | {"pos_embedding": positions}


def scanned(arrays):
    """Blocks stacked along a first axis."""
    stacked = {}
    for name, value in arrays.items():
        stacked.setdefault(re.sub(r"encoderblock_\d+", "encoderblock", name), []).append(value)
    return {name: np.stack(v) if "/encoderblock/" in name else v[0] for name, v in stacked.items()}


def rounded(arrays):
    """Numbers that bfloat16 holds."""
    return {name: value.astype(jax.numpy.bfloat16).astype(np.float32) for name, value in arrays.items()}


def as_void(arrays):
    return {name: value.astype(jax.numpy.bfloat16).view("V2") for name, value in arrays.items()}


def norms_of_four_axes(arrays):
    is_norm = lambda name: "norm" in name.lower()
    return {name: value.reshape(1, 1, 1, -1) if is_norm(name) else value for name, value in arrays.items()}


def old_positions(arrays):
    positions = arrays["Transformer/posembed_input/pos_embedding"]
    rest = {name: value for name, value in arrays.items() if "posembed_input" not in name}
    return rest | {"Transformer/pos_embedding": positions}


def inlined(arrays):
    return {name.removeprefix("MAPHead_0/"): value for name, value in big_vision(arrays).items()}


OTHERS = {"params/txt/head/kernel": np.zeros((2, 2), np.int32), "params/t": np.zeros(1, np.float32)}
VIT_LAYOUTS = {
    "plain": (dict(), lambda a: a),
    "representation": (dict(rep_size=7), lambda a: a),
    "mean": (dict(pool="gap"), lambda a: a),
    "in an optimizer": (dict(), lambda a: prefixed("opt/target/", a) | {"opt/state/step": np.array(3)}),
    "big_vision": (dict(), lambda a: prefixed("params/", big_vision(a))),
    "big_vision, mean": (dict(pool="gap", rep_size=5), lambda a: prefixed("params/", big_vision(a))),
    "big_vision, attention pooling": (dict(pool="map"), lambda a: prefixed("params/", big_vision(a))),
    "pooling inlined": (dict(pool="map"), inlined),
    "beside a text tower": (dict(pool="gap"), lambda a: prefixed("params/img/", big_vision(a)) | OTHERS),
    "scanned": (dict(), lambda a: prefixed("params/", scanned(big_vision(a)))),
    "scanned, plain names": (dict(), scanned),
    "norms of four axes": (dict(), norms_of_four_axes),
    "positions in the encoder": (dict(), old_positions),
}


@pytest.mark.parametrize("name", VIT_LAYOUTS)
def test_vit_of_every_layout(name, tmp_path):
    options, change = VIT_LAYOUTS[name]
    plain = official.vit(**options)
    pretrained = written(tmp_path / "a.npz", change(plain))
    expected = [official.vit_logits(plain, image) for image in IMAGES]
    np.testing.assert_allclose(logits(pretrained), expected, rtol=1e-5, atol=1e-5)
    assert (pretrained.network, pretrained.image_size, pretrained.channels) == ("vit", official.SIZE, 3)
    assert pretrained.fields["gelu"] == "tanh" and pretrained.fields["num_heads"] == official.HEADS
    assert pretrained.fields["pool_type"] == options.get("pool", "cls")
    assert pretrained.classes == ("0", "1", "2") and "numbers as class names" in pretrained.assumed[0]
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(pretrained.variables))


def test_what_is_no_parameter_of_the_network_is_listed(tmp_path):
    for name, leftovers in (("in an optimizer", ["opt/state/step"]), ("beside a text tower", list(OTHERS))):
        options, change = VIT_LAYOUTS[name]
        assert list(written(tmp_path / "a.npz", change(official.vit(**options))).leftovers) == leftovers


@pytest.mark.parametrize("change", [lambda a: a, lambda a: prefixed("params/", scanned(big_vision(a)))])
def test_bfloat16_is_stored_as_two_bytes_without_a_name(change, tmp_path):
    plain = rounded(official.vit(pool="gap"))
    expected = written(tmp_path / "a.npz", plain).variables
    jax.tree.map(np.testing.assert_array_equal, written(tmp_path / "b.npz", as_void(change(plain))).variables, expected)


def test_positions_without_one_of_the_class_token_get_a_row_of_zeros(tmp_path):
    pretrained = written(tmp_path / "a.npz", prefixed("params/", big_vision(official.vit())))
    positions = pretrained.variables["params"]["position_embedding"]
    assert positions.shape == (1, 10, official.WIDTH)
    np.testing.assert_array_equal(positions[0, 0], 0)


def test_without_positions_they_are_sines_and_that_is_assumed(tmp_path):
    pretrained = written(tmp_path / "a.npz", official.vit(pool="gap", positions=False))
    assert pretrained.fields["posemb"] == "sincos2d" and pretrained.image_size == 224
    assert any("sincos2d" in line for line in pretrained.assumed) and any("224" in line for line in pretrained.assumed)
    side = official.SIZE // official.PATCH
    table = vit.sincos2d(side, side, official.WIDTH)[None].astype(np.float32)
    plain = official.vit(pool="gap", positions=False) | {"Transformer/posembed_input/pos_embedding": table}
    expected = [official.vit_logits(plain, image) for image in IMAGES]
    np.testing.assert_allclose(logits(pretrained), expected, rtol=1e-5, atol=1e-5)


def test_a_network_without_a_head_gives_features(tmp_path):
    plain = official.vit(classes=0)
    pretrained = written(tmp_path / "a.npz", plain)
    assert pretrained.classes == ()
    expected = [official.vit_logits(plain, image) for image in IMAGES]
    np.testing.assert_allclose(logits(pretrained), expected, rtol=1e-5, atol=1e-5)


def old_mixer(arrays):
    """Blocks in an encoder; kernels of dense layers with axes of length 1."""
    renamed = {}
    for name, value in arrays.items():
        name = name.replace("stem/", "embedding/").replace("pre_head_layer_norm", "Mixer/encoder_norm")
        name = name.replace("MixerBlock_", "Mixer/encoderblock_")
        if "_mixing" in name:
            name = name.replace("_mixing", "_mixing_phase_0")
            name = re.sub(r"Dense_(\d)/(\w+)", lambda m: f"{m[2]}{int(m[1]) + 1}", name)
            value = value[None, :, None]
        renamed[name] = value
    return renamed


MIXER_LAYOUTS = {
    "plain": lambda a: a,
    "older": old_mixer,
    "in an optimizer": lambda a: prefixed("opt/target/", a),
    "older, in an optimizer": lambda a: prefixed("opt/target/", old_mixer(a)),
    "big_vision": lambda a: prefixed("params/", a),
}


@pytest.mark.parametrize("name", MIXER_LAYOUTS)
def test_mixer_of_every_layout(name, tmp_path):
    plain = official.mixer()
    pretrained = written(tmp_path / "a.npz", MIXER_LAYOUTS[name](plain))
    expected = [official.mixer_logits(plain, image) for image in IMAGES]
    np.testing.assert_allclose(logits(pretrained), expected, rtol=1e-5, atol=1e-5)
    assert (pretrained.network, pretrained.image_size) == ("mlp_mixer", official.SIZE)
    assert (pretrained.fields["tokens_mlp_dim"], pretrained.fields["channels_mlp_dim"]) == (5, official.HIDDEN)


def without(name):
    return lambda arrays: {key: value for key, value in arrays.items() if key != name}


def with_array(name, *shape, dtype=np.float32):
    return lambda arrays: arrays | {name: np.zeros(shape, dtype)}


NORM = "Transformer/encoder_norm/bias"
WRONG = {
    "unknown": (with_array("conv_root/kernel", 7, 7, 3, 8), UserError, "'conv_root/kernel' of shape"),
    "unused": (
        with_array("MAPHead_0/LayerNorm_0/bias", 8),
        UserError,
        "which the network of its other arrays does not",
    ),
    "missing": (without(NORM), UserError, "no array for pre_head_layer_norm/bias"),
    "missing block": (without("Transformer/encoderblock_0/LayerNorm_0/bias"), UserError, "VitBlock_0/attention_norm"),
    "missing heads": (
        without("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"),
        UserError,
        "there is no",
    ),
    "shape": (with_array(NORM, 9), UserError, f"'{NORM}' has shape"),
    "twice": (with_array("pos_embedding", 1, 10, 8), UserError, "two arrays for position_embedding"),
    "no square": (with_array("Transformer/posembed_input/pos_embedding", 1, 12, 8), UserError, "form no square"),
    "whole numbers": (with_array(NORM, 8, dtype=np.int32), RunError, "int32; expected float32"),
    "complex numbers": (with_array(NORM, 8, dtype=np.complex64), RunError, "complex64"),
    "empty": (with_array(NORM, 0), RunError, "of shape (0,)"),
    "many blocks": (with_array("Transformer/encoderblock/LayerNorm_0/bias", 1500, 8), UserError, "two arrays"),
    "far block": (with_array("Transformer/encoderblock_5000/LayerNorm_0/bias", 8), UserError, "3 blocks"),
    "no axes": (with_array("embedding/kernel"), UserError, "has shape ()"),
    "no axes of a head": (with_array("head/kernel"), UserError, "has shape ()"),
    "no network": (lambda arrays: {"a": np.zeros(3)}, UserError, "its first array is 'a'"),
    "nothing": (lambda arrays: {}, UserError, "its first array is 'none'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_one_line_that_names_it(what, tmp_path):
    change, kind, words = WRONG[what]
    with pytest.raises(kind, match=re.escape(words)) as caught:
        written(tmp_path / "a.npz", change(official.vit()))
    assert "\n" not in str(caught.value) and str(tmp_path / "a.npz") in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_when_they_are_read(value, tmp_path):
    arrays = official.vit()
    arrays["head/bias"] = np.array([0, value, 0], np.float32)
    pretrained = written(tmp_path / "a.npz", arrays)
    with pytest.raises(RunError, match="'head/bias' holds numbers that are not finite"):
        _ = pretrained.variables


def test_only_the_headers_are_read_until_the_variables_are_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(np, "load", lambda *args, **kwargs: pytest.fail("the arrays were read"))
    pretrained = written(tmp_path / "a.npz", official.mixer())
    assert pretrained.header["stem/kernel"] == ((4, 4, 3, 8), "float32")


def test_another_family_than_the_file_s_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", **official.mixer())
    for network in ("vit", "vit_base_patch16_224", "gmlp"):
        with pytest.raises(UserError, match="holds the weights of mlp_mixer, not of"):
            read_pretrained(tmp_path / "a.npz", network)
    assert read_pretrained(tmp_path / "a.npz", "mixer_b16_224").network == "mlp_mixer"
