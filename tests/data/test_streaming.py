"""A streaming feed shows every example once an epoch, in an order that hangs on the seed alone, and fails by name."""

import collections
import gc
import io
import json
import os
import pathlib
import pickle
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from multiprocessing import shared_memory

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from patchnets.data import decode
from patchnets.data.order import epoch_order
from patchnets.data.sources import digits, folder
from patchnets.data.streaming import StreamingLoader, batch_reader, prefetch
from patchnets.data.streaming.batch_reader import BatchReader, random_crop
from patchnets.errors import RunError, UserError
from patchnets.parallel import mesh as mesh_lib

REPOSITORY = pathlib.Path(batch_reader.__file__).parents[3]
EXAMPLES, BATCH, STEPS = 45, 16, 3
FIRST, SECOND = (3, 33), (0, 15)  # the parts of the two splits that are read: 30 and 15 examples


class Numbered:
    """Images of one color that tells their place, as does their label."""

    rules = decode.DEFAULT_RULES

    def __init__(self, low, count, broken=()):
        self.low, self.count, self.broken = low, count, broken

    def __len__(self):
        return self.count

    def encoded(self, position):
        if position in self.broken:
            return b"broken", self.low + position
        file = io.BytesIO()
        Image.fromarray(np.full((6, 8, 3), self.low + position, np.uint8)).save(file, "PNG")
        return file.getvalue(), self.low + position

    def name_of(self, position):
        return f"record {position} of those from {self.low}"


ALL = [*range(3, 33), *range(100, 115)]  # what the labels of two parts are


def parts(broken=()):
    return [(Numbered(0, 40, broken), *FIRST), (Numbered(100, 15), *SECOND)]


@pytest.fixture
def make(mesh1):
    """A feed over two splits with a thread, which is closed in the end."""
    made = []

    def loader(mesh=mesh1, broken=(), records=None, **options):
        options = dict(batch_size=BATCH, size=4, channels=3, num_classes=200, seed=0, num_workers=0) | options
        made.append(StreamingLoader(records or parts(broken), mesh=mesh, **options))
        return made[-1]

    yield loader
    for first in made:
        first.close()


def host(loader, step):
    """The batch of a step, as NumPy arrays."""
    inputs, available = loader.step_inputs(step)
    assert available == 1
    return jax.device_get(inputs)


def visited(loader, epoch):
    """Labels of the examples that count, in the order in which an epoch shows them."""
    order = []
    for step in range(epoch * loader.steps_per_epoch, (epoch + 1) * loader.steps_per_epoch):
        batch = host(loader, step)
        order += batch["label"][batch["mask"] == 1].tolist()
    return order


def assert_equal(first, other):
    for name in ("image", "label", "mask"):
        np.testing.assert_array_equal(first[name], other[name])


# Order.


def test_every_epoch_visits_each_example_exactly_once(make):
    loader = make()
    assert (loader.num_examples, loader.steps_per_epoch) == (EXAMPLES, STEPS)
    orders = [visited(loader, epoch) for epoch in range(3)]
    assert all(sorted(order) == ALL for order in orders)
    assert len({tuple(order) for order in [*orders, ALL, visited(make(seed=1), 0)]}) == 5


def test_images_stay_with_their_labels(make):
    loader = make()
    for step in range(STEPS):
        batch = host(loader, step)
        assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
            "image": ((BATCH, 4, 4, 3), np.uint8),
            "label": ((BATCH,), np.int32),
            "mask": ((BATCH,), np.float32),
        }
        assert (batch["image"] == batch["label"][:, None, None, None]).all()


def test_evaluation_keeps_the_order_and_fills_up_the_last_batch_with_what_does_not_count(make):
    loader = make(seed=None)
    batches = [host(loader, step) for step in range(STEPS)]
    labels, mask = (np.concatenate([batch[name] for batch in batches]) for name in ("label", "mask"))
    assert labels.tolist() == [*ALL, *ALL[: STEPS * BATCH - EXAMPLES]]
    assert mask.tolist() == [1.0] * EXAMPLES + [0.0] * (STEPS * BATCH - EXAMPLES)
    assert loader._prefetcher is None  # nothing goes on running
    assert_equal(host(loader, 0), batches[0])


def test_the_batch_of_a_step_is_the_same_when_it_is_reached_directly(make):
    walking, options = make(crop_scale_min=0.1), dict(crop_scale_min=0.1)
    walked = [host(walking, step) for step in range(3 * STEPS)]
    for step in (7, 4, 5, 0):
        assert_equal(host(make(**options) if step == 7 else walking, step), walked[step])


