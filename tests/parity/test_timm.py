"""Our networks with timm's weights give timm's logits: MLP-Mixer, gMLP, ConvMixer and ViT, in float32.

All weights, running statistics included, are random. timm 1.0.31 and PyTorch 2.13 are what this was written against.
"""

import importlib
import json
import sys

import jax
import numpy as np
import pytest

from experiments.benchmark.without_torchvision import stand_in
from patchnets.errors import UserError
from patchnets.models import convmixer, fnet, gmlp, mlp_mixer, vit
from patchnets.weights import files, load_timm, timm_folder
from patchnets.weights.load_timm import from_timm
from patchnets.weights.pretrained import read_pretrained

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file
with stand_in():
    timm = pytest.importorskip("timm")

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")  # PyTorch's

CLOSE = dict(rtol=1e-5, atol=1e-5)  # what is found is below 3e-6
CLASSES = 10
SMALL_VIT = dict(img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=3, num_classes=CLASSES)


def randomized(network, spread=1.0):
    """All of a network's weights at random, of a size that keeps activations near `spread`."""
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value.fill_(7)
        elif name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        else:
            noise = torch.randn(value.shape, generator=generator)
            gains = value.ndim == 1 and name.endswith(("weight", "gamma"))
            fan_in = value[0].numel() if value.ndim > 1 and name.endswith("weight") else 1
            value.copy_(1 + 0.3 * noise if gains else noise * (0.3 if value.ndim == 1 else spread * fan_in**-0.5))
    return network.eval()


def small_mixer(**fields):
    """timm's Mixer and ours, smaller than any published."""
    network = timm.models.MlpMixer(CLASSES, 16, patch_size=4, num_blocks=3, embed_dim=24)
    size = dict(
        num_classes=CLASSES, patch_size=4, depth=3, hidden_dim=24, tokens_mlp_dim=12, channels_mlp_dim=96, gelu="exact"
    )
    ours = mlp_mixer.MlpMixer(**size | fields)
    return randomized(network), ours, 16


def small_vit(timms, **fields):
    network = timm.models.VisionTransformer(**SMALL_VIT | timms)
    size = dict(num_classes=CLASSES, patch_size=4, depth=3, hidden_dim=24, mlp_dim=96, num_heads=3, gelu="exact")
    ours = vit.VisionTransformer(**size | fields)
    return randomized(network), ours, 16


def small_convmixer(kernel_size=8, activation="gelu", **fields):
    relu = dict(act_layer=torch.nn.ReLU) if activation == "relu" else {}
    network = timm.models.ConvMixer(24, 3, kernel_size=kernel_size, patch_size=4, num_classes=CLASSES, **relu)
    size = dict(
        num_classes=CLASSES, patch_size=4, depth=3, hidden_dim=24, kernel_size=kernel_size, activation=activation
    )
    return randomized(network), convmixer.ConvMixer(**size | fields), 40


def small_gmlp(**fields):
    blocks = dict(block_layer=timm.models.mlp_mixer.SpatialGatingBlock, mlp_layer=timm.layers.GatedMlp)
    network = timm.models.MlpMixer(CLASSES, 16, patch_size=4, num_blocks=3, embed_dim=24, mlp_ratio=4, **blocks)
    ours = gmlp.Gmlp(**dict(num_classes=CLASSES, patch_size=4, depth=3, hidden_dim=24, ffn_dim=96) | fields)
    return randomized(network), ours, 16


def published(name, kind, variants, variant, **fields):
    """A network of timm's by its name, and ours by the name of its variant, at 224 px."""
    network = timm.create_model(name, num_classes=CLASSES)
    return randomized(network), kind(num_classes=CLASSES, **variants[variant] | fields), 224


def wide_convmixer():
    """ConvMixer-768/32 with 2 of its 32 blocks, and fewer pixels."""
    network = timm.models.ConvMixer(768, 2, kernel_size=7, patch_size=7, act_layer=torch.nn.ReLU, num_classes=CLASSES)
    fields = convmixer.VARIANTS["768/32"] | dict(depth=2)
    return randomized(network), convmixer.ConvMixer(num_classes=CLASSES, **fields), 112


