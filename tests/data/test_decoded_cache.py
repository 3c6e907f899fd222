"""Decoded images are cached once, completely or not at all, and decoded again if damaged or outdated."""

import collections
import concurrent.futures
import contextlib
import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from patchnets import runtime
from patchnets.data import decoded_cache
from patchnets.data.pixel_rules import DEFAULT_RULES
from patchnets.data.sources import folder
from patchnets.errors import RunError, UserError

GIB = 2.0**30
ROOT = pathlib.Path(__file__).resolve().parents[2]


class FakeRecords:
    """Images made from their position, and a count of how often each was decoded."""

    rules = DEFAULT_RULES

    def __init__(self, count=150, side=8, uniform=True, channels=3):
        self.count, self.side, self.uniform, self.channels = count, side, uniform, channels
        self.decoded = collections.Counter()
        self.sizes_asked = set()
        self.hook = lambda positions: None
        self.broken = set()

    def __len__(self):
        return self.count

    def examples(self, positions, size=None):
        self.hook(positions)
        if bad := self.broken.intersection(positions):
            raise RunError(f"record {min(bad)} is broken")
        self.decoded.update(positions)
        self.sizes_asked.add(size)
        return [(self.image(i, size or self.side), self.label(i)) for i in positions]

    def image(self, i, side):
        return np.random.default_rng(i).integers(0, 256, (side, side, self.channels), dtype=np.uint8)

    def label(self, i):
        return i * 7 % 1000

    def native_size(self, position=0):
        if position in self.broken:
            raise RunError(f"record {position} is broken")
        return self.side if self.uniform else None


class FakeSource:
    """A data set with one split of FakeRecords."""

    name, version, class_names, channels, encoded = "fake", "1", ("a", "b"), 3, True

    def __init__(self, **options):
        self.fake = FakeRecords(**options)
        self.sizes = {"train": self.fake.count}

    def records(self, split):
        assert split == "train"
        return self.fake


def load(source, root, image_size=16, max_bytes=GIB, **options):
    return decoded_cache.load_or_decode(source, "train", image_size, root, max_bytes, **options)


def entries(root):
    """Everything that lies where entries lie, the hidden included."""
    path = pathlib.Path(root) / "data"
    return sorted(path.iterdir()) if path.is_dir() else []


def assert_is_what_was_decoded(decoded, records, side=None):
    images, labels, unreadable = decoded
    assert unreadable == {}
    side = side or records.side
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(images, [records.image(i, side) for i in range(records.count)])
    np.testing.assert_array_equal(labels, [records.label(i) for i in range(records.count)])


@pytest.fixture
def source():
    return FakeSource()


def test_a_split_comes_back_as_it_was_decoded_and_mapped_from_disk(source, tmp_path):
    decoded = load(source, tmp_path)
    assert_is_what_was_decoded(decoded, source.fake)
    assert isinstance(decoded[0], np.memmap)
    assert set(source.fake.decoded.values()) == {1}


def test_the_order_is_kept_where_later_images_are_decoded_first(tmp_path):
    source = FakeSource(count=4 * decoded_cache.CHUNK)
    source.fake.hook = lambda positions: time.sleep(0.06 if positions[0] == 0 else 0.0)
    assert_is_what_was_decoded(load(source, tmp_path), source.fake)


def test_the_second_time_nothing_is_decoded(source, tmp_path):
    load(source, tmp_path)
    again = FakeSource()
    again.records = None  # asking for records would fail
    assert_is_what_was_decoded(load(again, tmp_path), source.fake)
    assert set(source.fake.decoded.values()) == {1}


@pytest.mark.parametrize(
    ("uniform", "side", "image_size", "stored"),
    [(True, 8, 16, 8), (True, 8, 8, 8), (True, 8, 4, 4), (False, 8, 16, 16)],
)
def test_only_what_is_too_large_or_of_mixed_sizes_is_resized(tmp_path, uniform, side, image_size, stored):
    source = FakeSource(count=5, side=side, uniform=uniform)
    images, *_ = decoded = load(source, tmp_path, image_size)
    assert images.shape == (5, stored, stored, 3)
    assert source.fake.sizes_asked == {None if uniform and side <= image_size else image_size}
    assert_is_what_was_decoded(decoded, source.fake, stored)