def test_the_order_does_not_hang_on_how_many_processes_share_a_batch():
    options = dict(size=4, channels=3, num_classes=200, batch_size=36, seed=5, crop_scale_min=0.2)

    def make(first, last):
        return BatchReader(parts=tuple(parts()), rows=np.arange(first, last, dtype=np.int32), **options)

    def made(share, step):
        sample = [share(number) for number in range(step * share.chunks_per_step, (step + 1) * share.chunks_per_step)]
        assert max(len(chunk["label"]) for chunk in sample) <= batch_reader.CHUNK_SIZE
        return {name: np.concatenate([chunk[name] for chunk in sample]) for name in ("image", "label", "mask")}

    for step in (0, 3):  # two an epoch
        full = made(make(0, 36), step)
        for count in (2, 3, 4):
            width = 36 // count
            shares = [made(make(i * width, (i + 1) * width), step) for i in range(count)]
            assert_equal({name: np.concatenate([share[name] for share in shares]) for name in full}, full)


# Placement.


def test_batches_are_split_over_the_devices(make, mesh8):
    loader, alone = make(mesh=mesh8), make()
    batch, _ = loader.step_inputs(1)
    expected = host(alone, 1)
    for name, array in batch.items():
        assert array.shape == expected[name].shape
        assert len({shard.device for shard in array.addressable_shards}) == 8
        for shard in array.addressable_shards:
            assert shard.data.shape[0] == BATCH // 8
            np.testing.assert_array_equal(shard.data, expected[name][shard.index])
    out = jax.jit(loader.batch)(batch, np.int32(1))
    assert_equal(jax.device_get(out), expected)
    assert out["image"].sharding.is_equivalent_to(batch["image"].sharding, 4)


# Crops.


def test_crops_are_chosen_as_random_resized_crop_chooses_them():
    actual = np.array([random_crop(300, 300, (0, i), 0.08, 4 / 3) for i in range(4000)], float)
    top, left, height, width = actual.T
    assert (height > 0).all() and (width > 0).all() and (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 300).all() and (left + width <= 300).all()
    area, ratio = height * width / 300**2, np.log(width / height) / np.log(4 / 3)
    assert area.min() > 0.078 and np.abs(ratio).max() < 1.05
    fits = area < 0.7  # beyond that, not every shape does, and some are drawn again
    for sample, low, high in ((area[fits], 0.08, 0.7), (ratio[fits], -1, 1)):
        counts = np.histogram(sample, bins=8, range=(low, high))[0] / fits.sum()
        np.testing.assert_allclose(counts, 1 / 8, atol=0.02)
    for start, length in ((top, height), (left, width)):
        small = length < 200
        np.testing.assert_allclose((start[small] / (300 - length[small])).mean(), 0.5, atol=0.03)


