"""The tutorials' networks against the same built with Keras: sizes, logits, statistics, gradients, initial weights."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from keras_models import BUILD, keras

from patchnets import models

# As published: trainable parameters, and running statistics.
PUBLISHED = {
    "keras_mixer": (242_788, 0),
    "keras_fnet": (621_924, 0),
    "keras_gmlp": (885_348, 0),
    "keras_vit": (21_759_012, 0),
    "keras_convmixer": (594_186, 8_704),
    "blog_mixer_keras": (1_226_890, 0),
}
ROLES = {
    "kernel": ("params", "kernel"),
    "bias": ("params", "bias"),
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}
PROJECTIONS = {"query": "query", "key": "key", "value": "value", "attention_output": "out"}
ATTENTION_KERNELS = [f"{name}_kernel" for name in PROJECTIONS.values()]
COLLECTIONS = ("params", "batch_stats")
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling for a single call
LOGITS = 1e-5  # tolerance, of logits about 1


def directory(variable):
    """Where our network has this weight of Keras's: (collection, module, ..., name)."""
    layer, *inside, role = variable.path.split("/")
    path = tuple(layer.split("."))
    if path == ("position_embedding",):
        return ("params", *path)
    collection, name = ROLES[role]
    if inside:  # a projection within MultiHeadAttention
        name = f"{PROJECTIONS[inside[0]]}_{name}"
    return (collection, *path, name)


def in_our_shapes(values, shapes):
    """{place: array} of Keras in our shapes. Only leading axes may be laid together or taken apart."""
    assert values.keys() == shapes.keys()
    assert all(value.shape[-1] == shapes[path][-1] for path, value in values.items())
    return {path: np.reshape(value, shapes[path]) for path, value in values.items()}


def draw(path, shape, generator):
    """Random values of which none is zero or one, and which keep the scale of what goes through."""
    name = path[-1]
    if name == "var":
        return generator.uniform(0.5, 2.0, shape)
    noise = generator.standard_normal(shape)
    if name.endswith("kernel"):
        inputs = shape[0] if name in ATTENTION_KERNELS[:3] else math.prod(shape[:-1])
        return noise / math.sqrt(inputs)
    return 0.3 * noise + (name == "scale")


