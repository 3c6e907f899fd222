"""Files of named arrays: safetensors and NumPy's .npz, checked by their headers before memory is taken.

Nothing is unpickled.
"""

import io
import math
import pathlib
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from patchnets.errors import RunError, first_line
from patchnets.runtime.files import atomic_path
from patchnets.runtime.format import format_bytes

Arrays = dict[str, np.ndarray]
Header = dict[str, tuple[tuple[int, ...], str]]  # name -> (shape, NumPy's name of the type)
Check = Callable[[Header], None]
MAX_MEMBERS, MAX_NPY_HEADER = 10**5, 2**16  # of an .npz archive; bytes of one array's header
ENCRYPTED = 1  # the bit of a zip member's flags
FLOATS = ("float32", "float16", "bfloat16", "float64", "void16")  # void16: bfloat16 in an .npz, which NumPy cannot name
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
    check(read_header(path, safetensors=True))
    return dict(iterate(path, safetensors=True))


def is_safetensors(path: pathlib.Path) -> bool:
    """Return whether a file begins as safetensors do: the length of a header, and a brace. An .npz begins with "PK"."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise _unreadable(path, error) from error
    return start[8:] == b"{" and not start.startswith(b"PK\x03\x04")


def read_header(path: pathlib.Path, safetensors: bool | None = None) -> Header:
    """Return shape and type of every array of a safetensors file or an .npz archive, of which nothing else is read.

    Args:
      safetensors: whether it is a safetensors file; None to see from its first bytes.

    Raises:
      RunError: it cannot be read, or its header declares more than the file has.
    """
    safetensors = is_safetensors(path) if safetensors is None else safetensors
    try:
        if not safetensors:
            return npz_header(path)
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:  # refuses a header that does not fit the file's size
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no dictionary
            return {name: (tuple(s.get_shape()), _type_of(s.get_dtype())) for name, s in slices.items()}
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise _unreadable(path, error) from error


def iterate(path: pathlib.Path, safetensors: bool | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every array of a safetensors file or an .npz archive with its name, and keep none in memory.

    Args and errors: as `read_header`, which is to be called first.
    """
    safetensors = is_safetensors(path) if safetensors is None else safetensors
    try:
        if safetensors:
            from safetensors import safe_open

            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118, it is no dictionary
                    yield name, file.get_tensor(name)
        else:
            with np.load(path, allow_pickle=False) as archive:
                for name in archive.files:
                    array = archive[name]
                    yield name, array.view(jnp.bfloat16) if array.dtype == "V2" else array
    except Exception as error:  # zlib.error, tokenize.TokenError, RecursionError and more, of a damaged file
        raise _unreadable(path, error) from error


def check_floats(path: pathlib.Path, header: Header) -> None:
    """Raise RunError, by the header alone, for arrays that are no floating-point numbers, empty, or of many axes."""
    for name, (shape, kind) in header.items():
        if kind not in FLOATS:
            raise RunError(f"{path}: {name!r} is {kind}; expected {', '.join(FLOATS)}")
        if 0 in shape or len(shape) > 8:
            raise RunError(f"{path}: {name!r} is of shape {shape}, which no weights have")


def read_floats(path: pathlib.Path, names: Collection[str], safetensors: bool | None = None) -> Arrays:
    """Return these arrays of a file as float32; call `check_floats` first.

    Raises:
      RunError: the file cannot be read, or holds a number that is not finite.
    """
    arrays = {}
    for name, array in iterate(path, safetensors):
        if name not in names:
            continue
        with np.errstate(over="ignore"):  # float64 that float32 cannot hold is not finite
            array = np.asarray(array, np.float32)
        arrays[name] = array
        check_finite(path, {name: array})
    return arrays


def check_finite(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise RunError for arrays of a file that hold a number that is not finite."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise RunError(f"{path}: {name!r} holds numbers that are not finite as float32")


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
    check(read_header(path, safetensors=False))
    return dict(iterate(path, safetensors=False))


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
    return RunError(f"{path} cannot be read ({first_line(error, 200)}); export or download it anew")