@pytest.mark.parametrize(
    ("height", "width", "crop"), [(10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10)), (1, 1, (0, 0, 1, 1))]
)
def test_where_no_crop_fits_it_is_the_center(height, width, crop):
    assert random_crop(height, width, (0, 0), 0.5, 4 / 3) == crop


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 24 JPEGs of real photographs, 500 x 375 pixels, of the size that such files have."""
    root, pictures = tmp_path_factory.mktemp("photos"), datasets.load_sample_images().images
    generator = np.random.default_rng(0)
    for i in range(24):
        picture = Image.fromarray(pictures[i % 2]).resize((500, 375), box=(i, i, 600, 427))
        noisy = np.asarray(picture) + generator.normal(0, 11, (375, 500, 1))
        path = root / "train" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=92)
        assert 60_000 < path.stat().st_size < 200_000
    return root


def photo_parts(root):
    records = folder.Folder(str(root)).records("train")
    return [(records, 0, len(records))]


PHOTO = dict(batch_size=8, size=64, num_classes=2)


def test_training_images_are_random_crops_that_differ_between_epochs(make, photos):
    loader = make(records=photo_parts(photos), crop_scale_min=0.08, **PHOTO)
    observed = collections.defaultdict(set)
    order = [epoch_order(0, epoch, 24) for epoch in range(3)]
    for step in range(9):
        epoch, done = divmod(step, 3)
        for example, image in zip(order[epoch][done * 8 :], host(loader, step)["image"]):
            observed[int(example)].add(image.tobytes())
    assert all(len(images) == 3 for images in observed.values())
    full = np.stack([host(loader, step)["image"] for step in range(3)])
    assert 20 < full.mean() < 235


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_without_random_crops_images_are_those_that_resident_feeds_hold(make, photos, seed, crop_pct):
    crop_scale_min = 0.5 if seed is None else 1.0  # evaluation has no use for it
    loader = make(records=photo_parts(photos), crop_pct=crop_pct, crop_scale_min=crop_scale_min, seed=seed, **PHOTO)
    batch = host(loader, 0)
    order = np.arange(24) if seed is None else epoch_order(seed, 0, 24)
    records = photo_parts(photos)[0][0]
    for image, label, example in zip(batch["image"], batch["label"], order):
        photo = Image.open(records.path(int(example)))
        side = 375 * crop_pct
        box = ((500 - side) / 2, (375 - side) / 2, (500 + side) / 2, (375 + side) / 2)
        np.testing.assert_array_equal(image, photo.resize((64, 64), Image.Resampling.BICUBIC, box=box))
        assert label == "ab".index(records.path(int(example)).parent.name)


# Records that cannot be read.


def test_a_broken_record_stops_the_run_at_its_step_and_is_named(make):
    loader = make(seed=None, broken=[25])  # the 22nd example
    host(loader, 0)
    with pytest.raises(RunError, match=r"^record 25 of those from 0 cannot be decoded \(.+\); repair or remove it$"):
        loader.step_inputs(1)
    assert loader._prefetcher is None
    assert host(loader, 0)["label"][0] == 3  # and the feed is of use still


def test_a_broken_record_is_skipped_where_that_is_asked_for(make, capfd):
    loader = make(broken=[4, 25, 39], on_corrupt="skip")  # the last is outside the split
    assert sorted(visited(loader, 0)) == sorted(set(ALL) - {4, 25})
    assert sorted(visited(loader, 1)) == sorted(set(ALL) - {4, 25})
    assert loader.unreadable == {f"record {i} of those from 0" for i in (4, 25)}
    lines = [line.split(" cannot")[0] for line in capfd.readouterr().err.splitlines()]
    assert sorted(lines) == [f"skipped: record {i} of those from 0" for i in (25, 4)]


def test_what_is_skipped_is_black_and_does_not_count(make):
    batch = host(make(broken=[5], on_corrupt="skip", seed=None), 0)
    assert batch["mask"].tolist() == [1, 1, 0] + [1] * 13
    assert batch["image"][2].max() == 0
    assert batch["label"][2] == 0


def test_whatever_a_decoder_raises_is_about_the_record(make, monkeypatch):
    def raises(data):
        if data == b"broken":
            raise NotImplementedError("a\nb")
        return opens(data)

    opens = decode._open
    monkeypatch.setattr(decode, "_open", raises)
    loader = make(seed=None, broken=[3])  # the first of a part, which is read to see its label
    with pytest.raises(RunError, match=r"^record 3 of those from 0 cannot be decoded \(NotImplementedError: a b\)"):
        loader.step_inputs(0)
    assert host(make(seed=None, broken=[3], on_corrupt="skip"), 0)["mask"].tolist() == [0] + [1] * 15


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("batch_size", [4, 16, 45])
def test_where_no_record_can_be_read_skipping_does_not_hide_it(make, batch_size, seed):
    nothing = [(Numbered(0, 400, range(400)), 0, 400)]
    loader = make(records=nothing, on_corrupt="skip", seed=seed, batch_size=batch_size, num_classes=400)
    first = 0 if seed is None else epoch_order(0, 0, 400)[0]
    expected = f"64 records in a row cannot be read, and are too many to skip; the first: record {first} of"
    with pytest.raises(RunError, match=expected):
        for step in range(100):
            loader.step_inputs(step)
    assert step == 63 // batch_size
    assert len(loader.unreadable) == 64


def test_a_split_smaller_than_that_is_stopped_when_none_of_it_can_be_read(make):
    loader = make(records=[(Numbered(0, 5, range(5)), 0, 5)], on_corrupt="skip", batch_size=4)
    loader.step_inputs(0)
    with pytest.raises(RunError, match="5 records in a row cannot be read"):
        loader.step_inputs(1), loader.step_inputs(2), loader.step_inputs(3)
    most = make(records=[(Numbered(0, 4, [1, 2, 3]), 0, 4)], on_corrupt="skip", batch_size=2)
    for step in range(40):  # some of them twice in a row
        most.step_inputs(step)


def test_an_interrupt_while_closing_is_raised_when_all_is_closed(make):
    def path(arrays):
        busy.set()
        done.wait(10)
        return arrays

    busy, done = threading.Event(), threading.Event()
    made = prefetch.Prefetcher(make()._reader, 0, 9, 0, path)
    assert busy.wait(10)

    def interrupt_thrice():  # one after the other, however busy the machine is, and only then is `place` done
        for _ in range(3):
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        done.set()

    with pytest.raises(KeyboardInterrupt):
        threading.Thread(target=interrupt_thrice).start()
        made.close()
    assert done.is_set() and made._ended.is_set()


def test_a_label_outside_the_classes_is_an_error_that_names_the_record(make):
    with pytest.raises(UserError, match=r"record 0 of those from 100 has no label, or one outside the 50 classes"):
        make(num_classes=50)
    loader = make(records=[(Numbered(0, 40), 0, 40)], num_classes=30, seed=None)
    with pytest.raises(UserError, match=r"record 30 of those from 0 has no label"):
        host(loader, 0), host(loader, 1)


def test_a_file_that_is_gone_is_named(make, tmp_path):
    for i in range(4):
        path = tmp_path / "train/a" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    loader = make(records=photo_parts(tmp_path), batch_size=4, seed=None)
    (tmp_path / "train/a/2.png").unlink()
    with pytest.raises(RunError, match=r"2\.png cannot be read \(No such file or directory\); repair or remove it"):
        loader.step_inputs(0)


def test_digits_are_refused(make):
    with pytest.raises(UserError, match=r"always on the device; set config\.dataset\.loader=on_device"):
        make(records=[(digits.Digits().records("train"), 0, 100)], channels=1)


# Worker processes.


def workers_of(pid):
    """Processes that another one started, by what it runs."""
    table = subprocess.run(["ps", "-wwAo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in table.splitlines()]
    return [int(child) for child, parent, args in rows if int(parent) == pid and "spawn_main" in args]


@pytest.mark.slow
def test_workers_give_what_threads_give_and_end_when_closed(make, photos):
    options = PHOTO | dict(records=photo_parts(photos), crop_scale_min=0.08, batch_size=72)  # three chunks a step
    loader, threads = make(num_workers=2, **options), make(**options)
    for step in (4, 5):
        assert_equal(host(loader, step), host(threads, step))
    assert len(workers_of(os.getpid())) == 2
    loader.close()
    assert workers_of(os.getpid()) == []


@pytest.mark.slow
def test_an_evaluation_leaves_no_shared_memory_to_the_garbage_collection(make, photos):
    def held():
        kinds = (shared_memory.SharedMemory, prefetch.Prefetcher)
        return sum(isinstance(thing, kinds) for thing in gc.get_objects())

    loader = make(num_workers=2, records=photo_parts(photos), seed=None, **PHOTO)
    gc.collect()
    gc.disable()
    try:
        before = held()
        for step in range(3):
            host(loader, step)
        assert held() == before
    finally:
        gc.enable()


@pytest.mark.slow
def test_workers_initialize_no_backend_and_load_no_tensorflow_and_a_failure_there_is_one_error(
    make, photos, tmp_path, monkeypatch
):
    (tmp_path / "spy.py").write_text(
        textwrap.dedent("""
        import multiprocessing, os, signal, sys
        import jax
        from patchnets.data.sources.folder import FolderRecords

        class Spy(FolderRecords):
            how = "tell"

            def encoded(self, position):
                if multiprocessing.parent_process() is None:
                    return super().encoded(position)
                if self.how == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                loaded = [m for m in ("tensorflow", "tensorflow_datasets", "sklearn") if m in sys.modules]
                backend = False
                try:
                    jax.config.update("jax_num_cpu_devices", 3)
                except RuntimeError:  # too late, as a backend is initialized
                    backend = True
                raise ZeroDivisionError(f"loaded: {loaded}, backend: {backend}")
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    import spy

    ((records, low, high),) = photo_parts(photos)
    records.__class__ = spy.Spy
    loader = make(records=[(records, low, high)], num_workers=1, **PHOTO)
    assert len(pickle.dumps(loader._reader)) < 4000
    with pytest.raises(RunError, match=r"^reading images failed \(ZeroDivisionError: loaded: \[\], backend: False\)$"):
        loader.step_inputs(0)
    records.how = "die"
    expected = (
        "reading images failed: a worker was ended by SIGKILL; memory may be short: set fewer "
        "config.dataset.num_workers"
    )
    with pytest.raises(RunError, match=f"^{expected}$"):
        loader.step_inputs(0)
    assert workers_of(os.getpid()) == []


