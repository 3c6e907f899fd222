"""Files of weights are what was written; files from strangers end in one line, before memory is taken."""

import io
import json
import pickle
import struct
import zipfile

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


def test_an_npz_that_would_grow_when_it_is_read_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros((1000, 1000), np.float32))
    with pytest.raises(RunError, match=r"declares 3\.8 MiB of numbers, and is of"):
        files.read_npz(tmp_path / "a.npz", lambda header: pytest.fail("it was believed"))
