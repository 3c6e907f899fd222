"""TFDS data sets are prepared from an archive placed by hand, read without TensorFlow, and fail in one clear line."""

import importlib.util
import io
import json
import os
import pathlib
import pickle
import resource
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from patchnets.data import decoded_cache, splits
from patchnets.data.sources import tfds as tfds_lib
from patchnets.errors import RunError, UserError

pytestmark = pytest.mark.slow  # TensorFlow, which prepares the data set, takes seconds to import

REPOSITORY = pathlib.Path(tfds_lib.__file__).parents[3]
URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
ARCHIVE = "cifar-100-binary.tar.gz"
FINE = [f"fine_{i:02}" for i in range(100)]
COARSE = [f"coarse_{i:02}" for i in range(20)]


needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="preparing a data set needs TensorFlow"
)


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    """No test reaches out: connections fail at once, and TFDS knows no community data sets, whose list is elsewhere."""

    def refuse(*_, **__):
        raise OSError(101, "Network is unreachable")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))  # TensorFlow imports it, which writes there
        patch.setattr(socket, "create_connection", refuse)
        patch.setattr(urllib.request, "getproxies", dict)
        patch.setattr(tfds.core.visibility.DatasetType, "is_available", lambda kind: "COMMUNITY" not in kind.name)
        yield


def cifar(count, seed):
    """Images, fine and coarse labels of a made-up part of CIFAR-100."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return images, generator.integers(0, 100, count), generator.integers(0, 20, count)


PARTS = {"train": cifar(150, 0), "test": cifar(30, 1)}


def place_archive(data_dir):
    """An archive in CIFAR-100's binary layout, in the folder for archives that were fetched by hand."""
    path = data_dir / "downloads/manual" / ARCHIVE
    path.parent.mkdir(parents=True)
    files = {"fine_label_names.txt": "\n".join(FINE).encode(), "coarse_label_names.txt": "\n".join(COARSE).encode()}
    for split, (images, fine, coarse) in PARTS.items():
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), 3072)  # all red, all green, all blue
        files[f"{split}.bin"] = np.column_stack([coarse, fine, planes]).astype(np.uint8).tobytes()
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"cifar-100-binary/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    pytest.importorskip("tensorflow", reason="preparing a data set needs TensorFlow")
    """CIFAR-100, prepared by open_tfds from the archive placed by hand, as if TFDS knew its checksum."""
    path = tmp_path_factory.mktemp("tfds")
    archive = place_archive(path)
    with pytest.MonkeyPatch.context() as patch:
        known = tfds.builder_cls("cifar100").url_infos
        patch.setitem(known, URL, tfds.core.download.checksums.compute_url_info(archive))
        tfds_lib.open_tfds("cifar100", str(path))
    archive.unlink()  # from here on nothing can be prepared, only read
    return path


@pytest.fixture(scope="module")
def source(data_dir):
    return tfds_lib.open_tfds("cifar100", str(data_dir))


def examples(source, split):
    records = source.records(split)
    images, labels = zip(*records.examples(range(len(records))))
    return np.stack(images), np.array(labels)


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


# Reading.


def test_what_the_source_states_is_what_the_archive_holds(source):
    assert (source.name, source.channels) == ("cifar100", 3)
    assert source.class_names == tuple(FINE)
    assert dict(source.sizes) == {"train": 150, "test": 30}
    assert source.records("train").native_size() == 32
    assert source.version.startswith(f"{tfds.builder_cls('cifar100').VERSION}-")


@pytest.mark.parametrize("split", ["train", "test"])
def test_pixels_and_fine_labels_are_exactly_those_of_the_archive(source, split):
    images, labels = examples(source, split)
    assert images.dtype == np.uint8
    expected = sorted((image.tobytes(), int(fine)) for image, fine in zip(*PARTS[split][:2]))
    assert sorted((image.tobytes(), int(label)) for image, label in zip(images, labels)) == expected


def test_the_order_and_the_slices_are_those_of_tfds(source, data_dir):
    images, labels = examples(source, "train")
    builder = tfds.builder("cifar100", data_dir=data_dir)
    for spec in ("train", "train[25%:61%]", "train[-20:]"):
        ((_, low, high),) = splits.parse_split(spec, source.sizes)
        rows = builder.as_data_source(split=spec)
        assert len(rows) == high - low
        np.testing.assert_array_equal(images[low:high], [row["image"] for row in rows])
        np.testing.assert_array_equal(labels[low:high], [row["label"] for row in rows])


def test_records_are_read_by_position_in_any_order(source):
    images, labels = examples(source, "train")
    for i, (image, label) in zip([70, 2, 149, 2], source.records("train").examples([70, 2, 149, 2])):
        np.testing.assert_array_equal(image, images[i])
        assert label == labels[i]


