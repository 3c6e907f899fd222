"""The data sets; `open_source` opens the one that a configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchnets.data.sources.base import Source
from patchnets.errors import UserError

if TYPE_CHECKING:
    import ml_collections


def open_source(config: ml_collections.ConfigDict) -> Source:
    """The data set that `config.dataset` names.

    Raises:
      UserError: it does not exist, is no image classification data set, or cannot be had.
    """
    if config.name == "digits":
        from patchnets.data.sources import digits

        return digits.Digits()
    if config.name == "folder":
        from patchnets.data.sources import folder

        if not config.path:
            raise UserError("config.dataset.path is not set; for folder it names where train/CLASS/*.jpg|png lie")
        return folder.Folder(config.path)
    from patchnets.data.sources import tfds

    return tfds.open_tfds(config.name, config.data_dir)