SMALL = {
    "mixer": small_mixer,
    "gmlp": small_gmlp,
    "convmixer": small_convmixer,
    "vit": lambda **f: small_vit({}, **f),
}


MEAN = dict(global_pool="avg", class_token=False)
PAIRS = {
    "mixer_s32_224": lambda: published("mixer_s32_224", mlp_mixer.MlpMixer, mlp_mixer.VARIANTS, "S/32", gelu="exact"),
    "gmlp_ti16_224": lambda: published("gmlp_ti16_224", gmlp.Gmlp, gmlp.VARIANTS, "Ti/16"),
    "vit_tiny_patch16_224": lambda: published(
        "vit_tiny_patch16_224", vit.VisionTransformer, vit.VARIANTS, "Ti/16", gelu="exact"
    ),
    "convmixer_768_32, 2 blocks": wide_convmixer,
    "mixer": small_mixer,
    "gmlp": small_gmlp,
    "convmixer, kernel 8, gelu": small_convmixer,
    "convmixer, kernel 5, relu": lambda: small_convmixer(5, "relu"),
    "vit, mean then norm": lambda: small_vit(MEAN, pool_type="gap", norm_after_pooling=True),
    "vit, norm then mean": lambda: small_vit(MEAN | dict(fc_norm=False), pool_type="gap"),
    "vit, layer scale": lambda: small_vit(dict(init_values=0.1), layer_scale=1e-4),
    "vit, attention pooling": lambda: small_vit(dict(global_pool="map", class_token=False), pool_type="map"),
    "vit, no positions": lambda: small_vit(
        dict(pos_embed="none", **MEAN, fc_norm=False), pool_type="gap", posemb="none"
    ),
    "vit, one color": lambda: small_vit(dict(in_chans=1)),
}


def logits_of_both(network, ours, size, variables=None):
    channels = network.in_chans
    images = np.random.default_rng(0).standard_normal((2, size, size, channels)).astype(np.float32)
    with torch.inference_mode():
        theirs = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    variables = from_timm(ours, network.state_dict()) if variables is None else variables
    actual = jax.jit(lambda v, x: ours.apply(v, x, train=False))(variables, images)
    return np.asarray(actual), theirs


@pytest.mark.parametrize("name", PAIRS)
def test_logits_are_those_of_timm(name):
    network, ours, size = PAIRS[name]()
    actual, theirs = logits_of_both(network, ours, size)
    assert actual.dtype == np.float32
    assert 0.1 < theirs.std() < 10  # or agreement would say little
    np.testing.assert_allclose(actual, theirs, **CLOSE)


def settings(network, ours, name, size):
    """The config.json of a network as timm writes it, with the arguments that its entry point does not have."""
    args = dict(num_heads=ours.num_heads) if name.startswith("vit") else {}
    args |= dict(act_layer="relu") if getattr(ours, "activation", "") == "relu" else {}
    args |= dict(pos_embed="none") if getattr(ours, "posemb", "") == "none" else {}
    cfg = dict(input_size=[network.in_chans, size, size], mean=[0.5], std=[0.5], crop_pct=0.9, interpolation="bicubic")
    return dict(
        architecture=name if name.endswith("224") else "",
        model_args={} if name.endswith("224") else args | dict(act_layer=args.get("act_layer", "gelu")),
        global_pool=network.global_pool if name.startswith("vit") else "avg",
        pretrained_cfg=cfg,
        label_names=[f"class {i}" for i in range(CLASSES)],
    )


@pytest.mark.parametrize("name", PAIRS)
def test_a_folder_of_timm_s_gives_its_logits(name, tmp_path):
    network, ours, size = PAIRS[name]()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(settings(network, ours, name, size)))
    pretrained = read_pretrained(tmp_path)
    actual, theirs = logits_of_both(network, pretrained.spec.create_model(), size, pretrained.variables)
    np.testing.assert_allclose(actual, theirs, **CLOSE)
    assert (pretrained.image_size, pretrained.channels) == (size, network.in_chans)
    assert pretrained.assumed == () and pretrained.classes[1] == "class 1"


