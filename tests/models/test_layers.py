"""The shared layers against flax's convolution, binomial statistics, and themselves on one device and on eight."""

import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from patchnets import prng
from patchnets.models.gmlp import Gmlp
from patchnets.models.layers import GELU, DenseOverPatches, Dropout, DropPath, MlpBlock, PatchEmbed, dropout_mask
from patchnets.models.mlp_mixer import MlpMixer
from patchnets.models.vit import VisionTransformer

SIDE = 1000
MILLION = (SIDE, SIDE)


def million(key: jax.Array, keep: float) -> np.ndarray:
    return np.asarray(jax.jit(lambda k: dropout_mask(k, keep, MILLION))(key))


@pytest.fixture(scope="module")
def masks() -> list[np.ndarray]:
    """The masks of six consecutive steps of a run, with keep = 0.7, as numbers of mean 0 and deviation 1."""
    draw = jax.jit(lambda k: dropout_mask(k, 0.7, MILLION))
    drawn = [np.asarray(draw(prng.key(7, prng.RngStream.DROPOUT, step))) for step in range(6)]
    return [(mask - 0.7) / math.sqrt(0.7 * 0.3) for mask in drawn]


def test_patch_embedding_equals_a_convolution_whose_stride_is_its_kernel():
    images = np.random.default_rng(0).standard_normal((3, 6, 8, 3)).astype(np.float32)
    kernel = np.random.default_rng(1).standard_normal((2, 4, 3, 5)).astype(np.float32)
    bias = np.arange(5, dtype=np.float32)
    params = {"params": {"kernel": kernel, "bias": bias}}
    actual = PatchEmbed(5, (2, 4)).apply(params, images)
    expected = nn.Conv(5, (2, 4), strides=(2, 4), padding="VALID").apply(params, images)
    assert actual.shape == (3, 6, 5) and expected.shape == (3, 3, 2, 5)
    np.testing.assert_allclose(actual, np.asarray(expected).reshape(3, 6, 5), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 9, 8, 1), (1, 8, 9, 1)])
def test_patch_embedding_refuses_an_image_that_does_not_divide_and_names_both_sizes(shape):
    with pytest.raises(ValueError, match=rf"{shape[1]} x {shape[2]}.*4 x 4"):
        PatchEmbed(2, (4, 4)).init(jax.random.key(0), jnp.zeros(shape))


def test_gelu_forms_are_the_exact_one_and_its_tanh_approximation():
    x = np.linspace(-4, 4, 41)
    exact = [v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x]
    tanh = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x]
    assert set(GELU) == {"exact", "tanh"}
    np.testing.assert_allclose(GELU["exact"](x.astype(np.float32)), exact, atol=1e-6)
    np.testing.assert_allclose(GELU["tanh"](x.astype(np.float32)), tanh, atol=1e-6)
    assert np.abs(np.subtract(exact, tanh)).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", "gpu"])  # each with its own form of the product
def test_a_dense_layer_over_patches_is_one_over_the_last_axis_with_the_axes_exchanged(platform, monkeypatch):
    x = np.random.default_rng(0).standard_normal((3, 5, 7)).astype(np.float32)
    plain, over = nn.Dense(4), DenseOverPatches(4)
    params = plain.init(jax.random.key(0), x.swapaxes(1, 2))
    params = jax.tree.map(lambda p: p + 0.5, params)
    assert jax.tree.map(jnp.shape, over.init(jax.random.key(0), x)) == jax.tree.map(jnp.shape, params)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)

    def loss(layer, exchange):
        return lambda params, x: (jnp.sin(exchange(layer.apply(params, exchange(x)))) ** 2).sum()

    actual = jax.value_and_grad(loss(over, lambda x: x), argnums=(0, 1))(params, x)
    expected = jax.value_and_grad(loss(plain, lambda x: x.swapaxes(1, 2)), argnums=(0, 1))(params, x)
    assert over.apply(params, x).shape == (3, 4, 7)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected)