TINY = dict(batch_size=8, size=16, num_classes=2)
PROGRAM = """
import json, os, sys
index, count, port = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
import jax
import numpy as np
if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator_address=f"localhost:{port}", num_processes=count, process_id=index)
from patchnets.data.sources import folder
from patchnets.parallel import mesh as mesh_lib
from patchnets.data.streaming import StreamingLoader
records = folder.Folder(sys.argv[1]).records("train")
mesh = mesh_lib.arrange_devices(jax.devices(), (jax.device_count(), 1))
loader = StreamingLoader([(records, 0, 24)], mesh=mesh, batch_size=8, size=16, channels=3, num_classes=2, seed=0,
                     crop_scale_min=0.1, num_workers=int(sys.argv[5]))
shards, sums = [], []
for step in range(6):
    batch = loader.step_inputs(step)[0]
    assert batch["image"].shape == (8, 16, 16, 3)
    shards.append([[s.index[0].start or 0, np.asarray(s.data, int).sum(axis=(1, 2, 3)).tolist()]
                   for s in batch["image"].addressable_shards])
    sums.append(int(jax.jit(lambda b: loader.batch(b, step)["image"].astype("int32").sum())(batch)))
print(json.dumps([len(jax.devices()), shards, sums]), flush=True)
if sys.argv[6:]:
    sys.stdin.read()  # until it is killed; the workers are running
loader.close()
"""


