"""Files of named arrays: safetensors and NumPy's .npz, checked by their headers before memory is taken.

Nothing is unpickled.
"""

import io
import math
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from patchnets.errors import RunError, UserError, first_line
from patchnets.runtime.files import atomic_path
from patchnets.runtime.format import format_bytes

Arrays = dict[str, np.ndarray]
Header = dict[str, tuple[tuple[int, ...], str]]  # name -> (shape, NumPy's name of the type)
Check = Callable[[Header], None]
MAX_MEMBERS, MAX_NPY_HEADER = 10**5, 2**16  # of an .npz archive; bytes of one array's header
ENCRYPTED = 1  # the bit of a zip member's flags
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
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np") as file:  # refuses a header that does not fit the file's size
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no dictionary
            check({name: (tuple(s.get_shape()), _type_of(s.get_dtype())) for name, s in slices.items()})
            return {name: file.get_tensor(name) for name in slices}
    except (UserError, RunError):
        raise
    except Exception as error:  # whatever a damaged file makes the reader raise
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
      RunError: it cannot be read, is compressed or encrypted, holds Python objects, or its headers declare more than
        the file has.
    """
    try:
        header = npz_header(path)
        check(header)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in header}
    except (UserError, RunError):
        raise
    except Exception as error:  # zlib.error, tokenize.TokenError, RecursionError and more, of a damaged file
        raise _unreadable(path, error) from error


def npz_header(path: pathlib.Path) -> Header:
    """Return shape and type of every array of an .npz archive. Raise an error if it cannot be read or trusted.

    No member is opened before all of them are known to be stored as they are and to fit the file.
    """
    header: Header = {}
    declared, size = 0, path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MAX_MEMBERS:
            raise ValueError(f"it has {len(members):,} members, and at most {MAX_MEMBERS:,} are read")
        for member in members:
            _refuse_unsafe(member, size)
        for member in members:
            with archive.open(member) as stored:
                file = io.BytesIO(stored.read(MAX_NPY_HEADER))  # in which NumPy finds no header that is longer
                version = np.lib.format.read_magic(file)
                if version not in ((1, 0), (2, 0)):
                    raise ValueError(f"{member.filename} is of .npy version {version[0]}.{version[1]}")
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, kind = read(file)
            if kind.hasobject:
                raise ValueError(f"{member.filename} holds pickled Python objects, which may run code")
            declared += math.prod(shape) * kind.itemsize
            header[member.filename.removesuffix(".npy")] = (shape, kind.name)
    if declared > size:
        raise ValueError(f"it declares {format_bytes(declared)} of numbers, and is of {format_bytes(size)}")
    return header


def _refuse_unsafe(member: zipfile.ZipInfo, size: int) -> None:
    """Raise ValueError for a member that could take more memory than an archive of `size` bytes has."""
    if member.flag_bits & ENCRYPTED:
        raise ValueError(f"{member.filename} is encrypted")
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed; np.savez writes it uncompressed")
    if member.file_size > size:
        declared = format_bytes(member.file_size)
        raise ValueError(f"{member.filename} declares {declared}, and the archive is of {format_bytes(size)}")


def _unreadable(path: pathlib.Path, error: Exception) -> RunError:
    return RunError(f"{path} cannot be read ({first_line(error, 200)}); export the model anew")
