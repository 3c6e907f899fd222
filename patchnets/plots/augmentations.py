"""Plot augmentation: original images, augmented samples of a configuration, and every operation by itself."""

import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt, UInt8

from patchnets.augment import color, geometry, mixup, policies, random_erasing
from patchnets.augment.preprocess import Preprocess
from patchnets.data import DataOptions, open_dataset, with_measured_ranges
from patchnets.run import console
from patchnets.step.task import make_erase, make_mix

Levels = Float[Array, "batch height width channels"]  # from 0 to 255
Operation = Callable[[Array, Levels], Levels]  # (key, images) -> images

COLUMNS = 2  # of the figure; each holds rows of images
SAMPLES = 4  # rows with the augmentation of the configuration
CLASSES = 10  # of the dummy targets passed to mixup and CutMix


def operations(channels: int, height: int) -> dict[str, Operation]:
    """Return {label: operation of visible strength} for images with this number of channels and this height."""
    geometric: dict[str, Operation] = {
        "flip": geometry.random_flip,
        "flip, vertical": geometry.random_vertical_flip,
        "resize to 1/4 and back": lambda key, images: geometry.resize(
            geometry.resize(images, size=max(1, height // 4)), size=height
        ),
        "center crop 0.75": lambda key, images: geometry.resize(images, size=height, share=0.75),
        "crop, padding 1/8": functools.partial(geometry.random_crop, padding=max(1, height // 8)),
        "crop, share 3/4": functools.partial(geometry.random_share_crop, size=height, share=0.75),
        "resized crop, area 0.25-1": functools.partial(
            geometry.random_resized_crop, size=height, area=0.25, aspect=4 / 3
        ),
        "zoom 0.2": functools.partial(geometry.random_zoom, zoom=0.2),
        "shift 0.2": functools.partial(geometry.random_translation, shift=0.2),
        "rotation 0.1": functools.partial(geometry.random_rotation, rotation=0.1),
        "shear 0.3": functools.partial(geometry.random_shear, shear=0.3),
    }
    colors: dict[str, Operation] = {
        "saturation 0.8": functools.partial(color.saturation, limit=0.8),
        "hue 0.3": functools.partial(color.hue, limit=0.3),
        "grayscale": functools.partial(color.grayscale, probability=1.0),
        "color jitter 0.4": functools.partial(
            color.color_jitter, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1
        ),
    }
    levels: dict[str, Operation] = {
        "brightness 0.5": functools.partial(color.brightness, limit=0.5),
        "contrast 0.8": functools.partial(color.contrast, limit=0.8),
        "sharpness 0.9": functools.partial(color.sharpness, limit=0.9),
        "solarize 128": functools.partial(color.solarize, threshold=128.0, probability=1.0),
        "posterize 2 bits": functools.partial(color.posterize, bits=2, probability=1.0),
        "equalize": functools.partial(color.equalize, probability=1.0),
        "autocontrast": functools.partial(color.autocontrast, probability=1.0),
        "invert": functools.partial(color.invert, probability=1.0),
    }
    policy: dict[str, Operation] = {
        "RandAugment 2, 9": policies.rand_augment,
        "AutoAugment CIFAR-10": functools.partial(policies.auto_augment, policy="cifar10"),
        "AutoAugment ImageNet": functools.partial(policies.auto_augment, policy="imagenet"),
        "TrivialAugment": policies.trivial_augment,
    }
    erasing: dict[str, Operation] = {
        f"erasing, {mode}": functools.partial(_erased, mode=mode) for mode in ("constant", "random", "pixel")
    }
    mixing: dict[str, Operation] = {
        "mixup 1, per example": functools.partial(_mixed, mixup.mixup),
        "CutMix 1, per example": functools.partial(_mixed, mixup.cutmix),
    }
    return geometric | levels | (colors if channels == 3 else {}) | policy | erasing | mixing


def _erased(key: Array, images: Levels, *, mode: str) -> Levels:
    """Apply random erasing, which takes normalized images, to levels."""
    return 127.5 + 64 * random_erasing.random_erasing(key, (images - 127.5) / 64, probability=1.0, mode=mode)


def _mixed(mix: Callable[..., tuple[Array, Array]], key: Array, images: Levels) -> Levels:
    targets = jnp.zeros((images.shape[0], CLASSES), jnp.float32)
    return mix(key, images, targets, alpha=1.0, mode="example")[0]


def training_images(options: DataOptions, count: int) -> UInt[np.ndarray, "count size size channels"]:
    """Return the first images of the training split, in their native size if all have the same, else `image_size`."""
    opened, _ = with_measured_ranges(open_dataset(options, 1))
    (name, low, high), source = opened.parts["train"][0], opened.source
    records = source.records(name)
    size = None if records.native_size() else options.image_size
    return np.stack([image for image, _ in records.examples(range(low, min(high, low + count)), size)])


def sheet(
    options: DataOptions, images: UInt[np.ndarray, "batch height width channels"]
) -> dict[str, UInt8[np.ndarray, "batch size size channels"]]:
    """Return {label: a row of images}: originals, samples with the augmentation of `options`, and every operation."""
    channels, key = images.shape[-1], jax.random.key(options.seed)
    plain = Preprocess(options.image_size, (0.0,) * channels, (1.0,) * channels)
    resized = plain(jnp.asarray(images))
    augmented = augmentation(options)
    rows = {"original": resized}
    rows |= {
        f"this configuration, {i + 1}": augmented(jax.random.fold_in(key, i), jnp.asarray(images))
        for i in range(SAMPLES)
    }
    rows |= {label: jax.jit(run)(key, resized) for label, run in operations(channels, options.image_size).items()}
    return {label: to_bytes(row) for label, row in rows.items()}


def augmentation(options: DataOptions) -> Callable[[Array, Levels], Levels]:
    """Return the function (key, stored images) -> levels of what a training step with these options sees, mixing and
    erasing included."""
    mix, erase = make_mix(options.augment), make_erase(options.augment)

    @jax.jit
    def augmented(key: Array, images: Levels) -> Levels:
        channels = images.shape[-1]
        prepare = Preprocess(options.image_size, (127.5,) * channels, (64.0,) * channels, options.augment)
        x = prepare(images, jax.random.fold_in(key, 0))
        if mix is not None:
            x, _ = mix(jax.random.fold_in(key, 1), x, jnp.zeros((len(images), CLASSES), jnp.float32))
        return 127.5 + 64 * (x if erase is None else erase(jax.random.fold_in(key, 2), x))

    return augmented


def to_bytes(images: Levels) -> UInt8[np.ndarray, "batch height width channels"]:
    """Round levels to bytes."""
    return np.asarray(jnp.clip(jnp.round(images), 0, 255)).astype(np.uint8)


def draw(options: DataOptions, path: pathlib.Path, count: int = 8) -> pathlib.Path:
    """Plot the augmentation of `count` training images, write it to `path` (PNG), and return the path.

    Raises:
      UserError: the data set is missing, or cannot be augmented with these settings.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = sheet(options, training_images(options, count))
    lines = -(-len(rows) // COLUMNS)
    size = (COLUMNS * (0.75 * count + 2.0), 0.8 * lines + 0.6)
    figure, axes = plt.subplots(lines, COLUMNS, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for i, (axis, (label, images)) in enumerate(zip(axes.T.ravel(), rows.items())):
        framed = np.pad(images, ((0, 0), (0, 0), (0, max(1, images.shape[2] // 16)), (0, 0)), constant_values=255)
        strip = np.concatenate(list(framed), axis=1)
        axis.imshow(strip.squeeze(-1) if strip.shape[-1] == 1 else strip, cmap="gray", vmin=0, vmax=255)
        weight = "bold" if i <= SAMPLES else "normal"
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9, weight=weight)
    settings = console.describe_augmentation(options.augment) or "none"
    figure.suptitle(f"{options.name}, {options.image_size} px; this configuration: {settings}", fontsize=9, wrap=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
    return path
