"""The range of values is that of the training split, measured once, and the same wherever images are decoded."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from tiff_files import tiff

from patchnets import data
from patchnets.augment.preprocess import Augment
from patchnets.data import decode, value_range
from patchnets.data.options import DataOptions
from patchnets.data.sources import folder
from patchnets.errors import UserError
from patchnets.inference import images as images_lib
from patchnets.run import workdir
from patchnets.run.model_spec import ModelSpec

SIZE = 8


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)


def picture(low, high, seed=0, dtype=np.uint16, channels=None):
    """Random values of which the lowest and the highest occur."""
    shape = (SIZE, SIZE) if channels is None else (SIZE, SIZE, channels)
    values = np.random.default_rng(seed).uniform(low, high, shape)
    values[0, 0], values[0, 1] = low, high
    return values.astype(dtype)


@pytest.fixture
def scans(tmp_path):
    """Twelve bits in 16-bit PNGs: train from 100 to 3,000, val from 50 to 4,000."""
    for i in range(6):
        save(tmp_path / f"train/{'ab'[i % 2]}/{i}.png", picture(100 + i, 3000 - i, i))
    save(tmp_path / "val/a/x.png", picture(50, 4000))
    return tmp_path


def options_of(root, **values):
    return DataOptions(
        "folder", str(root), image_size=SIZE, batch_size=2, num_workers=0, cache_dir=str(root / "cache"), **values
    )


def held(dataset):
    return np.asarray(dataset.train.step_inputs(0)[0].images)


@pytest.mark.parametrize("loader", ["on_device", "streaming"])
def test_the_lowest_and_highest_value_of_train_become_the_ends_of_all_levels(scans, mesh1, capsys, loader):
    loaded = data.load_dataset(options_of(scans, loader=loader), mesh1)
    assert loaded.value_ranges == ((100.0, 3000.0),)
    assert loaded.fingerprint["value_ranges"] == [[100.0, 3000.0]]
    lines = capsys.readouterr().out.splitlines()
    scaled = "values from 100 to 3,000, the range in train, become levels 0 to 255, kept in 16 bits"
    assert f"images of more than 8 bits: {scaled}" in lines
    assert not any("WARNING: nearly" in line for line in lines)
    steps = range(loaded.train.steps_per_epoch)
    batches = [loaded.train.batch(loaded.train.step_inputs(step)[0], np.int32(step))["image"] for step in steps]
    images = np.concatenate(batches)
    assert (images.min(), images.max()) == (0, 65535) and len(np.unique(images)) > 250
    original = np.asarray(Image.open(scans / "train/a/2.png")).astype(float)
    expected = np.floor((original - 100) / 2900 * 65535 + 0.5).astype(np.uint16)
    assert any(np.array_equal(image[..., 0], expected) for image in images)
    val = np.asarray(loaded.val.batch(loaded.val.step_inputs(0)[0], np.int32(0))["image"])[0, ..., 0]
    assert val[0, 0] == 0 and val[0, 1] == 65535  # beyond the range of train
    loaded.close()


def test_only_the_training_split_counts(scans, mesh1):
    records = folder.Folder(str(scans)).records("train")
    numbers = [int(records.path(i).stem) for i in range(6)]
    used = numbers[:3]
    loaded = data.load_dataset(options_of(scans, train_split="train[:3]"), mesh1)
    assert loaded.value_ranges == ((100.0 + min(used), 3000.0 - min(used)),)


def test_it_is_measured_once(scans, mesh1, monkeypatch, capsys):
    first = data.load_dataset(options_of(scans), mesh1)
    monkeypatch.setattr(decode, "deep_values", lambda data: pytest.fail("read again"))
    capsys.readouterr()
    again = data.load_dataset(options_of(scans), mesh1)
    assert again.value_ranges == first.value_ranges and "100 to 3,000" in capsys.readouterr().out
    np.testing.assert_array_equal(held(first), held(again))
    assert json.loads(json.dumps(first.fingerprint)) == again.fingerprint
    for path in (scans / "cache/value_ranges").iterdir():
        path.write_text("{")
    with pytest.raises(pytest.fail.Exception):
        data.load_dataset(options_of(scans), mesh1)


def test_changed_images_are_measured_again_and_are_another_data_set(scans, mesh1):
    first = data.load_dataset(options_of(scans), mesh1)
    save(scans / "train/a/0.png", picture(100, 5000))
    other = data.load_dataset(options_of(scans), mesh1)
    assert other.value_ranges == ((100.0, 5000.0),)
    assert "value_ranges" in workdir.changed_data(first.fingerprint, other.fingerprint)


def test_images_of_more_than_eight_bits_that_only_other_splits_have_are_named(scans, mesh1, capsys):
    """Their range is not that of train, which is why 12 of 16 bits would be nearly black."""
    for path in (scans / "train").rglob("*.png"):
        Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(path)
    line = "val has images of more than 8 bits, with values from"
    data.load_dataset(options_of(scans), mesh1)
    assert line in capsys.readouterr().out
    source = value_range.with_measured_ranges(options_of(scans).open_source())
    assert line in capsys.readouterr().out and source.rules.value_ranges is None
    data.load_dataset(options_of(scans), mesh1)
    assert line in capsys.readouterr().out  # from the cache
    data.load_dataset(options_of(scans, val_split="none"), mesh1)
    assert line not in capsys.readouterr().out


def test_a_range_that_is_configured_counts(scans, mesh1, capsys):
    measured = held(data.load_dataset(options_of(scans), mesh1))
    loaded = data.load_dataset(options_of(scans, value_range=(0, 4095)), mesh1)
    assert loaded.value_ranges == ((0.0, 4095.0),)
    assert "values from 0 to 4,095, config.dataset.value_range, become" in capsys.readouterr().out
    assert held(loaded).min() > 0 and not np.array_equal(held(loaded), measured)


@pytest.mark.parametrize("value", [(1,), (3, 1), (1, 1), (0, float("inf")), ("a", "b"), (0, 1, 2)])
def test_what_is_no_range_is_refused(value):
    with pytest.raises(UserError, match="value_range="):
        DataOptions(value_range=value)


def test_images_are_measured_by_their_content_and_not_by_their_name(scans, mesh1, capsys):
    for path in list((scans / "train").rglob("*.png")):
        path.rename(path.with_suffix(".jpg"))
    Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(scans / "train/a/jpeg.jpg")
    loaded = data.load_dataset(options_of(scans), mesh1)
    assert loaded.value_ranges == ((100.0, 3000.0),) and loaded.level_bits == 16
    assert "values from 100 to 3,000" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_images_of_eight_bits_have_no_range(tmp_path, mesh1, capsys, suffix):
    for i in range(2):
        save(tmp_path / f"train/{'ab'[i]}/{i}.{suffix}", picture(0, 255, i, np.uint8, 3))
    loaded = data.load_dataset(options_of(tmp_path, val_split="none"), mesh1)
    assert loaded.value_ranges is None and "value_ranges" not in loaded.fingerprint
    assert "8 bits" not in capsys.readouterr().out
    expected = {folder.Folder(str(tmp_path)).version}
    assert {path.name.split("-")[1] for path in (tmp_path / "cache/data").glob("folder-*")} == expected


def test_extreme_values_that_leave_few_levels_to_the_others_are_named(tmp_path, mesh1, capsys):
    """As where elevations have -9,999 for none."""
    for i in range(4):
        array = picture(200, 900, i, np.float32)
        array[3, 3] = -9999 if i == 2 else 500
        save(tmp_path / f"train/{'ab'[i % 2]}/{i}.tif", array)
    options = options_of(tmp_path, val_split="none")
    data.load_dataset(options, mesh1)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "nearly all values" in line]
    assert line.startswith("WARNING: nearly all values lie between ") and "config.dataset.value_range=(" in line
    low, high = map(float, line.split("value_range=(")[1].rstrip(")").split(","))
    assert 150 < low < 300 and 800 < high < 901
    loaded = data.load_dataset(dataclasses.replace(options, value_range=(low, high)), mesh1)
    assert len(np.unique(held(loaded))) > 100 and "nearly" not in capsys.readouterr().out


def test_float_images_are_gray_and_have_the_range_of_their_values(tmp_path, mesh1):
    for i in range(4):
        save(tmp_path / f"train/{'ab'[i % 2]}/{i}.tiff", picture(-0.5, 0.5, i, np.float32))
    loaded = data.load_dataset(options_of(tmp_path, val_split="none"), mesh1)
    assert loaded.channels == 1 and loaded.value_ranges == ((-0.5, 0.5),)
    assert (held(loaded).min(), held(loaded).max()) == (0, 65535)


# Arrays of many channels.


@pytest.fixture
def bands(tmp_path):
    """Arrays of five channels, the last of values a thousand times as large."""
    for i in range(4):
        array = picture(0, 1, i, np.float32, 5)
        array[..., 4] *= 1000
        save(tmp_path / f"train/{'ab'[i % 2]}/{i}.npy", array)
    return tmp_path


@pytest.mark.parametrize("loader", ["on_device", "streaming"])
def test_arrays_have_any_number_of_channels_each_with_its_range(bands, mesh1, loader):
    loaded = data.load_dataset(options_of(bands, val_split="none", loader=loader, augment=Augment(flip=True)), mesh1)
    assert loaded.channels == 5 and loaded.value_ranges == ((0.0, 1.0),) * 4 + ((0.0, 1000.0),)
    image = np.asarray(loaded.train.batch(loaded.train.step_inputs(0)[0], np.int32(0))["image"])
    assert image.shape == (2, SIZE, SIZE, 5)
    assert all(len(np.unique(image[..., c])) > 80 for c in range(5))
    assert len(loaded.preprocess.mean) == 5
    loaded.close()


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (dict(augment=Augment(saturation=0.4)), "augment.saturation=0.4"),
        (dict(augment=Augment(contrast=0.4)), "augment.contrast=0.4"),
        (dict(augment=Augment(policy="randaugment")), "augment.policy=randaugment"),
        (dict(normalize="imagenet"), "normalize=imagenet"),
    ],
)
def test_what_takes_gray_or_rgb_is_refused_for_other_channels(bands, values, name):
    with pytest.raises(UserError, match=rf"config\.{name} is for gray or RGB images, and these have 5 channels"):
        data.open_dataset(options_of(bands, **values), 1)


@pytest.mark.parametrize("channels", [4, 6])
def test_a_tiff_of_more_channels_than_pillow_reads_is_refused(tmp_path, channels):
    (tmp_path / "train/a").mkdir(parents=True)
    array = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, channels), np.uint8)
    (tmp_path / "train/a/1.tif").write_bytes(tiff(array, "little"))
    with pytest.raises(UserError, match=rf"1\.tif has {channels} channels.*\.npy.*channels=3"):
        folder.Folder(str(tmp_path))
    source = folder.Folder(str(tmp_path), channels=3)
    np.testing.assert_array_equal(source.records("train").examples([0])[0][0], array[..., :3])


# In use.


def spec_of(loaded, **values):
    fields = dict(patch_size=4, hidden_dim=8, depth=1, tokens_mlp_dim=8, channels_mlp_dim=8)
    content = dict(
        format=1, network="mlp_mixer", fields=fields, classes=["a", "b"], loss="softmax", channels=loaded.channels
    )
    content |= dict(decoded_size=SIZE, decoded_crop_pct=1.0, image_size=SIZE, crop_pct=1.0)
    content |= dict(mean=[0.0] * loaded.channels, std=[1.0] * loaded.channels)
    ranges = None if loaded.value_ranges is None else [list(pair) for pair in loaded.value_ranges]
    content |= dict(value_ranges=ranges, level_bits=loaded.level_bits)
    return ModelSpec.from_json(content | values, "model.json")


@pytest.mark.parametrize("name", ["scans", "bands"])
def test_images_are_decoded_in_use_as_in_training(request, mesh1, name):
    root = request.getfixturevalue(name)
    loaded = data.load_dataset(options_of(root, val_split="none"), mesh1)
    spec = spec_of(loaded)
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json())), "again") == spec
    trained = {image.tobytes() for image in held(loaded)}
    for path in (root / "train").rglob("*.*"):
        assert images_lib.decode_one(str(path), spec).tobytes() in trained
        values = np.load(path) if path.suffix == ".npy" else np.asarray(Image.open(path))
        assert images_lib.decode_one(values, spec).tobytes() in trained


def test_arrays_that_the_model_does_not_take_are_refused(scans, mesh1):
    gray = spec_of(data.load_dataset(options_of(scans), mesh1))
    with pytest.raises(ValueError, match=r"of shape \(8, 8, 5\); expected \(height, width\) or \(height, width, 1\)"):
        images_lib.decode_one(np.zeros((8, 8, 5), np.float32), gray)
    eight = dataclasses.replace(gray, value_ranges=None)
    with pytest.raises(ValueError, match="array of uint16; expected uint8"):
        images_lib.decode_one(np.zeros((8, 8), np.uint16), eight)


@pytest.mark.parametrize("ranges", [[], [[1, 0]], [[0, 1], [0, 1]], [0, 1], "0 to 1", [[0, None]]])
def test_ranges_that_a_file_gets_wrong_are_refused(scans, mesh1, ranges):
    loaded = data.load_dataset(options_of(scans), mesh1)
    with pytest.raises(UserError, match=r"model\.json: value_ranges="):
        spec_of(loaded, value_ranges=ranges)


@pytest.mark.parametrize("value", [0.0, -7.0, 1e30])
def test_values_that_are_all_the_same_or_none_have_a_range_too(tmp_path, value):
    save(tmp_path / "train/a/1.npy", np.full((2, 3, 2), [value, np.nan]))
    records = folder.Folder(str(tmp_path)).records("train")
    measured = value_range.measure([(records, 0, 1)], 2)
    assert measured is not None and all(low < high for low, high in measured.ranges)


def test_files_that_cannot_be_read_do_not_count(scans):
    (scans / "train/a/bad.png").write_bytes(b"no image")
    records = folder.Folder(str(scans)).records("train")
    measured = value_range.measure([(records, 0, len(records))], 1)
    assert measured is not None and measured.ranges == ((100.0, 3000.0),)