def test_different_image_sizes_have_entries_of_their_own(tmp_path):
    source = FakeSource(count=3, uniform=False)
    for size in (8, 16, 8, 16):
        assert_is_what_was_decoded(load(source, tmp_path, size), source.fake, size)
    assert len(entries(tmp_path)) == 2
    assert set(source.fake.decoded.values()) == {2}


@pytest.mark.parametrize("attribute", ["name", "version"])
def test_another_data_set_or_version_has_an_entry_of_its_own(tmp_path, attribute):
    first, other = FakeSource(count=3), FakeSource(count=4)
    setattr(other, attribute, "2")
    assert_is_what_was_decoded(load(first, tmp_path), first.fake)
    assert_is_what_was_decoded(load(other, tmp_path), other.fake)
    assert_is_what_was_decoded(load(first, tmp_path), first.fake)
    assert len(entries(tmp_path)) == 2


def test_names_that_are_no_file_names_make_entries_all_the_same(tmp_path):
    source = FakeSource(count=2)
    source.name, source.version = "some/set of:mine", "../1.0*"
    load(source, tmp_path)
    assert_is_what_was_decoded(load(source, tmp_path), source.fake)
    assert set(source.fake.decoded.values()) == {1}
    assert [path.parent for path in tmp_path.rglob("entry.json")] == entries(tmp_path)


# Failures while writing.