@pytest.fixture(scope="module", params=BUILD)
def pair(request):
    """Both networks, their weights as they start, and random ones: {place: array}, in our shapes."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    theirs = BUILD[request.param]()
    start = {directory(variable): np.asarray(variable.value) for variable in theirs.weights}
    assert len(start) == len(theirs.weights)
    images = np.random.default_rng(1).standard_normal((2, *theirs.input_shape[1:])).astype(np.float32)

    kind, variants = models.MODELS[request.param]
    (sizes,) = variants.values()
    ours = kind(num_classes=theirs.output_shape[-1], **sizes)
    fresh = jax.jit(lambda key: ours.init(key, images, train=False), compiler_options=QUICKLY)(jax.random.key(0))
    fresh = traverse_util.flatten_dict({name: fresh[name] for name in COLLECTIONS if name in fresh})
    shapes = {path: value.shape for path, value in fresh.items()}

    generator = np.random.default_rng(2)
    values = {path: draw(path, value.shape, generator).astype(np.float32) for path, value in start.items()}
    if not theirs.non_trainable_variables:  # no BatchNorm, but LayerNorms: with little going in, the epsilon shows
        for path in values:
            values[path] *= 0.03 if path[1] in ("stem", "position_embedding") else 1
    return SimpleNamespace(
        name=request.param,
        theirs=theirs,
        ours=ours,
        images=images,
        shapes=shapes,
        their_start=in_our_shapes(start, shapes),
        our_start=fresh,
        variables=traverse_util.unflatten_dict(in_our_shapes(values, shapes)),
        # The same as Keras takes them.
        trainable=[values[directory(variable)] for variable in theirs.trainable_variables],
        statistics=[values[directory(variable)] for variable in theirs.non_trainable_variables],
    )


def test_both_have_the_published_number_of_parameters(pair):
    groups = (pair.theirs.trainable_variables, pair.theirs.non_trainable_variables)
    counts = [sum(math.prod(variable.shape) for variable in group) for group in groups]
    actual = [sum(math.prod(shape) for path, shape in pair.shapes.items() if path[0] == name) for name in COLLECTIONS]
    assert tuple(actual) == tuple(counts) == PUBLISHED[pair.name]


def test_logits_are_those_of_keras(pair):
    call = jax.jit(lambda trainable, statistics: pair.theirs.stateless_call(trainable, statistics, pair.images)[0])
    expected = call(pair.trainable, pair.statistics)
    actual = jax.jit(lambda variables: pair.ours.apply(variables, pair.images, train=False))(pair.variables)
    assert actual.shape == (2, pair.theirs.output_shape[-1])
    assert 0.2 < np.std(expected) < 5  # so that the tolerance means something,
    assert np.abs(expected[0] - expected[1]).max() > 0.1  # and the images count
    np.testing.assert_allclose(actual, expected, atol=LOGITS)


# One LayerNorm used twice; and BatchNorm in training, after convolutions whose backward pass is written by hand.
@pytest.mark.parametrize("pair", ["keras_mixer", "keras_convmixer"], indirect=True)
def test_gradients_are_those_of_keras(pair):
    train = pair.name == "keras_convmixer"  # which draws nothing at random
    labels = jnp.arange(2)

    def loss(logits):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def their_loss(trainable):
        return loss(pair.theirs.stateless_call(trainable, pair.statistics, pair.images, training=train)[0])

    def our_loss(params):
        variables = pair.variables | {"params": params}
        return loss(pair.ours.apply(variables, pair.images, train=train, mutable=["batch_stats"])[0])

    their_grads = jax.jit(jax.grad(their_loss), compiler_options=QUICKLY)(pair.trainable)
    expected = {directory(variable): grad for variable, grad in zip(pair.theirs.trainable_variables, their_grads)}
    expected = in_our_shapes(expected, {path: shape for path, shape in pair.shapes.items() if path[0] == "params"})
    actual = jax.jit(jax.grad(our_loss), compiler_options=QUICKLY)(pair.variables["params"])
    actual = traverse_util.flatten_dict({"params": actual})
    for path, grad in expected.items():
        largest = np.abs(grad).max()
        assert largest > 1e-6, path
        np.testing.assert_allclose(actual[path], grad, atol=1e-4 * largest, rtol=0, err_msg=str(path))


@pytest.mark.parametrize("pair", ["keras_convmixer"], indirect=True)
def test_a_training_step_normalizes_and_moves_the_statistics_as_keras_does(pair):
    call = lambda *values: pair.theirs.stateless_call(*values, pair.images, training=True)
    expected, moved = jax.jit(call)(pair.trainable, pair.statistics)
    apply = jax.jit(lambda variables: pair.ours.apply(variables, pair.images, train=True, mutable=["batch_stats"]))
    actual, state = apply(pair.variables)
    np.testing.assert_allclose(actual, expected, atol=LOGITS)
    before, after = (
        traverse_util.flatten_dict({"batch_stats": stats})
        for stats in (pair.variables["batch_stats"], state["batch_stats"])
    )
    moved = {directory(variable): value for variable, value in zip(pair.theirs.non_trainable_variables, moved)}
    assert moved.keys() == after.keys()
    for path, value in moved.items():
        change = value - before[path]
        assert np.abs(change).max() > 3e-3, path
        np.testing.assert_allclose(after[path] - before[path], change, atol=2e-6, rtol=1e-4, err_msg=str(path))


def test_weights_start_as_those_of_keras(pair):
    wrong = {}
    for path, expected in pair.their_start.items():
        actual = np.asarray(pair.our_start[path])
        if path[-1] in ATTENTION_KERNELS:
            # Up to Keras 3.14, and so when the tutorial was published, fans were counted in these as in any kernel of
            # three axes, as if it were a convolution. Later attention layers do not; the initializer alone still does.
            expected = np.asarray(keras.initializers.GlorotUniform(seed=3)(actual.shape))
        if np.ptp(expected) == 0:  # a bias, a scale or a statistic
            np.testing.assert_array_equal(actual, expected, err_msg=str(path))
            continue
        deviations, limits = (np.std(actual), np.std(expected)), (np.abs(actual).max(), np.abs(expected).max())
        if any(abs(ours / theirs - 1) > 0.03 for ours, theirs in (deviations, limits)):
            wrong["/".join(path)] = f"deviations {deviations}, limits {limits}, of ours and of Keras"
    assert not wrong
