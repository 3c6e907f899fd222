"""Geometric augmentation on the device: resize, crop, flip, zoom, translation, rotation, shear.

Operations that treat rows and columns separately are a linear map of rows and one of columns. They are multiplied into
one pair of interpolation matrices per image, which costs two batched matrix products and no gathers. Rotation and shear
mix rows and columns: together they are one affine warp, which gathers the four neighbors of each pixel.


Positions are in pixels: 0 is the center of the first pixel of a line and size - 1 that of the last. Every example has
its own key; functions that sample take a batch of keys, made by `example_keys`.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Shaped

Images = Float[Array, "batch height width channels"]
# Number that each operation folds into the key of an example.
FLIP, ZOOM, SHIFT, ROTATION, SHEAR, CROP, RESIZED_CROP, FLIP_VERTICAL, SHARE_CROP = range(9)
MAX_ATTEMPTS = 10  # attempts to sample a resized crop that fits into the image, as in torchvision


def example_keys(key: Key[Array, ""], batch: int) -> Key[Array, " batch"]:
    """Return a key for each example of a batch, which depends only on its position in the batch."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch))


def _uniform(
    keys: Key[Array, " batch"], operation: int, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0
) -> Float[Array, "batch ..."]:
    """Sample numbers of `shape` for each example, uniform between `low` and `high`."""

    def draw(key: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, operation), shape, minval=low, maxval=high)

    return jax.vmap(draw)(keys)


# Matrices for rows and columns.


def resample(
    images: Shaped[Array, "batch height width channels"],
    rows: Float[Array, "*batch out_height height"],
    columns: Float[Array, "*batch out_width width"],
) -> Float[Array, "batch out_height out_width channels"]:
    """Compute rows @ image @ columns^T per channel, with one pair of matrices for all images or one per image."""
    b = "b" if rows.ndim == 3 else ""
    exact = jax.lax.Precision.HIGHEST  # accelerators would otherwise round to fewer bits than a level has
    x = jnp.einsum(f"{b}ph,bhwc->bpwc", rows, images, precision=exact)
    return jnp.einsum(f"{b}qw,bpwc->bpqc", columns, x, precision=exact)


def resample_all(
    images: Float[Array, "batch height width channels"], steps: Sequence[tuple[Array, Array]]
) -> Float[Array, "batch out_height out_width channels"]:
    """Apply pairs of matrices to images, the first pair first, in one resampling."""
    if not steps:
        return images
    (rows, columns), *others = steps
    for next_rows, next_columns in others:
        rows, columns = next_rows @ rows, next_columns @ columns
    return resample(images, rows, columns)


def interpolation_matrix(source: Float[Array, "*batch out"], size: int) -> Float[Array, "*batch out size"]:
    """Return a matrix whose row i interpolates linearly at `source[i]` of a line, clamped to its ends."""
    source = jnp.clip(source, 0.0, size - 1.0)
    return jnp.maximum(0.0, 1.0 - jnp.abs(source[..., None] - jnp.arange(size, dtype=jnp.float32)))


def resize_matrix(
    out: int,
    size: int,
    start: float | Float[Array, "*batch"] = 0.0,
    length: float | Float[Array, "*batch"] | None = None,
    *,
    cut: bool = False,
) -> Float[Array, "*batch out size"]:
    """Return the matrix that resizes `length` pixels from `start` (default: all) of a line of `size` to `out` pixels.

    Bilinear and antialiased: for downscaling, the triangle is widened by the scale. This equals Pillow's
    `resize(box=...)`, and for upscaling also Keras and TensorFlow. Pixels outside the part contribute near its ends,
    unless it is `cut` out first, in whole pixels.

    """
    start = jnp.asarray(start, jnp.float32)[..., None]
    length = jnp.asarray(size if length is None else length, jnp.float32)[..., None]
    scale, position = length / out, jnp.arange(size, dtype=jnp.float32)
    source = start + (jnp.arange(out, dtype=jnp.float32) + 0.5) * scale - 0.5
    weights = jnp.maximum(0.0, 1.0 - jnp.abs(source[..., None] - position) / jnp.maximum(scale, 1.0)[..., None])
    if cut:
        weights *= ((position >= start) & (position < start + length))[..., None, :]
    return weights / weights.sum(-1, keepdims=True)


def reflect(source: Float[Array, "..."], size: int) -> Float[Array, "..."]:
    """Reflect positions beyond the edges back into the line, (d c b a | a b c d | d c b a), as in Keras."""
    folded = jnp.mod(source + 0.5, 2.0 * size)
    return jnp.minimum(folded, 2.0 * size - folded) - 0.5


