"""Atomic writes, and locks that other processes see."""

import subprocess
import sys

import pytest

from patchnets.runtime.files import atomic_path, lock_file, write_atomically


def test_a_file_takes_the_place_of_the_one_before_only_when_it_is_whole(tmp_path):
    path = tmp_path / "figures.json"
    write_atomically(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as partial:
        assert partial.parent == tmp_path and partial.suffix == ".json" and partial != path
        partial.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_atomically(path, b"\xff\n")
    assert path.read_bytes() == b"\xff\n" and path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_holds_against_another_process_until_it_is_closed(tmp_path):
    path = tmp_path / ".lock"
    program = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"

    def taken_elsewhere() -> bool:
        done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0 or "BlockingIOError" in done.stderr
        return done.returncode != 0

    with lock_file(path, wait=False):
        assert taken_elsewhere()
        with pytest.raises(BlockingIOError):
            lock_file(path, wait=False)
    assert not taken_elsewhere()
    lock_file(path, wait=True).close()
