"""Convert stored images to model inputs on the device: resize, augment, normalize.

Stored levels of 16 bits become fractions of those from 0 to 255, which every operation takes; tables of policies round
them to whole levels, as they do those of resized images.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt

from patchnets.augment import color, geometry, policies, random_erasing
from patchnets.augment import mixup as mixing
from patchnets.errors import UserError

# Channel means and standard deviations of ImageNet's training images, in [0, 1] (as torchvision documents them).
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Folded into the key of a batch by stages that make their own example keys; far from any position in a batch.
JITTER, GRAYSCALE, POLICY = (2**31 - 1 - i for i in range(3))


def option(default: Any, meaning: str, **limits: Any) -> Any:
    """Return a dataclass field with its meaning and its `choices`, or bounds: at_least, above, at_most, below."""
    return dataclasses.field(default=default, metadata=dict(meaning=meaning, limits=limits))


@dataclasses.dataclass(frozen=True)
class Augment:
    """Augmentation of training images, the group `augment` of a configuration. The defaults do nothing.

    Mixing (which also changes targets) and random erasing are not part of `Preprocess`: the training step applies them,
    in this order as in timm, to a batch of preprocessed images.
    """

    flip: bool = option(False, "mirror half of the training images left to right")
    flip_vertical: bool = option(False, "mirror half of the training images top to bottom")
    crop_padding: int = option(
        0, "zero-pad the stored image by this many pixels, and crop to its size at random", at_least=0
    )
    crop_share: float = option(
        1.0,
        "share of the side kept by a crop at random positions: 6/7 is 384 of 448 pixels; 1 disables it",
        above=0,
        at_most=1,
    )
    crop_scale_min: float = option(
        1.0, "least share of the area of a random resized crop; 1 disables it", above=0, at_most=1
    )
    crop_ratio_max: float = option(4 / 3, "greatest aspect ratio of such a crop, in either direction", at_least=1)
    zoom: float = option(
        0.0, "zoom training images in and out by up to this factor, as Keras RandomZoom", at_least=0, below=1
    )
    rotation: float = option(
        0.0, "rotate training images by up to this share of a full turn, in either direction", at_least=0, below=1
    )
    shear: float = option(0.0, "shear training images along each axis by up to this slope", at_least=0, below=1)
    translate: float = option(0.0, "translate training images by up to this share of their size", at_least=0, below=1)
    brightness: float = option(0.0, "scale brightness by a factor from 1 - this to 1 + this", at_least=0, at_most=1)
    contrast: float = option(0.0, "the same for contrast", at_least=0, at_most=1)
    saturation: float = option(0.0, "the same for saturation", at_least=0, at_most=1)
    hue: float = option(0.0, "rotate hues by up to this share of the color circle", at_least=0, at_most=0.5)
    grayscale: float = option(0.0, "probability of converting to gray", at_least=0, at_most=1)
    policy: str = option(
        "none",
        "none, randaugment, autoaugment_cifar10, autoaugment_imagenet, trivialaugment (gray images keep their colors)",
        choices=("none", "randaugment", "autoaugment_cifar10", "autoaugment_imagenet", "trivialaugment"),
    )
    randaugment_num_ops: int = option(2, "randaugment: operations per image", at_least=1, at_most=100)
    magnitude: float = option(
        9.0, "randaugment: strength; the strongest is 10 for timm and 30 for torchvision", at_least=0, at_most=30
    )
    magnitude_std: float = option(0.0, "randaugment: standard deviation of the strength", at_least=0)
    randaugment_variant: str = option(
        "timm",
        "randaugment: operations and ranges of timm (-inc1), torchvision (magnitudes to 30) or tensorflow",
        choices=tuple(policies.RAND_AUGMENT),
    )
    randaugment_prob: float = option(1.0, "randaugment: probability of each operation", at_least=0, at_most=1)
    random_erasing_prob: float = option(0.0, "probability of erasing a rectangle", at_least=0, at_most=1)
    random_erasing_mode: str = option(
        "constant",
        "what an erased rectangle is filled with: constant (the mean), random (one color) or pixel (noise)",
        choices=random_erasing.MODES,
    )
    mixup: float = option(0.0, "mixup: alpha of the Beta distribution of the mixing weight; 0 for none", at_least=0)
    cutmix: float = option(0.0, "CutMix: the same", at_least=0)
    mix_switch_prob: float = option(0.5, "probability of CutMix if mixup and CutMix are both on", at_least=0, at_most=1)
    mix_prob: float = option(1.0, "probability that a batch, or an example, is mixed at all", at_least=0, at_most=1)
    mix_mode: str = option("batch", "mixing weights are sampled per batch or per example", choices=mixing.MODES)

    def __bool__(self) -> bool:
        """Whether `Preprocess` changes images at all."""
        moves = (self.crop_padding, self.zoom, self.rotation, self.shear, self.translate)
        changes = (self.brightness, self.contrast, self.saturation, self.hue, self.grayscale)
        flips = self.flip or self.flip_vertical
        crops = min(self.crop_share, self.crop_scale_min) < 1
        return flips or crops or self.policy != "none" or max(moves + changes) > 0


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Convert a batch of stored images to float32 inputs of `image_size` pixels a side: (image - mean) / std.

    Attributes:
      image_size: side of the result in pixels.
      mean, std: per channel, on the scale 0 to 255.
      augment: augmentation of training images.
      crop_pct: share of the side of evaluation images kept by the center crop.
      cropped: images are already cropped and resized; `crop_scale_min` and `crop_pct` are not applied again.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment = Augment()
    crop_pct: float = 1.0
    cropped: bool = False

    def __call__(
        self, images: UInt[Array, "batch height width channels"], key: Array | None = None
    ) -> Float[Array, "batch size size channels"]:
        """Preprocess a batch: with augmentation from `key`, or for evaluation if `key` is None."""
        if key is None:
            return self.normalize(self.resize(images, self.crop_pct))
        if not self.augment:
            return self.normalize(self.resize(images))
        x = self.apply_geometry(images, geometry.example_keys(key, images.shape[0]))
        return self.normalize(self.apply_color(x, key))

    def normalize(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        """Normalize levels from 0 to 255 to model inputs."""
        mean, std = jnp.array(self.mean, jnp.float32), jnp.array(self.std, jnp.float32)
        return (x - mean) * (1 / std)

    def resize(
        self, images: UInt[Array, "batch height width channels"], crop: float = 1.0
    ) -> Float[Array, "batch size size channels"]:
        """Center-crop a share `crop` of the sides and resize it to `image_size`; levels are not normalized."""
        x = _levels(images)
        height, width = x.shape[1:3]
        if self.cropped or (crop == 1.0 and (height, width) == (self.image_size, self.image_size)):
            return x
        return geometry.resample(x, *geometry.center_crop_matrices(height, width, self.image_size, crop))

    def apply_geometry(
        self, images: UInt[Array, "batch height width channels"], keys: Array
    ) -> Float[Array, "batch size size channels"]:
        """Crop and resize; then rotate and shear; then flip, zoom and translate."""
        augment, size = self.augment, self.image_size
        x = _levels(images)
        height, width = x.shape[1:3]
        steps = []
        if augment.crop_padding > 0:
            steps.append(geometry.crop_matrices(keys, height, width, augment.crop_padding))
        if augment.crop_scale_min < 1 and not self.cropped:
            area, aspect = augment.crop_scale_min, augment.crop_ratio_max
            steps.append(geometry.resized_crop_matrices(keys, height, width, size, area=area, aspect=aspect))
        elif augment.crop_share < 1:
            steps.append(geometry.share_crop_matrices(keys, height, width, size, augment.crop_share))
        elif (height, width) != (size, size) and not self.cropped:
            steps.append(geometry.center_crop_matrices(height, width, size))
        if augment.rotation > 0 or augment.shear > 0:
            x = geometry.resample_all(x, steps)
            x = geometry.warp(x, geometry.affine_matrices(keys, rotation=augment.rotation, shear=augment.shear))
            steps = []
        fused = augment.zoom > 0 or augment.translate > 0  # a flip is then free
        if fused:
            zoomed = geometry.augment_matrices(
                keys, size, size, flip=augment.flip, zoom=augment.zoom, shift=augment.translate
            )
            steps.append(zoomed)
        x = geometry.resample_all(x, steps)
        if augment.flip and not fused:
            x = geometry.flip(x, geometry.sample_flip(keys))
        if augment.flip_vertical:
            x = geometry.flip_vertically(x, geometry.sample_flip(keys, geometry.FLIP_VERTICAL))
        return x

    def apply_color(
        self, x: Float[Array, "batch size size channels"], key: Array
    ) -> Float[Array, "batch size size channels"]:
        """Apply color operations, then the policy, which may also move pixels; on levels from 0 to 255."""
        augment = self.augment
        jitter = {name: getattr(augment, name) for name in ("brightness", "contrast", "saturation", "hue")}
        if max(jitter.values()) > 0:
            x = color.color_jitter(jax.random.fold_in(key, JITTER), x, **jitter)
        if augment.grayscale > 0:
            x = color.grayscale(jax.random.fold_in(key, GRAYSCALE), x, probability=augment.grayscale)
        policy_key = jax.random.fold_in(key, POLICY)
        if augment.policy == "randaugment":
            return policies.rand_augment(
                policy_key,
                x,
                num_ops=augment.randaugment_num_ops,
                magnitude=augment.magnitude,
                magnitude_std=augment.magnitude_std,
                probability=augment.randaugment_prob,
                variant=augment.randaugment_variant,
            )
        if augment.policy == "trivialaugment":
            return policies.trivial_augment(policy_key, x)
        if augment.policy != "none":
            return policies.auto_augment(policy_key, x, policy=augment.policy.removeprefix("autoaugment_"))
        return x


def _levels(images: UInt[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
    """Return stored images as levels from 0 to 255."""
    levels = images.astype(jnp.float32)
    return levels / 257 if images.dtype == jnp.uint16 else levels


def check_channels(augment: Augment, channels: int, normalize: str = "unit") -> None:
    """Raise UserError for color operations on gray images, and on others for what takes only gray or RGB."""
    if channels not in (1, 3):
        colors = ("contrast", "saturation", "hue", "grayscale")
        names = [f"augment.{name}={getattr(augment, name)}" for name in colors if getattr(augment, name) > 0]
        names += [f"augment.policy={augment.policy}"] if augment.policy != "none" else []
        names += [f"normalize={normalize}"] if normalize == "imagenet" else []
        if names:
            raise UserError(
                f"config.{names[0]} is for gray or RGB images, and these have {channels} channels; change it"
            )
    for name in ("saturation", "hue", "grayscale"):
        value = getattr(augment, name)
        if channels == 1 and value > 0:
            raise UserError(
                f"config.augment.{name}={value} changes colors, but the images of this data set are gray; set it to 0"
            )


def normalization(
    name: str, images: UInt[np.ndarray, "examples h w channels"], skipped: int = 0
) -> tuple[tuple[float, ...], ...]:
    """Return (mean, std) per channel on the scale 0 to 255; "dataset" computes them exactly from `images`, of which
    `skipped` are black in place of some that could not be read, and do not count."""
    channels = images.shape[-1]
    if name == "imagenet" and channels == 3:
        return tuple(255 * m for m in IMAGENET_MEAN), tuple(255 * s for s in IMAGENET_STD)
    if name == "imagenet":  # gray: the luminance of the three
        weights = np.array([0.299, 0.587, 0.114])
        return (float(255 * weights @ IMAGENET_MEAN),), (float(255 * weights @ IMAGENET_STD),)
    if name == "unit":
        return (0.0,) * channels, (255.0,) * channels
    if name == "symmetric":
        return (127.5,) * channels, (127.5,) * channels
    if name != "dataset":
        raise UserError(f"config.normalize={name} is unknown; use symmetric, unit, imagenet or dataset")
    largest = int(np.iinfo(images.dtype).max)
    levels = np.arange(largest + 1) * (255 / largest)
    means, stds = [], []
    for c in range(channels):
        parts = np.array_split(images, 64)
        counts = np.sum([np.bincount(part[..., c].ravel(), minlength=largest + 1) for part in parts], axis=0)
        counts[0] -= skipped * images.shape[1] * images.shape[2]
        mean = float((counts * levels).sum() / counts.sum())
        variance = float((counts * (levels - mean) ** 2).sum() / counts.sum())
        means.append(mean)
        stds.append(max(variance, 1e-6) ** 0.5)
    return tuple(means), tuple(stds)