def test_mlp_drops_hidden_units_and_outputs_independently():
    """A hidden layer of ones and an averaging output make every outcome countable."""
    hidden, rate, rows, columns = 4, 0.25, 5000, 3
    params = {
        "Dense_0": {"kernel": np.zeros((columns, hidden), np.float32), "bias": np.full(hidden, 30.0, np.float32)},
        "Dense_1": {"kernel": np.full((hidden, columns), 1 / 30, np.float32), "bias": np.zeros(columns, np.float32)},
    }
    block = MlpBlock(hidden, dropout_rate=rate)
    x = jnp.zeros((rows, columns))
    y = np.asarray(block.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(2)}))
    # Each output is 0, or (hidden units kept) / 0.75 / 0.75; the hidden units are shared by a row, the rest is not.
    kept = np.round(y * (1 - rate) ** 2).astype(int)
    np.testing.assert_allclose(kept / (1 - rate) ** 2, y, atol=1e-5)
    assert abs(y.mean() - hidden) < 0.05
    units = kept.max(axis=1)
    assert ((kept == 0) | (kept == units[:, None])).all()
    for k in range(1, hidden + 1):  # k hidden units are kept, and one output at least
        share = math.comb(hidden, k) * (1 - rate) ** k * rate ** (hidden - k) * (1 - rate**columns)
        assert abs((units == k).mean() - share) < 5 * math.sqrt(share * (1 - share) / rows), f"{k} hidden units"
    zeros = (kept == 0).mean()
    assert abs(zeros - (rate + (1 - rate) * rate**hidden)) < 5 * math.sqrt(rate * (1 - rate) / (rows * columns))
    np.testing.assert_allclose(block.apply({"params": params}, x, train=False), hidden, atol=1e-5)


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.999])
def test_dropout_mask_keeps_the_asked_share_overall_and_in_every_row_and_column(keep):
    mask = million(jax.random.key(11), keep)
    assert mask.dtype == bool and mask.shape == MILLION
    deviation = math.sqrt(keep * (1 - keep))
    assert abs(mask.mean() - keep) < 5 * deviation / SIDE
    for axis in (0, 1):
        share = mask.mean(axis=axis)
        assert np.abs(share - keep).max() < 6 * deviation / math.sqrt(SIDE)
        # Neither more nor less spread out than a binomial is: a chi-square of 1000 degrees of freedom, 5 deviations.
        spread = ((share - keep) ** 2).sum() * SIDE / deviation**2
        assert abs(spread - SIDE) < 5 * math.sqrt(2 * SIDE)


def test_dropout_mask_keeps_all_with_keep_1():
    assert million(jax.random.key(0), 1.0).mean() > 1 - 1e-5


