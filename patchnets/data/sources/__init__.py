"""Sources of images; `open_source` opens one by name."""

from patchnets.data.pixel_rules import DEFAULT_RULES, PixelRules
from patchnets.data.sources.base import Source
from patchnets.errors import UserError


def open_source(
    name: str,
    path: str | None = None,
    data_dir: str | None = None,
    channels: int | None = None,
    rules: PixelRules = DEFAULT_RULES,
) -> Source:
    """Return the data set called `name`: digits, folder (at `path`), or one of TFDS (prepared in `data_dir`).

    `channels` (1 or 3) overrides those of a folder's images.

    Raises:
      UserError: it does not exist, is not for image classification, or is not available.
    """
    if name == "folder":
        from patchnets.data.sources import folder

        if not path:
            raise UserError("config.dataset.path is not set; set it to the folder that contains train/CLASS/")
        return folder.Folder(path, channels, rules)
    if channels is not None:
        raise UserError(
            f"config.dataset.channels={channels} applies only to dataset.name=folder, not to {name}; unset it"
        )
    if name == "digits":
        from patchnets.data.sources import digits

        return digits.Digits()
    from patchnets.data.sources import tfds

    return tfds.open_tfds(name, data_dir, rules)