def test_a_prepared_data_set_goes_through_the_cache_unchanged(source, tmp_path):
    images, labels, _ = decoded_cache.load_or_decode(source, "train", 64, tmp_path, 2.0**30)
    expected = examples(source, "train")
    np.testing.assert_array_equal(images, expected[0])
    np.testing.assert_array_equal(labels, expected[1])


def test_tensorflow_is_needed_to_prepare_and_not_to_read(source, data_dir, tmp_path):
    program = """
import importlib.machinery, json, sys, zlib
class WithoutTensorFlow(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "tensorflow" else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = WithoutTensorFlow
from patchnets.data.sources import tfds
from patchnets.errors import UserError
found = tfds.open_tfds("cifar100", sys.argv[1])
records = found.records("train")
images, labels = zip(*records.examples(range(len(records))))
try:
    tfds.open_tfds("cifar10", sys.argv[2])
except UserError as error:
    message = str(error)
assert "tensorflow" not in sys.modules
print(json.dumps([zlib.crc32(b"".join(i.tobytes() for i in images)), labels, list(found.class_names), message]))
"""
    command = [sys.executable, "-c", program, str(data_dir), str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    checksum, labels, class_names, message = json.loads(done.stdout.splitlines()[-1])
    expected = examples(source, "train")
    assert checksum == zlib.crc32(expected[0].tobytes())
    assert labels == expected[1].tolist()
    assert class_names == FINE
    assert all(word in message for word in ("cifar10 is not prepared", str(tmp_path), "pip install tensorflow"))
    assert "\n" not in message


def test_runs_on_digits_folders_and_prepared_data_sets_need_no_tensorflow(data_dir, tmp_path):
    for i in range(40):
        path = tmp_path / "photos" / ("train" if i < 32 else "test") / f"class_{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 6 * i, np.uint8)).save(path)
    program = f"""
import importlib.machinery, sys
class WithoutTensorFlow(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in ("tensorflow", "keras") else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = WithoutTensorFlow
from patchnets import main
small = ["model.depth=1", "model.hidden_dim=16", "model.tokens_mlp_dim=8", "model.channels_mlp_dim=8", "image_size=8",
         "augment.zoom=0", "augment.translate=0", "schedule.warmup_epochs=0", "total_epochs=1", "mesh.data=1",
         "batch_size=32"]
for name, options in dict(
    digits=[],
    folder=["dataset.path={tmp_path}/photos", "dataset.loader=streaming", "dataset.num_workers=0"],
    cifar100=["dataset.data_dir={data_dir}", "dataset.cache_dir={tmp_path}/cache"],
).items():
    keys = [*small, "dataset.name=" + name, *options]
    arguments = ["--config=configs/mixer_digits.py:paper", "--workdir={tmp_path}/" + name]
    assert main.main(["", *arguments, *("--config." + key for key in keys)]) == 0
assert not [name for name in sys.modules if name.split(".")[0] in ("tensorflow", "keras")]
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    for name in ("digits", "folder", "cifar100"):
        assert (tmp_path / name / "summary.json").exists() and list((tmp_path / name).glob("events.out.tfevents.*"))


# Reading without decoding, as workers do.


def test_records_are_given_encoded_with_their_labels_and_names(source):
    records = source.records("train")
    images, labels = examples(source, "train")
    for position in (0, 77, 149):
        data, label = records.encoded(position)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), images[position])
        assert label == labels[position]
    assert records.name_of(77) == "record 77 of cifar100/3.0.2 train"


def test_the_fingerprint_tells_splits_and_versions_apart_wherever_they_lie(source, data_dir, tmp_path):
    shutil.copytree(data_dir / "cifar100", tmp_path / "cifar100")
    moved = tfds_lib.open_tfds("cifar100", str(tmp_path))
    overwrite(next((tmp_path / "cifar100").rglob("cifar100-train.array_record*")))  # no record is read
    train, test = (source.records(split).fingerprint() for split in ("train", "test"))
    assert [moved.records(split).fingerprint() for split in ("train", "test")] == [train, test]
    records = source.records("train")
    records.name = records.name.replace("3.0.2", "3.0.3")
    fewer = source.records("train")
    fewer.shard_lengths = [length - 1 for length in fewer.shard_lengths]
    assert len({train, test, records.fingerprint(), fewer.fingerprint()}) == 4


def test_a_worker_reads_them_without_tensorflow(source, data_dir):
    records = source.records("train")
    records.encoded(0)  # a file is open
    program = """
import pickle, sys
records = pickle.loads(sys.stdin.buffer.read())
sys.stdout.buffer.write(pickle.dumps([records.encoded(i) for i in range(len(records))]))
assert "tensorflow" not in sys.modules
"""
    command = [sys.executable, "-c", program]
    pickled = pickle.dumps(records)
    assert len(pickled) < 2000
    done = subprocess.run(command, cwd=REPOSITORY, input=pickled, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert pickle.loads(done.stdout) == [records.encoded(i) for i in range(150)]


def test_as_many_files_may_be_open_as_there_are_shards():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = limits[1] if limits[1] != resource.RLIM_INFINITY else 1536
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, limits[1]))
        tfds_lib.allow_open_files(1024)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(1536, hard)
        tfds_lib.allow_open_files(1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(1536, hard)  # and never lowered
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# Other data sets, defined here.


@pytest.fixture(scope="module")
def gray_builder():
    """A data set of gray images of unlike sizes that needs no download."""

    class TinyGrayPictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.0")
        SHAPE = (None, None, 1)

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=self.SHAPE, encoding_format="png"),
                "label": tfds.features.ClassLabel(num_classes=3),
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(9)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"image": np.full((4 + i % 2, 5, 1), 20 * i, np.uint8), "label": i % 3}

    return TinyGrayPictures


def prepared(builder_class, data_dir, file_format):
    builder = builder_class(data_dir=data_dir, file_format=file_format)
    builder.download_and_prepare()
    return builder


@needs_tensorflow
def test_gray_images_of_unlike_sizes_are_read_and_resized(gray_builder, tmp_path):
    prepared(gray_builder, tmp_path, "array_record")
    source = tfds_lib.open_tfds("tiny_gray_pictures", str(tmp_path))
    records = source.records("train")
    assert source.version.startswith("1.2.0-")
    assert (source.channels, source.class_names) == (1, ("0", "1", "2"))
    assert records.native_size() is None
    assert sorted((int(image.flat[0]), label) for image, label in records.examples(range(9))) == [
        (20 * i, i % 3) for i in range(9)
    ]
    assert {image.shape for image, _ in records.examples(range(9))} == {(4, 5, 1), (5, 5, 1)}
    assert {image.shape for image, _ in records.examples(range(9), 6)} == {(6, 6, 1)}


@needs_tensorflow
def test_images_of_one_size_that_are_no_squares_have_no_uniform_side(gray_builder, tmp_path):
    class TinyWidePictures(gray_builder):
        SHAPE = (4, 5, 1)

        def _generate_examples(self, count):
            yield 0, {"image": np.zeros((4, 5, 1), np.uint8), "label": 0}

    prepared(TinyWidePictures, tmp_path, "array_record")
    source = tfds_lib.open_tfds("tiny_wide_pictures", str(tmp_path))
    assert source.records("train").native_size() is None
    assert decoded_cache.load_or_decode(source, "train", 8, tmp_path / "cache", 2.0**30)[0].shape == (1, 8, 8, 1)


@needs_tensorflow
def test_a_data_set_prepared_as_tfrecord_alone_is_an_error_that_says_what_to_do(gray_builder, tmp_path):
    prepared(gray_builder, tmp_path, "tfrecord")
    with pytest.raises(UserError) as error:
        tfds_lib.open_tfds("tiny_gray_pictures", str(tmp_path))
    message = one_line(error)
    assert all(word in message for word in (str(tmp_path), "tfrecord", "array_record", "config.dataset.data_dir"))


@needs_tensorflow
def test_a_data_set_without_downloads_is_prepared(gray_builder, tmp_path):
    source = tfds_lib.open_tfds("tiny_gray_pictures", str(tmp_path))
    assert dict(source.sizes) == {"train": 9}


# Damage.


def copy_of(data_dir, path):
    shutil.copytree(data_dir / "cifar100", path / "cifar100")
    (file,) = (path / "cifar100").rglob("cifar100-train.array_record*")
    return file


def assert_cannot_be_read(path):
    with pytest.raises(RunError) as error:
        examples(tfds_lib.open_tfds("cifar100", str(path)), "train")
    assert "cifar100/3.0.2 train" in one_line(error)


def overwrite(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    file.write_bytes(content)


def cut_in_half(file):
    os.truncate(file, file.stat().st_size // 2)


def cut_to_its_first_block(file):
    os.truncate(file, 1 << 16)


@pytest.mark.parametrize(
    "damage",
    [
        overwrite,
        pathlib.Path.unlink,
        cut_in_half,
        cut_to_its_first_block,
    ],
    ids=["overwritten", "gone", "cut in half", "cut to its first block"],
)
def test_a_damaged_record_file_is_an_error_that_names_the_split(data_dir, tmp_path, damage):
    damage(copy_of(data_dir, tmp_path))
    assert_cannot_be_read(tmp_path)


@pytest.mark.parametrize("damage", [overwrite, pathlib.Path.unlink, cut_in_half])
def test_each_record_that_damage_has_reached_is_named(data_dir, tmp_path, damage):
    full = tfds_lib.open_tfds("cifar100", str(data_dir)).records("train")
    damage(copy_of(data_dir, tmp_path))
    records = tfds_lib.open_tfds("cifar100", str(tmp_path)).records("train")
    assert len(records) == 150
    failed = []
    for position in range(150):
        try:
            assert records.encoded(position) == full.encoded(position)
        except RunError as error:
            failed.append(position)
            assert str(error).startswith(f"record {position} of cifar100/3.0.2 train cannot be read (")
            assert "\n" not in str(error)
    assert failed


# What cannot be had.


@needs_tensorflow
def test_an_archive_with_a_wrong_checksum_is_an_error_that_names_the_file(tmp_path):
    archive = place_archive(tmp_path)
    with pytest.raises(UserError) as error:
        tfds_lib.open_tfds("cifar100", str(tmp_path))
    message = one_line(error)
    assert all(word in message for word in ("cifar100", ARCHIVE, "remove it"))
    assert archive.exists()
    assert not any(path.name == "dataset_info.json" for path in (tmp_path / "cifar100").rglob("*"))


@needs_tensorflow
def test_without_archive_and_network_the_error_says_quickly_what_to_do(tmp_path):
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        tfds_lib.open_tfds("cifar100", str(tmp_path))
    assert time.monotonic() - started < 15
    message = one_line(error)
    wanted = (
        URL,
        ARCHIVE,
        str(tmp_path / "downloads/manual"),
        "--config.dataset.name=folder",
        "Network is unreachable",
    )
    assert all(word in message for word in wanted), message


@needs_tensorflow
def test_an_error_while_connecting_does_not_stop_a_later_attempt(tmp_path, monkeypatch):
    with pytest.raises(UserError):
        tfds_lib.open_tfds("cifar100", str(tmp_path))
    archive = place_archive(tmp_path)
    known = tfds.builder_cls("cifar100").url_infos
    monkeypatch.setitem(known, URL, tfds.core.download.checksums.compute_url_info(archive))
    assert dict(tfds_lib.open_tfds("cifar100", str(tmp_path)).sizes) == {"train": 150, "test": 30}


@pytest.mark.parametrize(("name", "near"), [("cifar1000", "cifar100"), ("mnistt", "mnist"), ("digit", "digits")])
def test_an_unknown_name_is_an_error_with_near_matches(tmp_path, name, near):
    with pytest.raises(UserError) as error:
        tfds_lib.open_tfds(name, str(tmp_path))
    message = one_line(error)
    assert f"config.dataset.name={name!r}" in message
    assert near in message.split("did you mean ")[1].rstrip("?").split(" or ")


def test_a_name_like_no_other_is_an_error_that_says_what_is_expected(tmp_path):
    with pytest.raises(UserError) as error:
        tfds_lib.open_tfds("qqqqqqqqqq", str(tmp_path))
    assert all(word in one_line(error) for word in ("digits", "folder", "TFDS"))


@needs_tensorflow
@pytest.mark.parametrize("name", ["imdb_reviews", "coco"])
def test_a_data_set_that_is_not_for_image_classification_is_an_error(tmp_path, name):
    with pytest.raises(UserError, match="not for image classification") as error:
        tfds_lib.open_tfds(name, str(tmp_path))
    assert name in one_line(error)
    assert list(tmp_path.iterdir()) == []  # nothing was downloaded to find out


@pytest.mark.parametrize("name", ["cifar10/no_such_config", "not a name", ""])
def test_a_name_that_tfds_refuses_is_an_error_that_quotes_it(tmp_path, name):
    with pytest.raises(UserError) as error:
        tfds_lib.open_tfds(name, str(tmp_path))
    assert f"config.dataset.name={name!r}" in one_line(error)


def test_a_version_that_does_not_exist_is_an_error_that_quotes_it(tmp_path):
    with pytest.raises(UserError) as error:
        tfds_lib.open_tfds("cifar10:9.9.9", str(tmp_path))
    assert "9.9.9" in one_line(error)


@needs_tensorflow
def test_a_data_set_that_must_be_fetched_by_hand_is_an_error_that_names_the_place(tmp_path):
    with pytest.raises(UserError) as error:
        tfds_lib.open_tfds("imagenet2012", str(tmp_path))
    assert all(word in one_line(error) for word in ("imagenet2012", str(tmp_path / "downloads/manual")))