def start(photos, index, count, devices, workers=0, *more, port=0):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, "-c", PROGRAM, photos, index, count, port, workers, *more]
    pipe = subprocess.PIPE
    return subprocess.Popen(list(map(str, command)), env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_two_processes_share_the_batches_of_one(make, photos):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = [start(photos, i, 2, 2, port=port) for i in range(2)]
    alone = make(
        mesh=mesh_lib.arrange_devices(jax.devices()[:4], (4, 1)),
        records=photo_parts(photos),
        crop_scale_min=0.1,
        **TINY,
    )
    expected = [host(alone, step)["image"].astype(int).sum(axis=(1, 2, 3)) for step in range(6)]
    actual = []
    for process in running:
        out, error = process.communicate(timeout=100)
        assert process.returncode == 0, error
        actual.append(json.loads(out.splitlines()[-1]))
    (devices, first, sums), (_, second, other_sums) = actual
    assert devices == 4
    assert sums == other_sums == [int(images.sum()) for images in expected]  # of all devices, in a compiled function
    for single, other, images in zip(first, second, expected):
        assert len(single) == len(other) == 2
        assert sorted(single + other) == [[low, images[low : low + 2].tolist()] for low in (0, 2, 4, 6)]


@pytest.mark.slow
def test_workers_end_with_a_program_that_is_killed(photos):
    process = start(photos, 0, 1, 1, 1, "wait")
    assert process.stdout.readline().startswith("[1,")
    (worker,) = workers_of(process.pid)
    process.kill()
    process.communicate(timeout=20)
    assert ends(worker, 10)


def ends(pid, seconds):
    """Whether a process ends within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)  # asks only whether it is there
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_workers_end_with_a_program_that_is_killed_before_they_have_started(photos):
    process = start(photos, 0, 1, 1, 1, "wait")
    while not (started := workers_of(process.pid)):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=20)
    assert ends(started[0], 60)


@pytest.mark.slow
def test_signals_to_all_processes_leave_the_workers_at_work(make, photos):
    def signal_all():
        while not done.wait(0.02):
            for worker in workers_of(os.getpid()):
                for number in (signal.SIGINT, signal.SIGTERM):
                    os.kill(worker, number)
                    sent.append(worker)

    done, sent = threading.Event(), []
    thread = threading.Thread(target=signal_all)
    thread.start()
    try:
        loader = make(records=photo_parts(photos), num_workers=1, **TINY)
        for step in range(3):
            host(loader, step)
    finally:
        done.set()
        thread.join()
    assert len(sent) > 4


@pytest.mark.slow
def test_a_program_that_forgets_to_close_ends_in_good_order(photos):
    command = [sys.executable, "-c", PROGRAM.replace("loader.close()", ""), str(photos), "0", "1", "0", "1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