def warp(
    images: Float[Array, "batch height width channels"],
    matrices: Float[Array, "batch 2 3"],
    *,
    fill: float | None = None,
) -> Float[Array, "batch height width channels"]:
    """Warp each image by an affine map, bilinearly.

    Output pixel (y, x), relative to the center, takes the value of the image at `matrix @ (y, x, 1)`, also relative to
    the center. Outside the image the value is `fill`, on the scale of `images`, with a hard edge as in Pillow; without
    `fill` the image is reflected at its edges.
    """
    height, width = images.shape[1:3]
    y = (jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2)[:, None]
    x = jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2
    m = matrices[:, :, :, None, None]
    rows = m[:, 0, 0] * y + m[:, 0, 1] * x + m[:, 0, 2] + (height - 1) / 2
    columns = m[:, 1, 0] * y + m[:, 1, 1] * x + m[:, 1, 2] + (width - 1) / 2
    inside = (rows >= -0.5) & (rows < height - 0.5) & (columns >= -0.5) & (columns < width - 0.5)
    if fill is None:
        rows, columns = reflect(rows, height), reflect(columns, width)
    rows, columns = jnp.clip(rows, 0.0, height - 1.0), jnp.clip(columns, 0.0, width - 1.0)
    top, left = jnp.floor(rows).astype(jnp.int32), jnp.floor(columns).astype(jnp.int32)
    bottom, right = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
    down, along = (rows - top)[..., None], (columns - left)[..., None]
    # Gather whole pixels per example, so that devices that share a batch exchange nothing.
    pixels = jax.vmap(lambda image, i, j: image.at[i, j].get(mode="clip"))
    above = pixels(images, top, left) * (1 - along) + pixels(images, top, right) * along
    below = pixels(images, bottom, left) * (1 - along) + pixels(images, bottom, right) * along
    warped = above * (1 - down) + below * down
    return warped if fill is None else jnp.where(inside[..., None], warped, fill)


# Sampled matrices for each example.


def sample_flip(keys: Key[Array, " batch"], axis: int = FLIP) -> Bool[Array, " batch"]:
    """Sample whether each example is flipped (probability 1/2), left to right or top to bottom (FLIP_VERTICAL)."""
    return jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, axis)))(keys)


def augment_matrices(
    keys: Key[Array, " batch"], height: int, width: int, *, flip: bool = False, zoom: float = 0.0, shift: float = 0.0
) -> tuple[Float[Array, "batch height height"], Float[Array, "batch width width"]]:
    """Return row and column matrices of each example's flip, then zoom and translation.

    Zoom is Keras's RandomZoom (separate factors from [1 - zoom, 1 + zoom] for height and width, about the center,
    bilinear, filled by reflection); translation is its RandomTranslation (shares of the size from [-shift, shift]).
    """
    factors = _uniform(keys, ZOOM, (2,), 1 - zoom, 1 + zoom)
    shifts = _uniform(keys, SHIFT, (2,), -shift, shift)

    def matrix(axis: int, size: int) -> Array:
        center, position = (size - 1) / 2, jnp.arange(size, dtype=jnp.float32)
        source = center + (position - shifts[:, axis, None] * size - center) * factors[:, axis, None]
        return interpolation_matrix(reflect(source, size), size)

    rows, columns = matrix(0, height), matrix(1, width)
    if flip:
        columns = jnp.where(sample_flip(keys)[:, None, None], columns[:, :, ::-1], columns)
    return rows, columns


def crop_matrices(
    keys: Key[Array, " batch"], height: int, width: int, padding: int
) -> tuple[Float[Array, "batch height height"], Float[Array, "batch width width"]]:
    """Return matrices that crop each example to its own size after zero padding: torchvision's RandomCrop.

    All integer offsets are equally likely. Matrix rows in the padding are zero.
    """

    def offsets(key: Array) -> Array:
        return jax.random.randint(jax.random.fold_in(key, CROP), (2,), -padding, padding + 1)

    moved = jax.vmap(offsets)(keys)

    def matrix(axis: int, size: int) -> Array:
        source = jnp.arange(size) + moved[:, axis, None]
        return (source[..., None] == jnp.arange(size)).astype(jnp.float32)

    return matrix(0, height), matrix(1, width)


