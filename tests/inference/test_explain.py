"""Maps of what a prediction rests on, against NumPy, finite differences and networks of which the answer is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patchnets.errors import RunError, UserError
from patchnets.inference import explain
from patchnets.inference.model import Model
from patchnets.models.intermediates import capture_intermediates
from patchnets.run.model_spec import ModelSpec
from patchnets.step.train_state import init_variables

SMALL = {
    "mlp_mixer": dict(patch_size=2, depth=2, hidden_dim=8, tokens_mlp_dim=8, channels_mlp_dim=16),
    "vit": dict(patch_size=2, depth=3, hidden_dim=8, mlp_dim=16, num_heads=2),
    "convmixer": dict(patch_size=2, depth=2, hidden_dim=8, kernel_size=3),
    "gmlp": dict(patch_size=2, depth=2, hidden_dim=8, ffn_dim=16),
    "fnet": dict(patch_size=2, depth=2, hidden_dim=8, mlp_dim=16),
    "keras_vit": dict(
        patch_size=4, depth=2, hidden_dim=8, num_heads=2, mlp_dim=8, dropout_rate=0.0, head_dropout_rate=0.0
    ),
}
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)


def model_of(name, classes=("a", "b", "c"), channels=3, size=8, **fields):
    """A network with random parameters, its head's included."""
    spec = ModelSpec(
        network=name,
        fields={"remat": False, "scan": False, "dtype": "float32"} | SMALL[name] | fields,
        classes=tuple(classes),
        loss="softmax",
        channels=channels,
        decoded_size=size,
        decoded_crop_pct=1.0,
        image_size=size,
        crop_pct=1.0,
        mean=(127.5,) * channels,
        std=(127.5,) * channels,
    )
    variables = init_variables(spec.create_model(), jax.random.key(0), image_size=size, channels=channels)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape).astype(np.float32), variables["params"])
    return Model(spec, {**variables, "params": params})


def numpy_rollout(attention):
    """Abnar and Zuidema, section 3.2: by a loop over blocks, examples and output tokens."""
    batch, _, tokens, _ = attention[0].shape
    joint = np.tile(np.eye(tokens), (batch, 1, 1))
    for weights in attention:
        following = np.zeros_like(joint)
        for example in range(batch):
            mean = np.mean(weights[example], axis=0)
            for i in range(tokens):
                following[example, i] = 0.5 * joint[example, i] + 0.5 * sum(
                    mean[i, j] * joint[example, j] for j in range(tokens)
                )
        joint = following
    return joint


def test_rollout_is_the_product_over_blocks_of_attention_and_identity():
    rng = np.random.default_rng(2)
    attention = [rng.dirichlet(np.ones(5), (2, 3, 5)).astype(np.float32) for _ in range(3)]
    actual = explain.attention_rollout(attention)
    np.testing.assert_allclose(actual, numpy_rollout(attention), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(actual).sum(-1), 1.0, rtol=1e-5)


def unit(grid):
    low, high = grid.min((1, 2), keepdims=True), grid.max((1, 2), keepdims=True)
    return (grid - low) / (high - low)


@pytest.mark.slow
@pytest.mark.parametrize("pool_type", ["cls", "gap", "map"])
def test_rollout_of_a_vit_ends_where_its_head_begins(pool_type):
    """With patches of one pixel, so that nothing is enlarged."""
    model = model_of("vit", size=4, patch_size=1, pool_type=pool_type)
    images = PIXELS[:, :4, :4]
    observed = capture_intermediates(model.network, model.variables, model.spec.preprocess(images))
    joint = numpy_rollout([np.asarray(observed[f"block_{i}/mixing"]) for i in range(3)])
    if pool_type == "cls":
        expected = joint[:, 0, 1:]
    elif pool_type == "gap":
        expected = joint.mean(axis=1)
    else:
        expected = np.einsum("bt,bts->bs", np.asarray(observed["pooling"]).mean(axis=1)[:, 0], joint)
    actual = model.explain_decoded(images, np.zeros(3, np.int32), "rollout")
    np.testing.assert_allclose(actual, unit(expected.reshape(3, 4, 4)), rtol=1e-3, atol=1e-4)


@functools.cache
def attending_vit():
    """A ViT made by hand: its class token attends to the patch that is not black, in the only head of the only block.

    A patch is embedded as its brightness in one channel; LayerNorm makes that the same for any brightness but none.
    The class token's query, like every other's, is a constant, and keys are what is embedded.
    """
    model = model_of(
        "vit", size=32, patch_size=4, depth=1, hidden_dim=4, mlp_dim=4, num_heads=1, posemb="none", channels=1
    )
    params = jax.tree.map(np.zeros_like, model.variables["params"])
    block = params["VitBlock_0"]
    params["stem"]["kernel"][..., 0] = 1 / 16
    params["stem"]["bias"][0] = 1.0  # black is -1 after normalization
    block["attention_norm"]["scale"][:] = 1.0
    block["attention"]["key"]["kernel"][:, 0] = np.eye(4)
    block["attention"]["query"]["bias"][0, 0] = 10.0
    model.variables["params"] = params
    return model


