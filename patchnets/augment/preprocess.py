"""Convert stored uint8 images to model inputs on the device: resize, augment, normalize."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from patchnets.augment import color, geometry, policies
from patchnets.errors import UserError

# Channel means and standard deviations of ImageNet's training images, in [0, 1] (as torchvision documents them).
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Folded into the key of a batch by stages that make their own example keys; far from any position in a batch.
JITTER, GRAYSCALE, POLICY = (2**31 - 1 - i for i in range(3))


@dataclasses.dataclass(frozen=True)
class Augment:
    """Augmentation of training images, the group `augment` of a configuration. The defaults do nothing.

    Attributes:
      flip: mirror left to right with probability one half.
      flip_vertical: mirror top to bottom with probability one half.
      crop_padding: zero-pad the stored image by this many pixels, and crop to its size at random.
      crop_scale_min: least share of the area of a random resized crop; 1 disables it.
      crop_ratio_max: greatest aspect ratio of such a crop, in either direction.
      zoom: scale height and width by factors from [1 - zoom, 1 + zoom] about the center; above 1 zooms out.
      rotation: rotate about the center by up to this share of a full turn, in either direction.
      shear: shear along each axis by up to this slope, in either direction.
      translate: translate by up to this share of height and width, in either direction.
      brightness, contrast, saturation: scale by a factor from 1 - this to 1 + this.
      hue: rotate the hue by up to this share of the color circle, in either direction.
      grayscale: probability of converting to gray.
      policy: none, randaugment, autoaugment_cifar10, autoaugment_imagenet or trivialaugment.
      randaugment_num_ops, magnitude, magnitude_std, randaugment_variant, randaugment_prob: settings of
        RandAugment (`policies.rand_augment`).
      mixup, cutmix, mix_switch_prob, mix_prob, mix_mode: settings of `mixup.mix`.
      random_erasing_prob: probability of erasing a rectangle of the normalized image.
      random_erasing_mode: constant, random or pixel (`random_erasing.random_erasing`).

    Mixing (which also changes targets) and random erasing are not part of `Preprocess`: the training step applies them,
    in this order as in timm, to a batch of preprocessed images.
    """

    flip: bool = False
    flip_vertical: bool = False
    crop_padding: int = 0
    crop_scale_min: float = 1.0
    crop_ratio_max: float = 4 / 3
    zoom: float = 0.0
    rotation: float = 0.0
    shear: float = 0.0
    translate: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0
    policy: str = "none"
    randaugment_num_ops: int = 2
    magnitude: float = 9.0
    magnitude_std: float = 0.0
    randaugment_variant: str = "timm"
    randaugment_prob: float = 1.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_switch_prob: float = 0.5
    mix_prob: float = 1.0
    mix_mode: str = "batch"
    random_erasing_prob: float = 0.0
    random_erasing_mode: str = "constant"

    def __bool__(self) -> bool:
        """Whether `Preprocess` changes images at all."""
        moves = (self.crop_padding, self.zoom, self.rotation, self.shear, self.translate)
        changes = (self.brightness, self.contrast, self.saturation, self.hue, self.grayscale)
        flips = self.flip or self.flip_vertical
        return flips or self.crop_scale_min < 1 or self.policy != "none" or max(moves + changes) > 0


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
        self, images: UInt8[Array, "batch height width channels"], key: Array | None = None
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
        self, images: UInt8[Array, "batch height width channels"], crop: float = 1.0
    ) -> Float[Array, "batch size size channels"]:
        """Center-crop a share `crop` of the sides and resize it to `image_size`; levels are not normalized."""
        x = images.astype(jnp.float32)
        height, width = x.shape[1:3]
        if self.cropped or (crop == 1.0 and (height, width) == (self.image_size, self.image_size)):
            return x
        return geometry.resample(x, *geometry.center_crop_matrices(height, width, self.image_size, crop))

    def apply_geometry(
        self, images: UInt8[Array, "batch height width channels"], keys: Array
    ) -> Float[Array, "batch size size channels"]:
        """Crop and resize; then rotate and shear; then flip, zoom and translate."""
        augment, size = self.augment, self.image_size
        x = images.astype(jnp.float32)
        height, width = x.shape[1:3]
        steps = []
        if augment.crop_padding > 0:
            steps.append(geometry.crop_matrices(keys, height, width, augment.crop_padding))
        if augment.crop_scale_min < 1 and not self.cropped:
            area, aspect = augment.crop_scale_min, augment.crop_ratio_max
            steps.append(geometry.resized_crop_matrices(keys, height, width, size, area=area, aspect=aspect))
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
        at = jax.random.fold_in(key, POLICY)
        if augment.policy == "randaugment":
            return policies.rand_augment(
                at,
                x,
                num_ops=augment.randaugment_num_ops,
                magnitude=augment.magnitude,
                magnitude_std=augment.magnitude_std,
                probability=augment.randaugment_prob,
                variant=augment.randaugment_variant,
            )
        if augment.policy == "trivialaugment":
            return policies.trivial_augment(at, x)
        if augment.policy != "none":
            return policies.auto_augment(at, x, policy=augment.policy.removeprefix("autoaugment_"))
        return x


def check_channels(augment: Augment, channels: int) -> None:
    """Raise UserError for color operations on gray images."""
    for name in ("saturation", "hue", "grayscale"):
        value = getattr(augment, name)
        if channels == 1 and value > 0:
            raise UserError(
                f"config.augment.{name}={value} changes colors, but the images of this data set are gray; set it to 0"
            )


def normalization(name: str, images: UInt8[np.ndarray, "examples h w channels"]) -> tuple[tuple[float, ...], ...]:
    """Return (mean, std) per channel on the scale 0 to 255; "dataset" computes them exactly from `images`."""
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
    levels = np.arange(256)
    means, stds = [], []
    for c in range(channels):
        parts = np.array_split(images, 64)
        counts = np.sum([np.bincount(part[..., c].ravel(), minlength=256) for part in parts], axis=0)
        mean = float((counts * levels).sum() / counts.sum())
        variance = float((counts * (levels - mean) ** 2).sum() / counts.sum())
        means.append(mean)
        stds.append(max(variance, 1e-6) ** 0.5)
    return tuple(means), tuple(stds)
