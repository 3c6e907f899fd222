"""Costs of networks against published figures and counts by hand, and the table of models."""

import pytest

from patchnets import models
from patchnets.models.__main__ import main
from patchnets.models.convmixer import ConvMixer
from patchnets.models.flops import cost
from patchnets.models.fnet import Fnet
from patchnets.models.gmlp import Gmlp
from patchnets.models.mlp_mixer import MlpMixer
from patchnets.models.published_sizes import PUBLISHED
from patchnets.models.vit import VisionTransformer

EVERY = [(name, variant) for name, (_, variants) in models.MODELS.items() for variant in variants]
# No vision FNet is published, and no paper has these combinations of size and patch.
OWN = {("fnet", variant) for variant in models.MODELS["fnet"][1]} | {
    ("vit", variant) for variant in ("Ti/14", "Ti/32", "S/14", "B/14", "L/14", "H/16", "H/32")
}


def test_every_variant_has_a_row_and_every_row_a_variant():
    assert set(PUBLISHED) == set(EVERY)
    assert {key for key, row in PUBLISHED.items() if row.params is None} == OWN


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_costs_are_the_published_ones(name, variant):
    network, variants = models.MODELS[name]
    row = PUBLISHED[name, variant]
    actual = cost(network(num_classes=row.num_classes, **variants[variant]), row.image_size)
    if row.params is not None:
        assert actual.params == row.params
    if row.gmacs is not None:
        assert actual.macs / 1e9 == pytest.approx(row.gmacs, rel=0.02)


@pytest.mark.parametrize("variant", ["Ti/14", "Ti/32", "S/14", "B/14", "L/14", "H/16", "H/32"])
def test_unpublished_sizes_of_vit_have_the_parameters_of_its_definition(variant):
    size, patch = variant.split("/")
    width, mlp, depth = {
        "Ti": (192, 768, 12),
        "S": (384, 1536, 12),
        "B": (768, 3072, 12),
        "L": (1024, 4096, 24),
        "H": (1280, 5120, 32),
    }[size]
    tokens = (224 // int(patch)) ** 2 + 1
    block = 4 * (width * width + width) + 2 * width * mlp + mlp + width + 4 * width  # attention, MLP, two norms
    stem = 3 * int(patch) ** 2 * width + width + tokens * width + width  # patches, places, class token
    expected = stem + depth * block + 2 * width + width * 1000 + 1000
    assert cost(VisionTransformer(1000, **models.MODELS["vit"][1][variant]), 224).params == expected


def test_multiply_accumulates_are_those_counted_by_hand():
    """3 x 4 patches of 2 x 2 pixels, width 8, two blocks, five classes."""
    common = dict(num_classes=5, patch_size=2, depth=2, hidden_dim=8)
    stem, head, n, c = 12 * 12 * 8, 8 * 5, 12, 8

    mixer = MlpMixer(**common, tokens_mlp_dim=3, channels_mlp_dim=7)
    assert cost(mixer, (6, 8)).macs == stem + head + 2 * (2 * c * n * 3 + 2 * n * c * 7)

    gmlp = Gmlp(**common, ffn_dim=6)
    assert cost(gmlp, (6, 8)).macs == stem + head + 2 * (n * c * 6 + n * n * 3 + n * 3 * c)

    vit = VisionTransformer(**common, mlp_dim=7, num_heads=2)
    t = n + 1  # the class token
    assert cost(vit, (6, 8)).macs == stem + head + 2 * (4 * t * c * c + 2 * t * t * c + 2 * t * c * 7)

    convmixer = ConvMixer(**common, kernel_size=3)
    assert cost(convmixer, (6, 8)).macs == stem + head + 2 * (9 * n * c + n * c * c)
    assert cost(convmixer, (6, 8)).batch_stats == 2 * 8 * 5

    fourier = 2.5 * n * c * 6.5849625  # n log2 n of 96 numbers
    fnet = Fnet(**common, mlp_dim=7)
    assert cost(fnet, (6, 8)).macs == pytest.approx(stem + head + 2 * (fourier + 2 * n * c * 7), abs=2)


def test_costs_do_not_hang_on_how_the_network_is_computed():
    common = dict(num_classes=5, patch_size=2, depth=3, hidden_dim=8)
    plain = cost(ConvMixer(**common, kernel_size=3, depthwise_impl="conv"), 8)
    assert cost(ConvMixer(**common, kernel_size=3, depthwise_impl="shifts", scan=True, remat=True), 8) == plain
    assert cost(Fnet(**common, mlp_dim=7, fourier_impl="matrix"), 8) == cost(
        Fnet(**common, mlp_dim=7, fourier_impl="fft"), 8
    )


def test_tokens_are_patches_and_the_class_token():
    common = dict(num_classes=5, patch_size=2, depth=1, hidden_dim=8)
    assert cost(VisionTransformer(**common, mlp_dim=7, num_heads=2), (6, 8)).tokens == 13
    assert cost(VisionTransformer(**common, mlp_dim=7, num_heads=2, pool_type="gap"), (6, 8)).tokens == 12
    assert cost(ConvMixer(**common, kernel_size=3), (6, 8)).tokens == 12


def test_the_table_shows_published_figures_beside_ours(capsys):
    assert main(["models", "gmlp", "keras_vit"]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line.split() for line in lines if line.startswith("gmlp") and "S/16" in line)
    assert row[:8] == ["gmlp", "S/16", "224", "1,000", "196", "19,422,656", "19,422,656", "0"]
    assert float(row[8]) == pytest.approx(4.42, rel=0.02) and row[9] == "4.42" and row[10].endswith("%")
    assert any(line.startswith("keras_vit") and "21,759,012" in line for line in lines)
    assert not any(line.startswith("mlp_mixer") for line in lines)


def test_an_unknown_model_is_refused_with_the_known_ones(capsys):
    assert main(["models", "resnet"]) == 2
    out, err = capsys.readouterr()
    assert not out and "'resnet'" in err and all(name in err for name in models.MODELS) and err.count("\n") == 1