def shifted_products(first: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The mean of one[i] * other[i + lag], around the end, for every lag."""
    return np.fft.irfft(np.fft.rfft(first).conj() * np.fft.rfft(other), first.size) / first.size


def exchanged_products(first: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The mean of one[i] * other[i ^ lag], the exclusive or, for every lag: a product of Walsh-Hadamard transforms."""

    def transform(x: np.ndarray) -> np.ndarray:
        for _ in range(x.size.bit_length() - 1):
            x = np.concatenate([x[::2] + x[1::2], x[::2] - x[1::2]])
        return x

    return transform(transform(first) * transform(other)) / first.size**2


def test_dropout_masks_of_different_keys_are_independent_however_one_is_moved_against_the_other(masks):
    """The index enters by an exclusive or with the key: keys must not merely move one and the same mask about."""
    for first, other in itertools.combinations(masks, 2):
        assert abs((first * other).mean()) < 5 / SIDE
    size = 2**19
    for first, other in [(masks[0], masks[1]), (masks[2], masks[5])]:
        first, other = first.ravel()[:size], other.ravel()[:size]
        for products in (shifted_products(first, other), exchanged_products(first, other)):
            assert np.abs(products).max() < 6.5 / math.sqrt(size)  # the largest of half a million: about 5


def test_elements_of_a_dropout_mask_are_uncorrelated_at_every_distance(masks):
    size = 2**19
    flat = masks[0].ravel()[:size]
    # An exclusive or meets every pair twice, so that its mean is over half as many.
    for products, pairs in [(shifted_products(flat, flat), size), (exchanged_products(flat, flat), size // 2)]:
        assert abs(products[0] - 1) < 0.02 and np.abs(products[1:]).max() < 6.5 / math.sqrt(pairs)
        assert np.abs(products[1:65]).max() < 5 / math.sqrt(pairs)  # the nearest neighbors


def test_dropout_mask_is_the_same_on_one_device_and_on_eight(mesh1, mesh8):
    def draw(mesh):
        split = NamedSharding(mesh, PartitionSpec("data"))
        made = jax.jit(lambda k: dropout_mask(k, 0.6, (16, 5, 3)), out_shardings=split)(jax.random.key(4))
        assert len(made.addressable_shards) == mesh.size
        return np.asarray(made)

    np.testing.assert_array_equal(draw(mesh1), draw(mesh8))
    assert 0.4 < draw(mesh8).mean() < 0.8


def test_dropout_mask_of_an_example_does_not_depend_on_how_many_follow_it():
    key = jax.random.key(6)
    np.testing.assert_array_equal(dropout_mask(key, 0.5, (6, 5, 7)), dropout_mask(key, 0.5, (8, 5, 7))[:6])


def test_dropout_preserves_the_mean_and_does_nothing_in_evaluation_or_without_a_rate():
    x = np.full((500, 400), 2.0, np.float32)
    y = np.asarray(Dropout(0.2).apply({}, x, train=True, rngs={"dropout": jax.random.key(1)}))
    assert set(np.unique(y)) == {np.float32(0.0), np.float32(2.0) / np.float32(0.8)}
    assert abs(y.mean() - 2.0) < 5 * 2.0 * math.sqrt(0.2 / 0.8 / x.size)
    np.testing.assert_array_equal(Dropout(0.2).apply({}, x, train=False), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, train=True), x)


def test_stochastic_depth_drops_whole_examples_and_preserves_the_mean():
    examples = 20_000
    x = np.random.default_rng(3).uniform(1, 2, (examples, 2, 3)).astype(np.float32)
    y = np.asarray(DropPath().apply({}, x, 0.3, train=True, rngs={"dropout": jax.random.key(9)}))
    kept = (y != 0).reshape(examples, -1)
    assert (kept.all(axis=1) == kept.any(axis=1)).all()
    np.testing.assert_allclose(y[kept[:, 0]], x[kept[:, 0]] / 0.7, rtol=1e-6)
    assert abs(kept[:, 0].mean() - 0.7) < 5 * math.sqrt(0.3 * 0.7 / examples)
    assert abs(y.mean() / x.mean() - 1) < 5 * math.sqrt(0.3 / 0.7 / examples)


@pytest.mark.parametrize("scale_by_keep", [True, False])
def test_what_stochastic_depth_keeps_is_scaled_or_not(scale_by_keep):
    """timm's rule, and that of the Mixer authors, whose branches are added as they are."""
    x = np.random.default_rng(3).uniform(1, 2, (200, 3)).astype(np.float32)
    drop = DropPath(scale_by_keep)
    y = np.asarray(drop.apply({}, x, 0.3, train=True, rngs={"dropout": jax.random.key(9)}))
    mask = (y != 0).any(axis=1, keepdims=True)  # which examples are kept, the test above holds against the rate
    assert 0 < mask.mean() < 1
    np.testing.assert_allclose(y, mask * x / (0.7 if scale_by_keep else 1.0), rtol=1e-6)
    np.testing.assert_array_equal(drop.apply({}, x, 0.3, train=False), x)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        MlpMixer(2, patch_size=2, depth=1, hidden_dim=4, tokens_mlp_dim=3, channels_mlp_dim=5, drop_path_rate=0.5),
        VisionTransformer(2, patch_size=2, depth=1, hidden_dim=4, mlp_dim=5, num_heads=1, drop_path_rate=0.5),
        Gmlp(2, patch_size=2, depth=1, hidden_dim=4, ffn_dim=6, survival_probability=0.5),
    ],
    ids=lambda model: type(model).__name__,
)
def test_every_network_with_stochastic_depth_may_leave_its_branches_as_they_are(model):
    """With one block whose rate is half, examples that keep all branches give the logits of evaluation."""
    model = model.clone(drop_path_schedule="constant", drop_path_scale_by_keep=False)
    images = np.random.default_rng(0).standard_normal((64, 4, 4, 3)).astype(np.float32)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(1), images[:1])
    rng = np.random.default_rng(2)
    variables = jax.tree.map(lambda p: p + rng.standard_normal(p.shape).astype(np.float32), variables)
    expected = jax.jit(functools.partial(model.apply, train=False))(variables, images)

    def kept(model):
        apply = jax.jit(functools.partial(model.apply, train=True))
        logits = apply(variables, images, rngs={"dropout": jax.random.key(3)})
        return np.isclose(logits, expected, rtol=1e-3, atol=1e-4).all(axis=1)

    assert 0 < kept(model).mean() < 1
    assert not kept(model.clone(drop_path_scale_by_keep=True)).any()


def test_stochastic_depth_does_nothing_in_evaluation_or_without_a_rate():
    x = np.random.default_rng(4).standard_normal((50, 2)).astype(np.float32)
    np.testing.assert_array_equal(DropPath().apply({}, x, 0.9, train=False), x)
    np.testing.assert_array_equal(DropPath().apply({}, x, None, train=True), x)


def test_two_uses_of_one_stochastic_depth_drop_independently():
    """A block calls the same one for both of its branches."""

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            drop = DropPath()
            return drop(x, 0.5, train=True), drop(x, 0.5, train=True)

    first, other = Twice().apply({}, jnp.ones((10_000, 1)), rngs={"dropout": jax.random.key(8)})
    first, other = np.asarray(first).ravel() - 1, np.asarray(other).ravel() - 1  # -1 or 1
    assert abs((first * other).mean()) < 5 / math.sqrt(first.size)
