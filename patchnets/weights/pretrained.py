"""Weights that were trained before, whoever trained them: the layout is recognized from the files."""

import os
import pathlib

from patchnets.errors import UserError
from patchnets.weights import files, own, timm_folder
from patchnets.weights.layout import Pretrained, read_json

CONFIG, SAFETENSORS = "config.json", "model.safetensors"
KNOWN = (
    "a work directory, an exported folder, a folder with config.json and model.safetensors (timm's, or transformers' "
    "ViT or DINOv2), a .safetensors or .npz file, hf-hub:ORG/NAME or timm:NAME"
)


def read_pretrained(
    source: str | os.PathLike[str], network: str | None = None, checkpoint: str | int = "best"
) -> Pretrained:
    """Return weights and what they are weights of. Only headers are read until `variables` are needed.

    Args:
      source: a work directory; an exported folder; a folder or file in timm's layout; an official .npz of MLP-Mixer or
        ViT; a folder in transformers' layout of ViT or DINOv2; hf-hub:ORG/NAME[@REVISION] or timm:NAME.
      network: timm's name of the architecture, or ours of the family, for a file that does not say it.
      checkpoint: of a work directory: "best" by validation, "latest", or the step of one that was kept.

    Raises:
      UserError: there is no such source, its layout is unknown, or no network of ours fits its arrays.
      RunError: its configuration or the header of its file is broken.
    """
    path = pathlib.Path(source).expanduser().absolute()
    if path.is_dir() and own.is_own(path):
        return own.read(path, checkpoint)
    if checkpoint != "best":
        raise UserError(f"{source} holds one set of weights; leave out checkpoint={checkpoint}")
    if path.is_dir():
        return _read_folder(path, str(path), network)
    if path.is_file():
        return _read_file(path, network)
    raise UserError(f"there is no {source}; expected {KNOWN}")


def _read_folder(directory: pathlib.Path, source: str, network: str | None) -> Pretrained:
    config = read_json(directory / CONFIG) if (directory / CONFIG).is_file() else {}
    return timm_folder.read(directory / SAFETENSORS, config, source, network)


def _read_file(path: pathlib.Path, network: str | None) -> Pretrained:
    files.is_safetensors(path)
    return timm_folder.read(path, {}, str(path), network)
