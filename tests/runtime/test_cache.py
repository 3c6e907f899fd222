"""The folder of the cache: where it can be written, and one of this user's own where it cannot."""

import errno
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest

from patchnets import runtime
from patchnets.errors import UserError
from patchnets.run import workdir
from patchnets.run.workdir import Workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder of temporary files."""
    monkeypatch.setattr(runtime.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    runtime._temporary_cache.cache_clear()
    yield tmp_path / "temporary"
    runtime._temporary_cache.cache_clear()


def test_a_cache_that_cannot_be_written_is_replaced_in_one_line(tmp_path, temporary, monkeypatch, capsys):
    monkeypatch.setenv("PATCHNETS_CACHE", str(tmp_path / "shared" / "cache"))
    (tmp_path / "shared").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: pathlib.Path(path).name != "shared")
    expected = temporary / f"patchnets-{os.getuid()}"
    assert runtime.cache_root() == runtime.cache_root() == expected
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{tmp_path / 'shared'} is not a folder that can be written" in error
    assert expected.stat().st_mode & 0o777 == 0o700


def test_a_file_in_the_way_is_no_cache(tmp_path, temporary, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PATCHNETS_CACHE", str(tmp_path / "file" / "cache"))
    assert runtime.cache_root().parent == temporary


@pytest.mark.parametrize("kind", ["link", "another's"])
def test_a_folder_that_another_user_could_have_made_is_not_used(tmp_path, temporary, monkeypatch, kind):
    """It could hold programs that this user would run."""
    path = temporary / f"patchnets-{os.getuid()}"
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.mkdir()
        other = path.stat().st_uid + 1
        monkeypatch.setattr(os, "getuid", lambda: other)
        path.rename(temporary / f"patchnets-{other}")
    root = runtime._temporary_cache("the test says so")
    assert root.parent == temporary and root.name.startswith("patchnets-") and root.is_dir()
    assert root != temporary / f"patchnets-{os.getuid()}"


def test_without_a_home_there_is_a_cache(request):
    temporary = pathlib.Path(tempfile.mkdtemp(prefix="temporary-"))  # one that other users can look into
    request.addfinalizer(lambda: shutil.rmtree(temporary))
    temporary.chmod(0o777)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    program = "from patchnets import runtime; print(runtime.cache_root())"
    settings = dict(cwd="/", env=environment, capture_output=True, text=True, timeout=60)
    if os.getuid() == 0:  # as a user that the system does not know, which a container may run
        settings["user"] = 54321
    try:
        done = subprocess.run([sys.executable, "-c", program], **settings)
    except PermissionError:
        pytest.skip("other users cannot run this Python")
    if os.getuid() == 0 and ("Permission denied" in done.stderr or "No module named 'patchnets'" in done.stderr):
        pytest.skip("other users can run neither this Python nor this clone")
    assert done.returncode == 0, done.stderr
    root = pathlib.Path(done.stdout.strip())
    assert root.parent == temporary if os.getuid() == 0 else root.name.startswith("patchnets")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_without(tmp_path, monkeypatch, capsys, number):
    def no_locks(path, wait):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(workdir, "lock_file", no_locks)
    folder = Workdir(tmp_path / "run", {"seed": 1})
    folder.acquire({})
    assert (tmp_path / "run" / "config.json").exists()
    assert capsys.readouterr().err.count("this file system has no locks") == 1
    folder.release()


def test_another_failure_of_the_lock_is_one(tmp_path, monkeypatch):
    def full(path, wait):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(workdir, "lock_file", full)
    with pytest.raises(OSError, match="No space left"):
        Workdir(tmp_path / "run", {"seed": 1}).acquire({})
    monkeypatch.setattr(workdir, "lock_file", lambda path, wait: (_ for _ in ()).throw(BlockingIOError()))
    with pytest.raises(UserError, match="another process is running"):
        Workdir(tmp_path / "run", {"seed": 1}).acquire({})