@pytest.mark.parametrize(
    "name", ["mixer_s32_224", "gmlp_ti16_224", "vit_tiny_patch16_224", "convmixer, kernel 8, gelu"]
)
def test_a_bare_file_of_timm_s_gives_its_logits(name, tmp_path):
    network, _, size = PAIRS[name]()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    pretrained = read_pretrained(tmp_path / "weights.safetensors")
    actual, theirs = logits_of_both(network, pretrained.spec.create_model(), size, pretrained.variables)
    np.testing.assert_allclose(actual, theirs, **CLOSE)
    assert any("numbers as class names" in line for line in pretrained.assumed)


@pytest.mark.parametrize(
    "args", [dict(num_classes=0), dict(no_embed_class=True), dict(num_classes=0, global_pool="avg", class_token=False)]
)
def test_features_and_positions_without_a_class_token_s_are_timm_s(args, tmp_path):
    network = randomized(timm.models.VisionTransformer(**SMALL_VIT | args))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(dict(model_args=dict(num_heads=3))))
    pretrained = read_pretrained(tmp_path)
    actual, theirs = logits_of_both(network, pretrained.spec.create_model(), 16, pretrained.variables)
    assert actual.shape == (2, 24 if "num_classes" in args else CLASSES)
    np.testing.assert_allclose(actual, theirs, **CLOSE)


@pytest.mark.parametrize(
    "args",
    [dict(global_pool="avg"), dict(reg_tokens=2), dict(pre_norm=True), dict(qk_norm=True), dict(qkv_bias=False)],
)
def test_networks_of_timm_s_that_none_of_ours_equals_are_one_line(args, tmp_path):
    save_file(timm.models.VisionTransformer(**SMALL_VIT | args).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(dict(model_args=dict(num_heads=3))))
    with pytest.raises(UserError, match=r"reg_token|norm_pre|[qk]_norm|qkv\.bias|cls_token") as caught:
        read_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


VITS = [
    *("vit_tiny_patch16_224", "vit_small_patch32_224", "vit_large_patch14_224", "vit_huge_patch14_224"),
    *("vit_giant_patch14_224", "vit_base_patch16_gap_224", "vit_base_patch8_224", "vit_small_patch14_dinov2"),
    *("vit_base_patch16_siglip_224", "vit_base_patch32_siglip_256", "vit_large_patch16_siglip_512", "test_vit"),
    *("vit_so400m_patch14_siglip_224", "vit_so400m_patch16_siglip_256", "deit3_medium_patch16_224"),
]


@pytest.mark.parametrize("name", VITS)
def test_heads_and_gelu_of_architectures_are_those_that_timm_builds(name, tmp_path, monkeypatch):
    with torch.device("meta"):
        network = timm.create_model(name)
    header = {key: (tuple(value.shape), "float32") for key, value in network.state_dict().items()}
    monkeypatch.setattr(files, "read_header", lambda *args, **kwargs: header)
    fields = timm_folder.read(tmp_path, dict(architecture=name), source=name).fields
    assert fields["num_heads"] == network.blocks[0].attn.num_heads
    assert fields["gelu"] == ("exact" if type(network.blocks[0].mlp.act) is torch.nn.GELU else "tanh")


@pytest.mark.parametrize("name", SMALL)
def test_only_the_exact_form_of_gelu_agrees(name):
    network, ours, size = SMALL[name]()
    randomized(network, spread=1.5)  # the two forms differ most at 2.3 and at -2.3
    actual, theirs = logits_of_both(network, ours, size)
    np.testing.assert_allclose(actual, theirs, **CLOSE)
    actual, _ = logits_of_both(network, ours.clone(gelu="tanh"), size)
    assert np.abs(actual - theirs).max() > 1e-4


@pytest.mark.parametrize("name", [name for name in PAIRS if not name.endswith("224")])
def test_the_variables_are_the_model_s_own_and_float32(name):
    network, ours, size = PAIRS[name]()
    actual = from_timm(ours, {name: value.double() for name, value in network.state_dict().items()})
    image = jax.ShapeDtypeStruct((1, size, size, network.in_chans), np.float32)
    expected = jax.eval_shape(lambda x: ours.init(jax.random.key(0), x, train=False), image)
    assert jax.tree.structure(actual) == jax.tree.structure(dict(expected))
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(actual)] == [
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(expected)
    ]
    timms = sum(value.numel() for name, value in network.state_dict().items() if not name.endswith("tracked"))
    assert sum(leaf.size for leaf in jax.tree.leaves(actual)) == timms


