"""Restarting a program with huge pages, and when it is not restarted."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from patchnets import runtime

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = """
import json, os, pathlib, sys
from patchnets import runtime
runtime.HUGE_PAGES = pathlib.Path({setting!r})
print(json.dumps([os.getpid(), sys.argv[1:], os.environ.get("GLIBC_TUNABLES"), sys.executable]), flush=True)
runtime.reexec_with_huge_pages()
"""
glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "") if hasattr(os, "confstr") else ""
needs_glibc = pytest.mark.skipif(not glibc.startswith("glibc"), reason="not a system with glibc")


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """A system that gives huge pages to who asks for them."""
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("PATCHNETS_HUGE_PAGES", raising=False)
    path = tmp_path / "enabled"
    path.write_text("always [madvise] never\n")
    monkeypatch.setattr(runtime, "HUGE_PAGES", path)
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")
    return path


@needs_glibc
def test_a_program_starts_anew_once_as_the_same_process_with_the_same_arguments(setting):
    command = [sys.executable, "-c", PROGRAM.format(setting=str(setting)), "--a=b c", "d"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert first[:2] == second[:2] == [first[0], ["--a=b c", "d"]] and first[3] == second[3]
    assert (first[2], second[2]) == (None, "glibc.malloc.hugetlb=1")


def test_what_is_set_already_is_kept(setting, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    assert runtime.tunables() == "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"


@pytest.mark.parametrize("settings", ["glibc.malloc.hugetlb=0", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=2"])
def test_the_users_own_word_stands(setting, monkeypatch, settings):
    monkeypatch.setenv("GLIBC_TUNABLES", settings)
    assert runtime.tunables() is None


def test_huge_pages_can_be_turned_off(setting, monkeypatch):
    assert runtime.tunables() is not None
    monkeypatch.setenv("PATCHNETS_HUGE_PAGES", "0")
    assert runtime.tunables() is None


@pytest.mark.parametrize("chosen", ["[always] madvise never", "always madvise [never]"])
def test_nothing_is_asked_of_a_system_that_decides_by_itself(setting, chosen):
    assert runtime.tunables() == "glibc.malloc.hugetlb=1"
    setting.write_text(chosen)
    assert runtime.tunables() is None


@pytest.mark.parametrize("library", ["glibc 2.31", "musl 1.2.4", "", None])
def test_nothing_is_asked_of_a_c_library_that_cannot(setting, monkeypatch, library):
    monkeypatch.setattr(os, "confstr", lambda name: library)
    assert runtime.tunables() is None


def test_nothing_is_asked_where_there_is_no_such_setting(setting):
    setting.unlink()
    assert runtime.tunables() is None