def share_crop_matrices(
    keys: Key[Array, " batch"], height: int, width: int, size: int, share: float
) -> tuple[Float[Array, "batch size height"], Float[Array, "batch size width"]]:
    """Return matrices that resize each example to size / `share` pixels a side and crop `size` out of them at random.

    All whole offsets are equally likely. This is the crop of ViT's and BiT's fine-tuning, 384 of 448 pixels.
    """
    full = round(size / share)

    def draw(key: Array) -> Array:
        return jax.random.randint(jax.random.fold_in(key, SHARE_CROP), (2,), 0, full - size + 1)

    offsets = jax.vmap(draw)(keys).astype(jnp.float32)
    rows, columns = (
        resize_matrix(size, n, offsets[:, axis] * (n / full), size * n / full) for axis, n in enumerate((height, width))
    )
    return rows, columns


def sample_boxes(
    drawn: Float[Array, "batch 22"],
    within: tuple[int, int],
    largest: tuple[int, int],
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[Float[Array, "batch 2"], Float[Array, "batch 2"], Bool[Array, " batch"]]:
    """Sample a box in whole pixels at a uniform position in each image, as torchvision and timm do.

    Its share of the area is uniform, its ratio of width to height log-uniform. torchvision and timm sample again, up to
    ten times, if it does not fit; this samples all ten and takes the first that fits, which is equivalent.


    Args:
      drawn: uniform numbers in [0, 1): two for the position, two for the size of each attempt.
      within: height and width of the image.
      largest: height and width of the largest box.
      area: least and greatest share of the area.
      aspect: least and greatest ratio.

    Returns:
      (top, left), (height, width), and whether any box fitted; if none did, the others are meaningless.
    """
    tries = drawn[:, 2:].reshape(-1, MAX_ATTEMPTS, 2)
    share = area[0] + (area[1] - area[0]) * tries[..., 0]
    low, high = math.log(aspect[0]), math.log(aspect[1])
    root = jnp.exp((low + (high - low) * tries[..., 1]) / 2)  # of the ratio
    side = jnp.sqrt(share * (within[0] * within[1]))
    sizes = jnp.round(side[..., None] * jnp.stack([1 / root, root], -1))
    fits = ((sizes >= 1) & (sizes <= jnp.asarray(largest))).all(-1)
    size = jnp.take_along_axis(sizes, jnp.argmax(fits, 1)[:, None, None], 1)[:, 0]
    room = jnp.maximum(jnp.asarray(within) - size, 0)
    return jnp.minimum(jnp.floor(drawn[:, :2] * (room + 1)), room), size, fits.any(1)


def crop_boxes(
    keys: Key[Array, " batch"], height: int, width: int, area: float, aspect: float
) -> tuple[Float[Array, "batch 2"], Float[Array, "batch 2"]]:
    """Sample each example's box, (top, left) and (height, width), in whole pixels: torchvision's RandomResizedCrop.

    The share of the area is from [area, 1], the ratio of width to height from [1 / aspect, aspect]; see `sample_boxes`.
    If no box fits, it is the largest centered box whose ratio is in the range.
    """
    drawn = _uniform(keys, RESIZED_CROP, (2 * MAX_ATTEMPTS + 2,))
    corner, size, fits = sample_boxes(drawn, (height, width), (height, width), (area, 1.0), (1 / aspect, aspect))
    largest = jnp.array([min(height, round(width * aspect)), min(width, round(height * aspect))], jnp.float32)
    middle = jnp.floor((jnp.array([height, width], jnp.float32) - largest) / 2)
    return jnp.where(fits[:, None], corner, middle), jnp.where(fits[:, None], size, largest)


def resized_crop_matrices(
    keys: Key[Array, " batch"], height: int, width: int, size: int, *, area: float, aspect: float
) -> tuple[Float[Array, "batch size height"], Float[Array, "batch size width"]]:
    """Return matrices that cut out each example's box (`crop_boxes`) and resize it to `size` pixels a side."""
    corner, box = crop_boxes(keys, height, width, area, aspect)
    rows = resize_matrix(size, height, corner[:, 0], box[:, 0], cut=True)
    return rows, resize_matrix(size, width, corner[:, 1], box[:, 1], cut=True)


def center_crop_matrices(
    height: int, width: int, size: int, share: float = 1.0
) -> tuple[Float[Array, "size height"], Float[Array, "size width"]]:
    """Return matrices that crop `share` of both sides about the center and resize it to `size` pixels a side."""
    rows, columns = (resize_matrix(size, n, n * (1 - share) / 2, n * share) for n in (height, width))
    return rows, columns


def affine_matrices(
    keys: Key[Array, " batch"], *, rotation: float = 0.0, shear: float = 0.0
) -> Float[Array, "batch 2 3"]:
    """Return affine maps for `warp`: rotation about the center by a share of a full turn from [-rotation, rotation]
    (Keras's RandomRotation), after shear along each axis with a slope from [-shear, shear]."""
    angle = 2 * jnp.pi * _uniform(keys, ROTATION, (), -rotation, rotation)
    slopes = _uniform(keys, SHEAR, (2,), -shear, shear)
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    a, b = slopes[:, 0], slopes[:, 1]
    zero = jnp.zeros_like(angle)
    rows = jnp.stack([cosine + b * sine, sine + a * cosine, zero], -1)
    return jnp.stack([rows, jnp.stack([b * cosine - sine, cosine - a * sine, zero], -1)], 1)


# Each operation alone: (key, images, settings) -> images, with the same random numbers as the fused path.


def flip(
    images: Float[Array, "batch height width channels"], which: Bool[Array, " batch"]
) -> Float[Array, "batch height width channels"]:
    """Mirror the images selected by `which` left to right."""
    return jnp.where(which[:, None, None, None], images[:, :, ::-1], images)


def flip_vertically(
    images: Float[Array, "batch height width channels"], which: Bool[Array, " batch"]
) -> Float[Array, "batch height width channels"]:
    """Mirror the images selected by `which` top to bottom."""
    return jnp.where(which[:, None, None, None], images[:, ::-1], images)


def random_flip(key: Key[Array, ""], images: Images) -> Images:
    """Mirror half of the images left to right: Keras's RandomFlip("horizontal")."""
    return flip(images, sample_flip(example_keys(key, len(images))))


def random_vertical_flip(key: Key[Array, ""], images: Images) -> Images:
    """Mirror half of the images top to bottom: Keras's RandomFlip("vertical")."""
    return flip_vertically(images, sample_flip(example_keys(key, len(images)), FLIP_VERTICAL))


def random_zoom(key: Key[Array, ""], images: Images, *, zoom: float) -> Images:
    """Scale height and width (Keras's RandomZoom) by factors from [1 - zoom, 1 + zoom]; above 1 zooms out."""
    batch, height, width, _ = images.shape
    return resample(images, *augment_matrices(example_keys(key, batch), height, width, zoom=zoom))


def random_translation(key: Key[Array, ""], images: Images, *, shift: float) -> Images:
    """Translate by up to `shift` of height and width, filled by reflection (Keras's RandomTranslation)."""
    batch, height, width, _ = images.shape
    return resample(images, *augment_matrices(example_keys(key, batch), height, width, shift=shift))


def random_crop(key: Key[Array, ""], images: Images, *, padding: int) -> Images:
    """Pad by `padding` zero pixels and crop to the original size (torchvision's RandomCrop)."""
    batch, height, width, _ = images.shape
    return resample(images, *crop_matrices(example_keys(key, batch), height, width, padding))


def random_share_crop(key: Key[Array, ""], images: Images, *, size: int, share: float) -> Images:
    """Resize to size / `share` pixels a side and crop `size` of them at a random position."""
    batch, height, width, _ = images.shape
    return resample(images, *share_crop_matrices(example_keys(key, batch), height, width, size, share))


def random_resized_crop(
    key: Key[Array, ""], images: Images, *, area: float, aspect: float = 4 / 3, size: int | None = None
) -> Float[Array, "batch size size channels"]:
    """Crop a box with at least a share `area` and resize it to `size` pixels a side (default: the height), as
    torchvision's RandomResizedCrop (arXiv 1409.4842, section 6)."""
    batch, height, width, _ = images.shape
    keys, size = example_keys(key, batch), size or height
    return resample(images, *resized_crop_matrices(keys, height, width, size, area=area, aspect=aspect))


def random_rotation(key: Key[Array, ""], images: Images, *, rotation: float) -> Images:
    """Rotate by up to `rotation` of a full turn, filled by reflection (Keras's RandomRotation)."""
    return warp(images, affine_matrices(example_keys(key, len(images)), rotation=rotation))


def random_shear(key: Key[Array, ""], images: Images, *, shear: float) -> Images:
    """Shear along both axes about the center by slopes up to `shear`, filled by reflection: AutoAugment's ShearX and
    ShearY (arXiv 1805.09501, table 6)."""
    return warp(images, affine_matrices(example_keys(key, len(images)), shear=shear))


def resize(images: Images, *, size: int, share: float = 1.0) -> Float[Array, "batch size size channels"]:
    """Crop `share` of the sides about the center and resize to `size` pixels (torchvision's CenterCrop and Resize)."""
    _, height, width, _ = images.shape
    return resample(images, *center_crop_matrices(height, width, size, share))