def test_batch_norm_in_training_is_pytorch_s_but_for_the_unbiased_running_variance():
    network, ours, _ = small_convmixer()
    before = from_timm(ours, network.state_dict())
    images = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)  # 32 places in all
    network.train()
    with torch.no_grad():
        theirs = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    step = jax.jit(lambda v, x: ours.apply(v, x, train=True, mutable=["batch_stats"]))
    actual, after = step(before, images)
    np.testing.assert_allclose(actual, theirs, **CLOSE)

    expected = from_timm(ours, network.state_dict())["batch_stats"]
    leaves = [jax.tree_util.tree_leaves_with_path(tree["batch_stats"]) for tree in (before, after)]
    assert len(leaves[0]) == 2 * (1 + 2 * 3)
    for (path, start), (_, stat), (_, torchs) in zip(*leaves, jax.tree_util.tree_leaves_with_path(expected)):
        # Both keep 9/10 of the old value. PyTorch adds the variance over n - 1 where Flax adds that over n.
        ours_of_batch, theirs_of_batch = stat - 0.9 * start, torchs - 0.9 * start
        if path[-1].key == "var":
            assert np.abs(ours_of_batch / theirs_of_batch - 1).min() > 0.02
            theirs_of_batch = theirs_of_batch * (31 / 32)
        np.testing.assert_allclose(ours_of_batch, theirs_of_batch, rtol=1e-3, atol=1e-5)


def test_a_representation_layer_as_timm_used_to_have_it():
    network, ours, _ = small_vit(dict(num_classes=0), rep_size=7)
    dense, head = torch.nn.Linear(24, 7), torch.nn.Linear(7, CLASSES)
    parts = {"pre_logits.fc": dense, "head": head}
    weights = network.state_dict() | {f"{n}.{k}": v for n, p in parts.items() for k, v in p.state_dict().items()}
    full = torch.nn.Sequential(network, dense, torch.nn.Tanh(), head)
    full.in_chans = 3
    actual, theirs = logits_of_both(full, ours, 16, from_timm(ours, weights))
    np.testing.assert_allclose(actual, theirs, **CLOSE)


@pytest.mark.parametrize("name", SMALL)
def test_scanned_blocks_give_the_same_logits(name):
    network, ours, size = SMALL[name](scan=True)
    variables = from_timm(ours, network.state_dict())
    assert any(kind.endswith("Blocks") for kind in variables["params"])
    actual, theirs = logits_of_both(network, ours, size, variables)
    np.testing.assert_allclose(actual, theirs, **CLOSE)


def test_arrays_do_without_pytorch_and_share_no_memory(monkeypatch):
    network, ours, _ = small_convmixer()
    expected = from_timm(ours, network.state_dict())
    arrays = {name: value.numpy().copy() for name, value in network.state_dict().items()}
    monkeypatch.setitem(sys.modules, "torch", None)  # any import of it fails from here on
    actual = importlib.reload(load_timm).from_timm(ours, arrays)
    for value in arrays.values():
        value.fill(0)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def without(name):
    return lambda entries: {key: value for key, value in entries.items() if key != name}


def with_entry(name, *shape):
    return lambda entries: entries | {name: np.zeros(shape, np.float32)}


