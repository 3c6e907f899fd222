"""Files of weights are what was written; files from strangers end in one line, before memory is taken."""

import io
import json
import pickle
import struct
import tokenize
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest

from patchnets.errors import RunError
from patchnets.weights import files

NO_CHECK = lambda header: None
FORMATS = {
    "safetensors": (files.write_safetensors, files.read_safetensors),
    "npz": (files.write_npz, files.read_npz),
}


def arrays():
    """Row-major, transposed, strided and reversed arrays."""
    grid = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    return {
        "plain": grid,
        "transposed": grid.transpose(2, 0, 1),
        "every/other": grid[:, :, ::2],
        "reversed": grid[::-1],
    }


@pytest.mark.parametrize("kind", FORMATS)
def test_arrays_come_back_whatever_their_layout_in_memory(kind, tmp_path):
    write, read = FORMATS[kind]
    write(tmp_path / "a.bin", arrays())
    actual = read(tmp_path / "a.bin", NO_CHECK)
    assert actual.keys() == arrays().keys()
    for name, expected in arrays().items():
        np.testing.assert_array_equal(actual[name], expected)
        assert actual[name].dtype == np.float32


def test_arrays_without_axes_stay_so():
    assert files.contiguous({"a": np.float32(3)})["a"].shape == ()


@pytest.mark.parametrize("kind", FORMATS)
def test_shapes_and_types_are_checked_before_anything_is_read(kind, tmp_path, monkeypatch):
    write, read = FORMATS[kind]
    write(tmp_path / "a.bin", {"a": np.zeros((2, 3), np.float32)})
    monkeypatch.setattr(np, "load", lambda *args, **kwargs: pytest.fail("it was read"))

    def refuse(header):
        assert header == {"a": ((2, 3), "float32")}
        raise RunError("not these")

    with pytest.raises(RunError, match="not these"):
        read(tmp_path / "a.bin", refuse)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("damage", ["cut", "empty", "text", "missing"])
def test_broken_files_end_in_one_line(kind, damage, tmp_path):
    write, read = FORMATS[kind]
    path = tmp_path / "a.bin"
    write(path, arrays())
    content = {"cut": path.read_bytes()[:-40], "empty": b"", "text": b"version https://git-lfs"}.get(damage)
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(RunError) as caught:
        read(path, NO_CHECK)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_safetensors_header_that_declares_more_than_the_file_has_is_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)
    with pytest.raises(RunError, match="cannot be read"):
        files.read_safetensors(tmp_path / "a.safetensors", lambda header: pytest.fail("it was believed"))


class Malicious:
    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


def npz_with(path, member):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", member)


def test_an_npz_with_pickled_objects_is_refused_and_nothing_runs(tmp_path):
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    npz_with(tmp_path / "a.npz", member.getvalue() + pickle.dumps([Malicious()]))
    with pytest.raises(RunError, match="holds pickled Python objects") as caught:
        files.read_npz(tmp_path / "a.npz", NO_CHECK)
    assert "\n" not in str(caught.value)


def test_a_pickle_in_place_of_an_array_is_refused_and_nothing_runs(tmp_path):
    npz_with(tmp_path / "a.npz", pickle.dumps(Malicious()))
    with pytest.raises(RunError, match="cannot be read"):
        files.read_npz(tmp_path / "a.npz", NO_CHECK)


def test_ours_are_stored_uncompressed(tmp_path):
    files.write_npz(tmp_path / "a.npz", arrays())
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}


def npy(shape=(2, 3), content=b"\0" * 24):
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return member.getvalue() + content


def npy_2(length, header):
    """An array of .npy version 2 whose header claims `length` bytes."""
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", length) + header


def patched(content, flags=None, size=None):
    """An archive of one member with other flags, or another size, in both of its headers."""
    content, central = bytearray(content), content.index(b"PK\x01\x02")
    if flags is not None:
        content[6:8] = content[central + 8 : central + 10] = struct.pack("<H", flags)
    if size is not None:
        content[18:26] = content[central + 20 : central + 28] = struct.pack("<II", size, size)
    return bytes(content)


def compressed():
    file = io.BytesIO()
    np.savez_compressed(file, a=np.zeros((1000, 1000), np.float32))
    return file.getvalue()


def archive_of(member):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", member)
    return file.getvalue()


DAMAGE = {
    "compressed": (compressed, "a.npy is compressed"),
    "encrypted": (lambda: patched(archive_of(npy()), flags=1), "a.npy is encrypted"),
    "large member": (
        lambda: patched(archive_of(npy()), size=2**31),
        r"a\.npy declares 2\.00 GiB, and the archive is of",
    ),
    "large array": (lambda: archive_of(npy((2**20, 2**10))), r"it declares 4\.00 GiB of numbers, and is of"),
    "header of 4 GiB": (lambda: archive_of(npy_2(2**32 - 1, b"{}")), "cannot be read"),
    "header of 1 MiB": (lambda: archive_of(npy_2(2**20, b" " * 2**20)), "expected 1048576 bytes got 6552"),
    "nested header": (lambda: archive_of(npy_2(9000, b"(" * 9000)), "cannot be read"),
    "open bracket": (lambda: archive_of(npy_2(9, b"{'descr':")), "cannot be read"),
    "no utf-8": (lambda: archive_of(npy_2(4, b"\xff\xfe\0\0")), "cannot be read"),
    "array that ends early": (lambda: archive_of(npy((2, 3), b"\0" * 8)), "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_hostile_npz_ends_in_one_line_and_takes_no_memory(damage, tmp_path):
    make, pattern = DAMAGE[damage]
    (tmp_path / "a.npz").write_bytes(make())
    tracemalloc.start()
    try:
        with pytest.raises(RunError, match=pattern) as caught:
            files.read_npz(tmp_path / "a.npz", NO_CHECK)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(str(tmp_path / "a.npz")) and "\n" not in str(caught.value)


def test_an_npz_of_more_members_than_any_network_has_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_MEMBERS", 3)
    files.write_npz(tmp_path / "a.npz", arrays() | {"fifth": np.zeros(1, np.float32)})
    with pytest.raises(RunError, match="it has 5 members, and at most 3 are read"):
        files.read_npz(tmp_path / "a.npz", lambda header: pytest.fail("it was believed"))


@pytest.mark.parametrize("error", [zlib.error("x"), tokenize.TokenError("x", (1, 1)), RecursionError(), MemoryError()])
def test_whatever_else_a_reader_raises_is_one_line(error, tmp_path, monkeypatch):
    files.write_npz(tmp_path / "a.npz", arrays())

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(RunError, match="cannot be read"):
        files.read_npz(tmp_path / "a.npz", NO_CHECK)
