"""Parse the data set that a command line uses instead of a table's own: NAME, or folder:PATH."""

import pathlib

from patchnets.errors import UserError
from patchnets.runtime.cli import path as parse_path


def checked(value: str, option: str = "data") -> str:
    """Return the value of --`option` with an absolute path.

    Raises:
      UserError: unknown data set, or a folder without train/.
    """
    name, colon, path = value.partition(":")
    if name == "folder":
        directory = parse_path(path or ".")
        if not path or not (directory / "train").is_dir():
            raise UserError(f"--{option}={value}: expected folder:PATH, where PATH is a folder with train/CLASS/ in it")
        return f"folder:{directory.absolute()}"
    if not name or colon:
        raise UserError(f"--{option}={value}: expected the name of a data set, or folder:PATH")
    if name != "digits":
        from patchnets.data.sources import tfds

        try:
            tfds.is_prepared(name, None)
        except UserError as error:
            raise UserError(f"--{option}={value}: {error}") from error
    return value


def name_of(data: str) -> str:
    """Return the name of a data set for reports: "cifar100", or "folder:flowers" without the rest of the path."""
    name, colon, path = data.partition(":")
    return f"{name}:{pathlib.Path(path).name}" if colon else name