NO_CHANGE = lambda entries: entries
VIT = lambda **fields: small_vit({}, **fields)
MEAN_WITH_TOKEN = lambda: small_vit(dict(global_pool="avg"), pool_type="gap", norm_after_pooling=True)
MAP_FOR_CLS = lambda: small_vit(dict(global_pool="map"), pool_type="cls")
# what is wrong: (the two networks, what is done to the state dict, what the message has to say)
WRONG = {
    "missing": (small_mixer, without("blocks.1.norm2.bias"), ["'blocks.1.norm2.bias'", "(24,)", "LayerNorm_1/bias"]),
    "missing statistics": (small_convmixer, without("stem.2.running_var"), ["'stem.2.running_var'", "(24,)"]),
    "missing head": (VIT, without("head.weight"), ["'head.weight'", "(10, 24)"]),
    "missing qkv": (VIT, without("blocks.2.attn.qkv.bias"), ["'blocks.2.attn.qkv.bias'", "(72,)"]),
    "extra": (VIT, with_entry("reg_token", 1, 4, 24), ["'reg_token'", "(1, 4, 24)", "no parameter"]),
    "wrapped": (VIT, lambda entries: {"state_dict": np.zeros(0)}, ["'state_dict'", "inner"]),
    "prefixed": (VIT, lambda entries: {f"module.{n}": v for n, v in entries.items()}, ["'module.", "without any"]),
    "unreadable": (VIT, lambda entries: entries | {"cls_token": {}}, ["'cls_token'", "not an array"]),
    "bfloat16": (
        VIT,
        lambda entries: entries | {"cls_token": torch.zeros(1, 1, 24, dtype=torch.bfloat16)},
        ["'cls_token'", "BFloat16", "float32"],
    ),
    "classes": (lambda: VIT(num_classes=7), NO_CHANGE, ["10 classes", "num_classes=7"]),
    "depth": (lambda: small_gmlp(depth=4), NO_CHANGE, ["3 blocks", "depth=4"]),
    "patch size": (
        lambda: small_mixer(patch_size=8),
        NO_CHANGE,
        ["'stem.proj.weight'", "(24, 3, 4, 4)", "(24, 3, 8, 8)"],
    ),
    "kernel": (
        lambda: small_convmixer(8),
        with_entry("blocks.0.0.fn.0.weight", 24, 1, 5, 5),
        ["kernel_size=8", "5, 5)"],
    ),
    "width": (lambda: small_convmixer(hidden_dim=48), NO_CHANGE, ["(24,)", "(48,)", "hidden_dim=48"]),
    "token units": (
        lambda: small_mixer(tokens_mlp_dim=5),
        NO_CHANGE,
        ["mlp_tokens", "(12,)", "(5,)", "tokens_mlp_dim=5"],
    ),
    "mlp units": (lambda: VIT(mlp_dim=5), NO_CHANGE, ["blocks.0.mlp.fc1", "(96,)", "(5,)", "mlp_dim=5"]),
    "transposed": (
        VIT,
        with_entry("blocks.0.mlp.fc1.weight", 24, 96),
        ["'blocks.0.mlp.fc1.weight'", "(24, 96)", "(96, 24)"],
    ),
    "no square": (VIT, with_entry("pos_embed", 1, 13, 24), ["'pos_embed'", "(1, 13, 24)", "(1, 10, 24)"]),
    "class token": (MEAN_WITH_TOKEN, NO_CHANGE, ["'cls_token'", "no parameter", "pool_type='gap'"]),
    "pooling": (MAP_FOR_CLS, NO_CHANGE, ["'attn_pool.latent'", "no parameter", "pool_type='cls'"]),
    "layer scale": (lambda: VIT(layer_scale=0.1), NO_CHANGE, ["'blocks.0.ls1.gamma'", "layer_scale=0.1"]),
    "order of norm": (lambda: VIT(norm_after_pooling=True), NO_CHANGE, ["'norm.weight'", "norm_after_pooling=True"]),
    "representation": (lambda: VIT(rep_size=7), NO_CHANGE, ["'pre_logits.fc.", "rep_size=7"]),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_told_in_one_line(what):
    make, change, output = WRONG[what]
    network, ours, _ = make()
    with pytest.raises(UserError) as caught:
        load_timm.from_timm(ours, change(network.state_dict()))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300
    assert all(part in message for part in output), message


def test_an_architecture_that_timm_does_not_have_is_refused():
    model = fnet.Fnet(num_classes=3, patch_size=2, depth=1, hidden_dim=8, mlp_dim=8)
    with pytest.raises(UserError, match=r"Fnet; choose one of MlpMixer, Gmlp, ConvMixer, VisionTransformer"):
        from_timm(model, {})
