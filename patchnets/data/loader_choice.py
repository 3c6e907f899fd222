"""Choice of the loader for `loader="auto"`: memory decides only where both loaders make the same images."""

import importlib.util

from patchnets.data.options import DataOptions
from patchnets.errors import UserError


def same_images(options: DataOptions, native: int | None) -> bool:
    """Return whether both loaders make the same images, random numbers apart.

    On the device, images are kept as squares of `options.stored_size` pixels and cropped and resized from there.
    Streaming crops and resizes the originals.

    Args:
      native: side in pixels if all images are squares of one size of at most `options.stored_size`, which are kept as
        they are; None for others.
    """
    if options.crop_pct < 1:  # on the device, images are resized twice
        return False
    return options.augment.crop_scale_min == 1 if native is None else native == options.image_size


def needs_on_device(options: DataOptions) -> bool:
    """Return whether only images on the device can be normalized or augmented as configured."""
    return options.normalize == "dataset" or options.augment.crop_padding > 0 or options.augment.crop_share < 1


def choose_loader(options: DataOptions, encoded: bool, native: int | None, fits: bool) -> str:
    """Return on_device or streaming.

    Args:
      encoded: whether images are stored encoded, as streaming needs.
      native: as in `same_images`.
      fits: whether the decoded images take no more memory than is allowed.
    """
    if options.loader != "auto":
        return options.loader
    if not encoded or needs_on_device(options):
        return "on_device"
    if same_images(options, native):
        return "on_device" if fits else "streaming"
    return "streaming" if native is None else "on_device"


def check_streaming(options: DataOptions) -> None:
    """Raise UserError unless images can be streamed as configured."""
    if importlib.util.find_spec("grain") is None:
        raise UserError(
            "streaming these images needs Grain, which is not installed; pip install grain, or set "
            "config.dataset.loader=on_device if their decoded size fits into memory"
        )
    if options.normalize == "dataset":
        raise UserError(
            "config.normalize='dataset' needs all training images, and these are streamed; use imagenet, symmetric or "
            "unit, or config.dataset.loader=on_device"
        )
    if options.augment.crop_padding:
        raise UserError(
            f"config.augment.crop_padding={options.augment.crop_padding} pads stored images, and these are "
            "cropped while streaming; use config.augment.crop_scale_min, or config.dataset.loader=on_device"
        )
    if options.augment.crop_share < 1:
        raise UserError(
            f"config.augment.crop_share={options.augment.crop_share:.4g} crops stored images, and these are cropped "
            "while streaming; use config.augment.crop_scale_min, or config.dataset.loader=on_device"
        )


def describe_crops(options: DataOptions, loader: str, native: int | None) -> list[str]:
    """Return a line about what crops are made from, if the other loader would make them from other images.

    Args:
      loader: the one that was chosen.
      native: as in `same_images`.
    """
    crops, side = options.augment.crop_scale_min < 1, options.stored_size
    if native is not None or same_images(options, native):
        return []
    if loader == "on_device" and crops:
        return [
            f"random crops are cut from images already reduced to {side} x {side} pixels; "
            "config.dataset.loader=streaming cuts them from the originals"
        ]
    if loader == "streaming" and options.loader == "auto":
        reason = "random crops are cut from the originals" if crops else "images are resized only once"
        return [
            f"images are read while training, so that {reason}; config.dataset.loader=on_device is faster, and keeps "
            f"them at {side} x {side} pixels"
        ]
    return []