@pytest.mark.parametrize("error", [RunError("image 70 cannot be decoded"), OSError("no space"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_nothing(source, tmp_path, error):
    def fail(positions):
        if 70 in positions:
            raise error

    source.fake.hook = fail
    with pytest.raises(type(error)):
        load(source, tmp_path)
    assert source.fake.decoded[0] == 1  # it had begun
    assert entries(tmp_path) == []
    source.fake.hook = lambda positions: None
    assert_is_what_was_decoded(load(source, tmp_path), source.fake)


def test_nobody_sees_an_entry_before_it_is_whole(tmp_path):
    source = FakeSource(count=40, side=200)
    load(source, tmp_path / "first", 200)
    (first,) = entries(tmp_path / "first")
    full = {path.name: path.stat().st_size for path in first.iterdir()}
    entry, observed, over = tmp_path / "second/data" / first.name, [], threading.Event()

    def watch():
        while not over.is_set():
            if entry.exists():
                observed.append({path.name: path.stat().st_size for path in entry.iterdir()})

    watcher = threading.Thread(target=watch)
    watcher.start()
    load(source, tmp_path / "second", 200)
    over.set()
    watcher.join()
    assert all(actual == full for actual in observed)
    assert entries(tmp_path / "second") == [entry]


def test_what_a_killed_process_left_does_no_harm(tmp_path):
    killed, fresh = FakeSource(), FakeSource()

    def keep_what_is_there(positions):
        if 70 in positions:
            for path in (path for path in entries(tmp_path / "killed") if path.is_dir()):
                shutil.copytree(path, tmp_path / "place/data" / path.name)

    killed.fake.hook = keep_what_is_there
    load(killed, tmp_path / "killed")
    (left,) = entries(tmp_path / "place")
    assert (left / "images.npy").is_file()
    for _ in range(2):
        assert_is_what_was_decoded(load(fresh, tmp_path / "place"), fresh.fake)
    assert set(fresh.fake.decoded.values()) == {1}


WRITER = """
import pathlib, sys, time
from test_decoded_cache import FakeSource, load
from patchnets.runtime.signals import exit_on_signals

def hook(positions):
    if 70 in positions:
        print("decoding", flush=True)
        time.sleep(60)

exit_on_signals("patchnets")
source = FakeSource()
source.fake.hook = hook
load(source, pathlib.Path(sys.argv[1]))
"""


@pytest.fixture
def writer(tmp_path):
    """Another process, in the middle of decoding."""
    path = os.pathsep.join([str(pathlib.Path(__file__).parent), str(ROOT)])
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "decoding\n"
    yield process
    process.kill()
    process.communicate()


def folders(root):
    return [path for path in entries(root) if path.is_dir()]


@pytest.mark.slow
def test_a_process_stopped_while_decoding_leaves_nothing(tmp_path, writer):
    assert len(folders(tmp_path)) == 1
    writer.terminate()
    assert writer.wait(timeout=60) == 143
    assert folders(tmp_path) == []


@pytest.mark.slow
def test_what_a_killed_process_left_is_removed_at_the_next_start_and_of_a_living_one_nothing(tmp_path, writer):
    other, (partial,) = FakeSource(), folders(tmp_path)
    other.version = "2"
    os.utime(partial, (time.time() - 100_000,) * 2)
    load(other, tmp_path)
    assert partial in folders(tmp_path)
    writer.kill()
    writer.wait()
    os.utime(partial, (time.time() - 60,) * 2)
    load(other, tmp_path)
    assert [path.name for path in folders(tmp_path)] == ["fake-2-train-at-most-16px"]


def test_of_two_that_want_an_entry_one_decodes_and_the_other_waits(tmp_path):
    sources, results = [FakeSource(), FakeSource()], [None, None]
    for source in sources:
        source.fake.hook = lambda positions: time.sleep(0.1)

    def task(i):
        results[i] = load(sources[i], tmp_path)

    threads = [threading.Thread(target=task, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(source.fake.decoded) for source in sources) == [0, sources[0].fake.count]
    for source, result in zip(sources, results):
        assert_is_what_was_decoded(result, source.fake)
    assert len(entries(tmp_path)) == 1


def test_of_two_writers_at_once_both_get_the_images_and_one_entry_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(decoded_cache, "_one_at_a_time", lambda entry: contextlib.nullcontext())  # a disk without locks
    barrier = threading.Barrier(2, timeout=20)
    sources = [FakeSource(), FakeSource()]
    for source in sources:
        # Both wait for the other in their first chunk, so neither can have found an entry.
        source.fake.hook = lambda positions: barrier.wait() if positions[0] == 0 else None
    results = [None, None]

    def task(i):
        results[i] = load(sources[i], tmp_path)

    threads = [threading.Thread(target=task, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for source, result in zip(sources, results):
        assert set(source.fake.decoded.values()) == {1}
        assert_is_what_was_decoded(result, source.fake)
    assert len(entries(tmp_path)) == 1
    fresh = FakeSource()
    assert_is_what_was_decoded(load(fresh, tmp_path), fresh.fake)
    assert not fresh.fake.decoded


# Damage.


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-10])


DAMAGE = {
    "one byte of the images": lambda entry: flip_a_byte(entry / "images.npy"),
    "one byte of the labels": lambda entry: flip_a_byte(entry / "labels.npy"),
    "images cut short": lambda entry: cut_short(entry / "images.npy"),
    "labels cut short": lambda entry: cut_short(entry / "labels.npy"),
    "images gone": lambda entry: (entry / "images.npy").unlink(),
    "labels gone": lambda entry: (entry / "labels.npy").unlink(),
    "json gone": lambda entry: (entry / "entry.json").unlink(),
    "json cut short": lambda entry: cut_short(entry / "entry.json"),
    "json empty": lambda entry: (entry / "entry.json").write_text(""),
    "json without checksums": lambda entry: (entry / "entry.json").write_text("{}"),
    "json no text": lambda entry: (entry / "entry.json").write_bytes(b"\xff\xfe\x00"),
    "all gone": lambda entry: [path.unlink() for path in entry.iterdir()],
    "json null": lambda entry: (entry / "entry.json").write_text("null"),
    "json without names": lambda entry: (entry / "entry.json").write_text(json.dumps({"checksums": {}})),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_decoded_anew_with_a_word_about_it(source, tmp_path, capsys, damage):
    load(source, tmp_path)
    (entry,) = entries(tmp_path)
    assert "damaged" not in capsys.readouterr().err
    DAMAGE[damage](entry)
    assert_is_what_was_decoded(load(source, tmp_path), source.fake)
    message = capsys.readouterr().err
    assert f"{entry} is damaged" in message
    assert "decoding it again" in message
    assert set(source.fake.decoded.values()) == {2}
    assert entries(tmp_path) == [entry]
    assert_is_what_was_decoded(load(source, tmp_path), source.fake)
    assert "damaged" not in capsys.readouterr().err
    assert set(source.fake.decoded.values()) == {2}


def test_two_who_find_the_same_damage_at_once_both_get_the_images(source, tmp_path, monkeypatch):
    load(source, tmp_path)
    (entry,) = entries(tmp_path)
    flip_a_byte(entry / "images.npy")
    remove, barrier, one_at_a_time = shutil.rmtree, threading.Barrier(2), threading.Lock()

    def remove_together(path, *arguments, **options):
        if path == entry:
            with contextlib.suppress(threading.BrokenBarrierError):
                barrier.wait(1)
        with one_at_a_time:
            remove(path, *arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", remove_together)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = [pool.submit(load, FakeSource(), tmp_path) for _ in range(2)]
    for result in results:
        assert_is_what_was_decoded(result.result(), source.fake)
    assert entries(tmp_path) == [entry]


# Limits and places.


def assert_names_the_limit(error):
    message = str(error.value)
    assert "\n" not in message
    assert all(
        word in message
        for word in ("fake train", "1,000 images", "64 x 64", "62.5 MiB", "config.dataset.max_on_device_gib")
    )
    assert "10.2 MiB are allowed" in message


def test_what_would_not_fit_in_memory_is_refused_with_its_numbers_before_anything_is_decoded(tmp_path):
    source = FakeSource(count=1000, side=80)
    source.channels = 16  # 1000 x 64 x 64 x 16 bytes are 0.061 GiB
    with pytest.raises(UserError) as error:
        load(source, tmp_path, 64, 0.01 * GIB)
    assert_names_the_limit(error)
    assert not source.fake.decoded
    assert entries(tmp_path) == []


def test_a_limit_of_exactly_the_size_suffices_and_one_byte_less_does_not(tmp_path):
    source, size = FakeSource(count=10), 10 * 8 * 8 * 3
    with pytest.raises(UserError):
        load(source, tmp_path, max_bytes=size - 1)
    assert_is_what_was_decoded(load(source, tmp_path, max_bytes=size), source.fake)


def test_the_limit_holds_for_images_that_are_decoded_already(source, tmp_path):
    load(source, tmp_path)
    with pytest.raises(UserError, match="max_on_device_gib"):
        load(source, tmp_path, max_bytes=1000)
    assert len(entries(tmp_path)) == 1


def test_a_full_disk_is_an_error_with_its_numbers_before_anything_is_decoded(tmp_path, monkeypatch):
    source = FakeSource(count=1000, side=32)

    def no_room(descriptor, offset, size):
        assert size >= 1000 * 32 * 32 * 3
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(decoded_cache.os, "posix_fallocate", no_room)
    with pytest.raises(UserError) as error:
        load(source, tmp_path, 32)
    assert all(
        word in str(error.value) for word in ("2.9 MiB", "No space left", str(tmp_path), "config.dataset.cache_dir")
    )
    assert not source.fake.decoded
    assert entries(tmp_path) == []


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_place_that_cannot_be_written_is_an_os_error_that_names_it(source, tmp_path, path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError) as error:
        load(source, tmp_path / path)
    assert str(tmp_path / "file") in str(error.value)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_file_in_the_place_of_an_entry_is_an_os_error_and_leaves_nothing_beside_it(source, tmp_path):
    load(source, tmp_path)
    (entry,) = entries(tmp_path)
    for path in entry.iterdir():
        path.unlink()
    entry.rmdir()
    entry.write_text("in the way")
    with pytest.raises(OSError):
        load(source, tmp_path)
    assert entries(tmp_path) == [entry]
    assert entry.read_text() == "in the way"


def test_the_cache_lies_where_the_configuration_then_the_environment_say(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATCHNETS_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert runtime.cache_root(str(tmp_path / "configured")) == tmp_path / "configured"
    assert runtime.cache_root("~/mine") == tmp_path / "home/mine"
    assert runtime.cache_root() == tmp_path / "own"
    monkeypatch.delenv("PATCHNETS_CACHE")
    assert runtime.cache_root() == tmp_path / "xdg/patchnets"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert runtime.cache_root() == tmp_path / "home/.cache/patchnets"


def test_a_changed_folder_is_decoded_anew_and_an_unchanged_one_is_not(tmp_path):
    root = tmp_path / "images/train/a"
    root.mkdir(parents=True)
    Image.new("RGB", (4, 4), (10, 10, 10)).save(root / "1.png")

    def first_pixel():
        images, *_ = load(folder.Folder(str(tmp_path / "images")), tmp_path / "cache")
        return int(images[0].flat[0])

    assert first_pixel() == 10
    before = [(path, path.stat().st_mtime_ns) for path in entries(tmp_path / "cache")]
    assert first_pixel() == 10
    assert [(path, path.stat().st_mtime_ns) for path in entries(tmp_path / "cache")] == before
    Image.new("RGB", (4, 4), (200, 200, 200)).save(root / "1.png")
    os.utime(root / "1.png", ns=(0, 0))  # not the same instant, however coarse the file system's clock
    assert first_pixel() == 200
    assert len(entries(tmp_path / "cache")) == 2


BROKEN = {0, 70, 71, 149}


def test_where_broken_records_may_be_skipped_they_are_black_and_named(source, tmp_path):
    source.fake.broken = BROKEN
    images, labels, unreadable = load(source, tmp_path, skip=True)
    assert unreadable == {i: f"record {i} is broken" for i in sorted(BROKEN)}
    assert images.shape == (150, 8, 8, 3)  # the native size is that of the first that can be read
    for i in range(150):
        broken = i in BROKEN
        np.testing.assert_array_equal(images[i], 0 if broken else source.fake.image(i, 8))
        assert labels[i] == (0 if broken else source.fake.label(i))
    assert set(source.fake.decoded) == set(range(150)) - BROKEN


def test_skipped_records_are_tried_again_and_an_entry_without_them_goes_once_they_can_be_read(source, tmp_path):
    source.fake.broken = BROKEN
    load(source, tmp_path, skip=True)
    source.fake.decoded.clear()
    assert load(source, tmp_path, skip=True).unreadable.keys() == BROKEN and not source.fake.decoded
    with pytest.raises(RunError, match="record 0 is broken"):  # without skip, as if it were decoded now
        load(source, tmp_path)
    source.fake.broken = {70}
    assert load(source, tmp_path, skip=True).unreadable.keys() == {70}
    source.fake.broken = set()
    assert_is_what_was_decoded(load(source, tmp_path), source.fake)


@pytest.mark.parametrize(("count", "broken"), [(150, range(50, 114)), (5, range(5))])
def test_too_many_in_a_row_are_an_error_and_leave_nothing(tmp_path, count, broken):
    source = FakeSource(count=count)
    source.fake.broken = set(broken)
    with pytest.raises(RunError, match=f"^{len(broken)} records in a row .*first: record {broken[0]} is broken"):
        load(source, tmp_path, skip=True)
    assert [path for path in entries(tmp_path) if path.is_dir()] == []
    if count > len(broken):
        source.fake.broken.remove(80)
        assert len(load(source, tmp_path, skip=True).unreadable) == len(broken) - 1


def test_an_entry_of_before_has_no_unreadable_records(source, tmp_path):
    load(source, tmp_path)
    (entry,) = (path for path in entries(tmp_path) if path.is_dir())
    content = json.loads((entry / "entry.json").read_text())
    del content["unreadable"]
    (entry / "entry.json").write_text(json.dumps(content))
    assert_is_what_was_decoded(load(FakeSource(), tmp_path), source.fake)
