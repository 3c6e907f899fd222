"""Weights that were trained before, whoever trained them: the layout is recognized from the files."""

import dataclasses
import os
import pathlib

from patchnets.errors import UserError
from patchnets.weights import files, hub, npz_layouts, own, timm_folder, transformers
from patchnets.weights.json_values import read_json
from patchnets.weights.layout import Pretrained

CONFIG, PROCESSOR, SAFETENSORS = "config.json", "preprocessor_config.json", "model.safetensors"
PICKLES = ("pytorch_model.bin", "*.bin", "*.pth", "*.pt", "*.ckpt")
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
    name = os.fspath(source)
    if hub.is_id(name):
        _refuse_checkpoint(name, checkpoint)
        return _read_folder(hub.fetch(name), name, network)
    try:
        path = pathlib.Path(name).expanduser().absolute()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, no such user
        raise UserError(f"{name[:200]!r} is no path; expected {KNOWN}") from error
    if is_folder and own.is_own(path):
        pretrained = own.read(path, checkpoint)
        if network not in (None, pretrained.network):
            raise UserError(f"{name} holds the weights of {pretrained.network}, not of network={network}")
        return pretrained
    _refuse_checkpoint(name, checkpoint)
    if is_folder:
        return _read_folder(path, str(path), network)
    if is_file:
        return _read_file(path, path, str(path), network)
    raise UserError(f"there is no {name}; expected {KNOWN}")


def _refuse_checkpoint(source: str, checkpoint: str | int) -> None:
    if checkpoint != "best":
        raise UserError(f"{source} holds one set of weights; leave out checkpoint={checkpoint}")


def _read_folder(directory: pathlib.Path, source: str, network: str | None) -> Pretrained:
    """Return the weights in a folder that others wrote."""
    if (directory / SAFETENSORS).is_file():
        return _read_file(directory / SAFETENSORS, directory, source, network)
    if (directory / f"{SAFETENSORS}.index.json").is_file():
        raise UserError(f"{directory} has its weights in several files; save them as one {SAFETENSORS}")
    if pickled := next((path for pattern in PICKLES for path in directory.glob(pattern)), None):
        raise UserError(f"{pickled} is a pickle, which may run code and is not read; save the weights as {SAFETENSORS}")
    raise UserError(f"{directory} is no folder of weights: it has no {SAFETENSORS}; expected {KNOWN}")


def _read_file(path: pathlib.Path, origin: pathlib.Path, source: str, network: str | None) -> Pretrained:
    """Return the weights in a file, with the configuration beside it if it is a folder's model.safetensors."""
    if not files.is_safetensors(path):
        return npz_layouts.read(path, source, network)
    config, processor = (
        read_json(path.parent / name) if path.name == SAFETENSORS and (path.parent / name).is_file() else None
        for name in (CONFIG, PROCESSOR)
    )
    if transformers.is_layout(files.read_header(path, safetensors=True)):
        pretrained = transformers.read(path, config, processor, source=source, network=network)
    else:
        pretrained = timm_folder.read(path, config, source=source, network=network)
    return dataclasses.replace(pretrained, path=origin)
