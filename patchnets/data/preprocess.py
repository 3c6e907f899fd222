"""uint8 images to what the model sees, on the device: resizing, geometric augmentation, normalisation.

Resizing, flipping, zooming and shifting are separable: each is a linear map of rows and a linear map of columns. They
are multiplied into one pair of interpolation matrices an image, which then takes two batched matrix products and no
gathers. Every sampled number of an example comes from its own key, so it does not depend on who shares its batch.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

# Channel means and standard deviations of ImageNet's training images, in [0, 1] (as torchvision documents them).
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Augment:
    """What is done to training images. The defaults do nothing.

    Attributes:
      flip: mirror left to right with probability one half.
      zoom: height and width each scaled by a factor from [1 - zoom, 1 + zoom] about the centre; above 1 zooms out.
      rotation: turned about the centre by up to this share of a full turn, each way.
      shift: moved by up to this share of height and width, each way.
    """

    flip: bool = False
    zoom: float = 0.0
    rotation: float = 0.0
    shift: float = 0.0

    def __bool__(self) -> bool:
        return self.flip or self.zoom > 0 or self.rotation > 0 or self.shift > 0


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Turns a batch of stored images into float32 inputs of `image_size` pixels a side: (image - mean) / std."""

    image_size: int
    mean: tuple[float, ...]  # per channel, on the scale of a byte
    std: tuple[float, ...]
    augment: Augment = Augment()

    def __call__(
        self, images: UInt8[Array, "batch height width channels"], key: Array | None = None
    ) -> Float[Array, "batch size size channels"]:
        """`key` None prepares for evaluation: resized, nothing random."""
        mean, std = jnp.array(self.mean, jnp.float32), jnp.array(self.std, jnp.float32)
        x = (images.astype(jnp.float32) - mean) * (1 / std)
        height, width = images.shape[1:3]
        rows, columns = resize_matrix(self.image_size, height), resize_matrix(self.image_size, width)
        if key is not None and self.augment:
            example_keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(images.shape[0]))
            if self.augment.rotation:
                x = jax.vmap(rotate, (0, 0, None))(resample(x, rows, columns), example_keys, self.augment.rotation)
                rows = columns = jnp.eye(self.image_size)
            warp_rows, warp_columns = jax.vmap(lambda k: augment_matrices(k, self.image_size, self.augment))(
                example_keys
            )
            return resample(x, warp_rows @ rows, warp_columns @ columns)
        if (height, width) == (self.image_size, self.image_size):
            return x
        return resample(x, rows, columns)


def normalisation(name: str, images: UInt8[np.ndarray, "examples h w channels"]) -> tuple[tuple[float, ...], ...]:
    """(mean, std) per channel on the scale of a byte; "dataset" fits them on `images`, exactly, from a histogram."""
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


def resample(
    images: Float[Array, "batch height width channels"],
    rows: Float[Array, "*batch out_height height"],
    columns: Float[Array, "*batch out_width width"],
) -> Float[Array, "batch out_height out_width channels"]:
    """rows @ image @ columns^T, per channel; the matrices are one pair for all images or one for each."""
    b = "b" if rows.ndim == 3 else ""
    x = jnp.einsum(f"{b}ph,bhwc->bpwc", rows, images)
    return jnp.einsum(f"{b}qw,bpwc->bpqc", columns, x)


def interpolation_matrix(source: Shaped[Array, " out"], size: int) -> Float[Array, "out size"]:
    """Row i interpolates linearly at position `source[i]`, in pixels between the centres 0 and size - 1 of a line."""
    source = jnp.clip(source, 0.0, size - 1.0)
    return jnp.maximum(0.0, 1.0 - jnp.abs(source[:, None] - jnp.arange(size, dtype=jnp.float32)))


def resize_matrix(out: int, size: int) -> Float[Array, "out size"]:
    """Bilinear resizing of a line between pixel centres, without antialiasing (as Keras and TensorFlow resize)."""
    return interpolation_matrix((jnp.arange(out, dtype=jnp.float32) + 0.5) * (size / out) - 0.5, size)


def reflect(source: Float[Array, " out"], size: int) -> Float[Array, " out"]:
    """Positions beyond the edges mirrored back into the line: (d c b a | a b c d | d c b a), as Keras fills."""
    folded = jnp.mod(source + 0.5, 2.0 * size)
    return jnp.minimum(folded, 2.0 * size - folded) - 0.5


def rotate(image: Float[Array, "size size channels"], key: Array, limit: float) -> Float[Array, "size size channels"]:
    """Turned about the centre by a share of a full turn drawn from [-limit, limit]: Keras's RandomRotation, bilinear,
    filled by reflection. Rows and columns do not part here, so four neighbours of every pixel are gathered."""
    size = image.shape[0]
    angle = 2 * jnp.pi * jax.random.uniform(jax.random.fold_in(key, 3), minval=-limit, maxval=limit)
    centre = (size - 1) / 2
    y, x = jnp.meshgrid(*[jnp.arange(size) - centre] * 2, indexing="ij")
    source_y = reflect(centre + jnp.sin(angle) * x + jnp.cos(angle) * y, size)
    source_x = reflect(centre + jnp.cos(angle) * x - jnp.sin(angle) * y, size)
    rows, columns = (jnp.clip(source, 0.0, size - 1.0) for source in (source_y, source_x))
    top, left = jnp.floor(rows).astype(jnp.int32), jnp.floor(columns).astype(jnp.int32)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    bottom, end = jnp.minimum(top + 1, size - 1), jnp.minimum(left + 1, size - 1)
    above = image[top, left] * (1 - right) + image[top, end] * right
    below = image[bottom, left] * (1 - right) + image[bottom, end] * right
    return above * (1 - down) + below * down


def augment_matrices(
    key: Array, size: int, augment: Augment
) -> tuple[Float[Array, "size size"], Float[Array, "size size"]]:
    """The row and column matrices of one example's flip, then zoom and shift, of an image of `size` pixels a side.

    Zoom is Keras's RandomZoom (factor from [1 - zoom, 1 + zoom] for height and width apart, about the centre, bilinear,
    filled by reflection), shift its RandomTranslation.
    """
    flip_key, zoom_key, shift_key = jax.random.split(key, 3)
    position = jnp.arange(size, dtype=jnp.float32)
    centre = (size - 1) / 2
    factors = jax.random.uniform(zoom_key, (2,), minval=1 - augment.zoom, maxval=1 + augment.zoom)
    shifts = jax.random.uniform(shift_key, (2,), minval=-augment.shift, maxval=augment.shift) * size
    rows, columns = (
        interpolation_matrix(reflect(centre + (position - centre) * factors[i] - shifts[i], size), size) for i in (0, 1)
    )
    if augment.flip:
        columns = jnp.where(jax.random.bernoulli(flip_key), columns[:, ::-1], columns)
    return rows, columns
