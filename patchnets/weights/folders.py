"""Folders of exported models: what they are called, and the variables in those that hold weights."""

import json
import pathlib
from typing import Any

from patchnets.errors import RunError, UserError
from patchnets.run.model_spec import ModelSpec
from patchnets.weights import files, official_npz, timm

SAFETENSORS, NPZ, ONNX, JAX_EXPORT = "model.safetensors", "model.npz", "model.onnx", "model.jax_export"
EXPORT = "export.json"  # where the weights come from
LOADED_BY = {
    ONNX: "onnxruntime.InferenceSession({path!r})",
    JAX_EXPORT: "jax.export.deserialize(bytearray(pathlib.Path({path!r}).read_bytes())).call(images)",
}


def is_export(directory: pathlib.Path) -> bool:
    """Return whether a folder holds a file that `patchnets.export` writes."""
    return any((directory / name).is_file() for name in (SAFETENSORS, NPZ, ONNX, JAX_EXPORT))


def read_step(directory: pathlib.Path) -> int | None:
    """Return the step of the checkpoint that an export was made of; None if its folder does not say."""
    try:
        step = json.loads((directory / EXPORT).read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if type(step) is int and step >= 0 else None


def weights_file(directory: pathlib.Path) -> pathlib.Path:
    """Return the file of weights in an exported folder.

    Raises:
      UserError: it holds a compiled program in place of weights.
    """
    for name, call in LOADED_BY.items():
        if (directory / name).is_file():
            what = call.format(path=str(directory / name))
            raise UserError(f"{directory} holds a program and no weights; load it by {what} (its README.md shows how)")
    return directory / (SAFETENSORS if (directory / SAFETENSORS).is_file() else NPZ)


def check_sizes(path: pathlib.Path, header: files.Header, spec: ModelSpec) -> None:
    """Compare a file of weights with its network where that costs nothing even if the sizes of model.json are absurd.

    Raises:
      UserError: there is no such network.
      RunError: the file has fewer arrays than the network blocks, or none as wide as it.
    """
    spec.create_model()
    width, depth = spec.fields["hidden_dim"], spec.fields["depth"]
    if len(header) < depth or width > max((size for shape, _ in header.values() for size in shape), default=0):
        raise RunError(f"{path} is too small for the network of model.json, depth={depth} and hidden_dim={width}")


def read_variables(directory: pathlib.Path, spec: ModelSpec) -> dict[str, Any]:
    """Return the variables in the folder of an export for timm or of an .npz export.

    Raises:
      UserError: it holds a compiled program in place of weights, or weights of another network than `spec`.
      RunError: its file is broken, or not what its header declares.
    """
    path = weights_file(directory)
    network = spec.create_model()

    def check(header: files.Header) -> None:
        """Compare shapes and types with the network's."""
        check_sizes(path, header, spec)
        shapes = (timm if path.name == SAFETENSORS else official_npz).expected_shapes(
            network, spec.image_size, spec.channels
        )
        for name in sorted(shapes.keys() ^ header.keys()):
            raise RunError(f"{path}: {name!r} is {'missing' if name in shapes else 'no array of this network'}")
        for name, (shape, kind) in header.items():
            if (shape, kind) != (shapes[name], "float32"):
                raise RunError(f"{path}: {name!r} is {kind} of shape {shape}; expected float32 of {shapes[name]}")

    arrays = (files.read_safetensors if path.name == SAFETENSORS else files.read_npz)(path, check)
    files.check_finite(path, arrays)
    if path.name == SAFETENSORS:
        variables = timm.from_entries(network, arrays, spec.image_size)
    else:
        variables = official_npz.from_arrays(network, arrays, spec.image_size, spec.channels)
    return {"batch_stats": {}} | variables
