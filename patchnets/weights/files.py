"""Files of named arrays: safetensors and NumPy's .npz, checked by their headers before memory is taken.

Nothing is unpickled.
"""

import math
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from patchnets.errors import RunError, first_line
from patchnets.runtime.files import atomic_path
from patchnets.runtime.format import format_bytes

Arrays = dict[str, np.ndarray]
Header = dict[str, tuple[tuple[int, ...], str]]  # name -> (shape, NumPy's name of the type)
Check = Callable[[Header], None]
SAFETENSORS_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64", "I64": "int64"}


def write_safetensors(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays as a safetensors file, with the metadata that transformers wants."""
    from safetensors.numpy import save_file

    with atomic_path(path) as partial:
        save_file(contiguous(arrays), partial, metadata={"format": "pt"})


def contiguous(arrays: Mapping[str, Any]) -> Arrays:
    """Return arrays in row-major memory order. safetensors writes the memory of any other as it lies, silently wrong.

    Unlike np.ascontiguousarray this keeps arrays without axes as they are.
    """
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}


def read_safetensors(path: pathlib.Path, check: Check) -> Arrays:
    """Return the arrays of a safetensors file.

    Args:
      check: is called with shapes and types before any array is read, and raises an error if they are not as expected.

    Raises:
      RunError: it cannot be read, or its header does not agree with its size.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:  # refuses a header that does not fit the file's size
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no dictionary
            check({name: (tuple(s.get_shape()), _type_of(s.get_dtype())) for name, s in slices.items()})
            return {name: file.get_tensor(name) for name in slices}
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _type_of(code: str) -> str:
    return SAFETENSORS_TYPES.get(code, code)


def write_npz(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays as an uncompressed .npz archive."""
    with atomic_path(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **contiguous(arrays))


def read_npz(path: pathlib.Path, check: Check) -> Arrays:
    """Return the arrays of an uncompressed .npz archive.

    Args:
      check: as for `read_safetensors`.

    Raises:
      RunError: it cannot be read, holds Python objects, or its headers declare more than the file has.
    """
    try:
        header = npz_header(path)
        check(header)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in header}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise _unreadable(path, error) from error


def npz_header(path: pathlib.Path) -> Header:
    """Return shape and type of every array of an .npz archive. Raise ValueError if it cannot be read or trusted."""
    header: Header = {}
    declared = 0
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                if version not in ((1, 0), (2, 0)):
                    raise ValueError(f"{member.filename} is of .npy version {version[0]}.{version[1]}")
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, kind = read(file)
            if kind.hasobject:
                raise ValueError(f"{member.filename} holds pickled Python objects, which may run code")
            declared += math.prod(shape) * kind.itemsize
            header[member.filename.removesuffix(".npy")] = (shape, kind.name)
    if declared > (size := path.stat().st_size):  # compressed, or a lie
        raise ValueError(f"it declares {format_bytes(declared)} of numbers, and is of {format_bytes(size)}")
    return header


def _unreadable(path: pathlib.Path, error: Exception) -> RunError:
    return RunError(f"{path} cannot be read ({first_line(error, 200)}); export the model anew")
