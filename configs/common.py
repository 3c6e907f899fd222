"""What the configurations share. Every key, its default and its meaning: patchnets/config.py, or --help."""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from patchnets.config import default_config
from patchnets.errors import UserError


def base(**values) -> ConfigDict:
    """All keys at their defaults, except those given; a dict is a group: `dataset=dict(name="cifar10")`."""
    return default_config(**values)


def choose(argument: str | None, choices: Mapping[str, Callable[[], ConfigDict]]) -> ConfigDict:
    """The configuration that `--config=FILE:ARGUMENT` asks for; without an argument the first."""
    if not argument:
        return next(iter(choices.values()))()
    if argument not in choices:
        raise UserError(f"the configuration has no variant {argument!r}; known: {', '.join(choices)}")
    return choices[argument]()


def digits(**values) -> ConfigDict:
    """scikit-learn's digits, for a small network of any paper: 60 epochs of AdamW on moved and zoomed images."""
    return base(
        dataset=dict(name="digits"),
        image_size=8,
        augment=dict(shift=0.1, zoom=0.1),
        batch_size=64,
        total_epochs=60.0,
        eval_every_epochs=5.0,
        optimizer=dict(learning_rate=3e-3, weight_decay=0.05, clip_norm=1.0),
        schedule=dict(name="cosine", warmup_epochs=5.0),
        **values,
    )


def keras_adamw(learning_rate: float) -> dict:
    """AdamW as Keras has it by default: epsilon 1e-7, and here a decay of 1e-4 that takes every weight, whatever it is.

    Keras adds epsilon before it corrects the running mean of squares for its start at zero, optax afterwards.
    """
    return dict(learning_rate=learning_rate, weight_decay=1e-4, decay="all", epsilon=1e-7)


def keras_mlp(dataset: str, learning_rate: float, model: dict) -> ConfigDict:
    """The recipe of the Keras example "image classification with modern MLP models".

    Resized from 32 to 64 pixels, mirrored, zoomed by up to a fifth, batches of 128, AdamW at a constant rate that is
    halved after 5 validations without a lower loss; at most 50 epochs, ended after 10 without; the last tenth of the
    training images for validation, whose loss chooses the weights.
    """
    return base(
        dataset=dict(name=dataset),
        image_size=64,
        normalize="dataset",
        augment=dict(flip=True, zoom=0.2),
        model=model,
        batch_size=128,
        total_epochs=50.0,
        optimizer=keras_adamw(learning_rate),
        schedule=dict(name="constant", plateau_factor=0.5, plateau_patience=5),
        stop_patience=10,
        checkpoint=dict(best="loss"),
    )


def keras_vit(dataset: str, model: dict) -> ConfigDict:
    """The recipe of the Keras example "image classification with Vision Transformer".

    Resized from 32 to 72 pixels, mirrored, turned by up to 0.02 of a turn, zoomed by up to a fifth, batches of 256,
    AdamW at a constant 1e-3, 10 epochs; the last tenth of the training images for validation, whose accuracy chooses
    the weights.
    """
    return base(
        dataset=dict(name=dataset),
        image_size=72,
        normalize="dataset",
        augment=dict(flip=True, rotation=0.02, zoom=0.2),
        model=model,
        batch_size=256,
        total_epochs=10.0,
        optimizer=keras_adamw(1e-3),
        schedule=dict(name="constant"),
    )


def keras_convmixer(dataset: str, model: dict) -> ConfigDict:
    """The recipe of the Keras example "image classification with ConvMixer".

    Pixels divided by 255, mirrored (its random crop is as large as the image), batches of 128, AdamW at a constant
    1e-3, 10 epochs; the first 5,000 training images for validation, whose accuracy chooses the weights.
    """
    return base(
        dataset=dict(name=dataset, train_split="train[5000:]", val_split="train[:5000]"),
        image_size=32,
        normalize="unit",
        augment=dict(flip=True),
        model=model,
        batch_size=128,
        total_epochs=10.0,
        optimizer=keras_adamw(1e-3),
        schedule=dict(name="constant"),
    )


def on_digits(config: ConfigDict, **model) -> ConfigDict:
    """A tutorial's recipe on scikit-learn's digits: 8 pixels, a smaller network, and nothing mirrored or turned, for a
    mirrored digit is another one or none."""
    config.update(
        dataset=dict(name="digits", train_split=None, val_split=None),
        image_size=8,
        augment=dict(flip=False, rotation=0.0),
        model=dict(variant=None, **model),
    )
    return config


def imagenet(**values) -> ConfigDict:
    """ImageNet-1k at 224 pixels in bfloat16, mirrored.

    The last 1% of train is for validation, and ImageNet's validation images are the test split.
    """
    return base(
        dataset=dict(name="imagenet2012", train_split="train[:99%]", val_split="train[99%:]", test_split="validation"),
        image_size=224,
        augment=dict(flip=True),
        log_every_steps=100,
        **values,
    )