@pytest.mark.slow
@pytest.mark.parametrize("patch", [(0, 0), (3, 6), (7, 2)])
def test_rollout_points_at_the_patch_that_is_attended_to(patch):
    row, column = patch
    image = np.zeros((32, 32), np.uint8)
    image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 60
    heat = attending_vit().explain(image)
    assert heat.shape == (32, 32) and heat.min() == 0 and heat.max() == 1
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert (y // 4, x // 4) == patch
    away = np.hypot(*np.mgrid[:32, :32] - np.array([4 * row + 1.5, 4 * column + 1.5])[:, None, None])
    assert heat[away > 8].max() < 0.05


def scores(images):
    """Logits that know one thing: how bright the left upper corner is, and, twice, the right lower one."""
    left = (jax.nn.relu(images[:, :2, :2]) ** 2).sum((1, 2, 3))
    right = (jax.nn.relu(images[:, 4:, 4:]) ** 3).sum((1, 2, 3))
    return jnp.stack([left, right], axis=1)


@pytest.mark.slow
def test_smoothgrad_points_at_the_pixels_that_a_class_depends_on():
    images = np.random.default_rng(0).uniform(0.2, 1, (2, 8, 8, 3)).astype(np.float32)
    grads = explain.smoothgrad(scores, images, jnp.array([0, 1]), jax.random.key(0))
    heat = np.asarray(explain.to_unit_range(jnp.abs(grads).sum(-1)))
    assert heat[0, 2:].max() == heat[0, :, 2:].max() == 0 < heat[0, :2, :2].min()
    assert heat[1, :4].max() == heat[1, :, :4].max() == 0 < heat[1, 4:, 4:].min()


def test_smoothgrad_is_the_gradient_of_the_expected_logit_under_noise():
    """Of relu(x)^2 that is, in closed form, 2 E[relu(x + s n)] = 2 (x Phi(x/s) + s phi(x/s))."""
    from scipy import stats

    image = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 8, 8, 1)
    spread = 0.3 * 2  # a share of the range
    grads = explain.smoothgrad(
        lambda x: (jax.nn.relu(x) ** 2).sum((1, 2, 3))[:, None],
        image,
        jnp.array([0]),
        jax.random.key(1),
        samples=4000,
        noise=0.3,
    )
    expected = 2 * (image * stats.norm.cdf(image / spread) + spread * stats.norm.pdf(image / spread))
    np.testing.assert_allclose(grads, expected, atol=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_without_noise_it_is_the_gradient_by_finite_differences(name):
    model = model_of(name, channels=1)
    inputs = np.asarray(model.spec.preprocess(PIXELS[:1, ..., :1]))
    logits = jax.jit(lambda x: model.network.apply(model.variables, x, train=False))
    actual = explain.smoothgrad(logits, inputs, jnp.array([1]), jax.random.key(0), samples=2, noise=0.0)
    step = 2e-3  # at 1e-2 a LayerNorm of gMLP is not linear any more
    moved = np.concatenate([inputs + sign * step * np.eye(64).reshape(64, 8, 8, 1) for sign in (1, -1)])
    plus, minus = np.split(np.asarray(logits(moved.astype(np.float32)))[:, 1], 2)
    expected = (plus - minus) / (2 * step)
    np.testing.assert_allclose(np.ravel(actual), expected, rtol=0.02, atol=0.02 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_family_is_explained_and_alike_in_any_batch(name):
    model = model_of(name)
    methods = ["smoothgrad", "rollout"] if "vit" in name else ["smoothgrad"]
    for method in methods:
        maps = model.explain_decoded(PIXELS, np.array([0, 2, 1]), method)
        assert maps.shape == (3, 8, 8) and np.isfinite(maps).all()
        np.testing.assert_allclose([maps.min(), maps.max()], [0, 1], atol=1e-6)
        alone = model.explain(PIXELS[1], 2 if method == "smoothgrad" else None, method)
        np.testing.assert_allclose(alone, maps[1], atol=1e-3)
        np.testing.assert_array_equal(model.explain_decoded(PIXELS, np.array([0, 2, 1]), method), maps)


@pytest.mark.slow
def test_the_class_is_the_most_probable_one_or_the_one_that_is_named():
    model = model_of("mlp_mixer")
    first = int(model.logits(PIXELS[0]).argmax())
    np.testing.assert_array_equal(model.explain(PIXELS[0]), model.explain(PIXELS[0], first))
    other = (first + 1) % 3
    heat = model.explain(PIXELS[0], "abc"[other])
    np.testing.assert_array_equal(heat, model.explain(PIXELS[0], other))
    assert np.abs(heat - model.explain(PIXELS[0])).max() > 0.01


@pytest.mark.slow
def test_what_cannot_be_explained_is_said(tmp_path):
    model = model_of("mlp_mixer")
    for arguments, words in [
        (("d",), "there is no class 'd'; known: a, b, c"),
        ((3,), "there is no class 3"),
        ((None, "gradcam"), "there is no method 'gradcam'; known: auto, rollout, smoothgrad"),
        ((None, "rollout"), "mlp_mixer has no attention to roll out; use smoothgrad"),
        ((0, "rollout"), "attention rollout is the same for every class"),
    ]:
        with pytest.raises(UserError) as error:
            model.explain(PIXELS[0], *arguments)
        assert words in str(error.value)
    with pytest.raises(RunError, match=r"gone\.png cannot be decoded"):
        model.explain(tmp_path / "gone.png")


def test_maps_span_zero_to_one():
    maps = np.stack([np.arange(200.0).reshape(10, 20), np.full((10, 20), 3.0), np.eye(10, 20) * 0])
    maps[2, 4, 4] = 7.0
    unit_maps = np.asarray(explain.to_unit_range(maps, 99.0))
    np.testing.assert_allclose(unit_maps[0], np.clip(maps[0] / np.percentile(maps[0], 99), 0, 1), rtol=1e-6)
    assert (unit_maps[1] == 0).all() and unit_maps[2, 4, 4] == 1 and unit_maps[2].sum() == 1
