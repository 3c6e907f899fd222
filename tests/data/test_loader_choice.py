"""`loader="auto"` lets memory decide only where both loaders make the same images."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from patchnets import data
from patchnets.augment.preprocess import Augment
from patchnets.data import loader_choice as choice
from patchnets.data.options import DataOptions
from patchnets.data.streaming.batch_reader import random_crop
from patchnets.errors import UserError
from patchnets.estimate.dataset_spec import find_dataset_spec
from patchnets.parallel import mesh as mesh_lib

SIZE, AREA = 32, 0.05
MEMORY = (1e-9, 8.0)  # GiB: nothing fits, everything does


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of twelve parts of photographs, 200 x 260 pixels, in two classes."""
    root = tmp_path_factory.mktemp("photos")
    for name in ("china", "flower"):
        (root / "train" / name).mkdir(parents=True)
        photo = Image.fromarray(datasets.load_sample_image(f"{name}.jpg"))
        for i in range(6):
            left, top = 70 * (i % 3), 100 * (i // 3)
            photo.crop((left, top, left + 260, top + 200)).save(root / "train" / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """A folder of eight images of 32 x 32 pixels."""
    root = tmp_path_factory.mktemp("squares")
    generator = np.random.default_rng(0)
    (root / "train/a").mkdir(parents=True)
    for i in range(8):
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(root / f"train/a/{i}.png")
    return root


def options_of(root, augment=None, **values):
    settings = dict(image_size=SIZE, val_split="none", batch_size=4, num_workers=0, cache_dir=str(root / "cache"))
    return DataOptions("folder", str(root), augment=Augment(**augment or {}), **settings | values)


def gradient(images):
    """Mean difference of neighboring pixels."""
    images = np.asarray(images, float)
    return (np.abs(np.diff(images, axis=1)).mean() + np.abs(np.diff(images, axis=2)).mean()) / 2


def training_images(options, mesh, steps=24):
    """Levels of the images that the network sees in some steps."""
    loaded = data.load_dataset(dataclasses.replace(options, normalize="unit"), mesh)
    images = []
    preprocess = jax.jit(loaded.preprocess)
    for step in range(steps):
        batch = loaded.train.batch(loaded.train.step_inputs(step)[0], np.int32(step))
        images.append(255 * np.asarray(preprocess(np.asarray(batch["image"]), jax.random.key(step))))
    loaded.close()
    return np.concatenate(images)


SETTINGS = {
    "plain": ({}, {}),
    "random crops": (dict(crop_scale_min=AREA), {}),
    "a share of the side": ({}, dict(crop_pct=0.875)),
    "both": (dict(crop_scale_min=AREA), dict(crop_pct=0.875)),
    "padding": (dict(crop_padding=4), {}),
    "a share at random": (dict(crop_share=0.75), {}),
    "fitted normalization": (dict(crop_scale_min=AREA), dict(normalize="dataset")),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("folder", ["photos", "squares"])
@pytest.mark.parametrize("image_size", [24, 32, 40])
def test_neither_bytes_nor_devices_choose_between_loaders_that_differ(request, name, folder, image_size):
    augment, values = SETTINGS[name]
    root = request.getfixturevalue(folder)
    chosen = set()
    for gib, devices, sharding in itertools.product(MEMORY, (1, 8), ("replicated", "sharded")):
        options = options_of(
            root, augment, image_size=image_size, max_on_device_gib=gib, on_device_sharding=sharding, **values
        )
        opened = data.open_dataset(options, devices)
        chosen.add(opened.loader)
    same = choice.same_images(options, opened.native) and not choice.needs_on_device(options)
    assert (len(chosen) == 2) == same
    if folder == "photos" and name in ("random crops", "a share of the side", "both"):
        assert chosen == {"streaming"}


@pytest.mark.slow
def test_loaders_that_are_called_the_same_make_the_same_images(photos, squares, mesh1):
    """Without random crops pixel for pixel, be the images larger squares, rectangles or as large as the inputs."""
    for root, size in ((photos, SIZE), (squares, SIZE), (squares, 20)):
        options = options_of(root, image_size=size)
        assert choice.same_images(options, data.open_dataset(options, 1).native)
        first, other = (
            training_images(dataclasses.replace(options, loader=loader), mesh1, steps=2)
            for loader in ("on_device", "streaming")
        )
        np.testing.assert_array_equal(first, other)


@pytest.mark.slow
def test_random_crops_are_those_of_the_originals_whatever_memory_there_is(photos, mesh1, mesh8, capsys):
    """The mean gradient tells crops of originals from crops of images that were reduced first."""
    options = options_of(photos, dict(crop_scale_min=AREA))
    paths = sorted((photos / "train").glob("*/*.png"))
    expected = []
    for key in itertools.product(range(20), range(len(paths))):
        image = Image.open(paths[key[1]])
        top, left, height, width = random_crop(image.height, image.width, key, AREA, 4 / 3)
        box = (left, top, left + width, top + height)
        expected.append(np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)))
    wanted = gradient(np.stack(expected))
    measured = {}
    for gib, (count, mesh) in itertools.product(MEMORY, ((1, mesh1), (8, mesh8))):
        run = dataclasses.replace(options, max_on_device_gib=gib, batch_size=8)
        images = training_images(run, mesh, steps=30)
        measured[gib, count] = images
    for images in measured.values():
        np.testing.assert_array_equal(images, measured[8.0, 1])
    assert gradient(measured[8.0, 1]) == pytest.approx(wanted, rel=0.08)
    assert "random crops are cut from the originals" in capsys.readouterr().out
    reduced = gradient(training_images(dataclasses.replace(options, loader="on_device"), mesh1, steps=60))
    assert reduced < 0.8 * wanted  # what auto chose before, and what the line below warns of
    assert f"already reduced to {SIZE} x {SIZE} pixels" in capsys.readouterr().out


@pytest.mark.slow
def test_random_crops_of_small_squares_are_alike_from_both_loaders(squares, mesh1, capsys):
    options = options_of(squares, dict(crop_scale_min=0.25))
    assert choice.same_images(options, data.open_dataset(options, 1).native)
    first, other = (
        gradient(training_images(dataclasses.replace(options, loader=loader), mesh1, steps=60))
        for loader in ("on_device", "streaming")
    )
    assert first == pytest.approx(other, rel=0.05)
    assert "crops" not in capsys.readouterr().out


def test_images_that_turn_out_to_be_of_several_sizes_are_streamed_for_random_crops(squares, tmp_path, mesh1, capsys):
    """Only reading all tells that not every image is as the first."""
    generator = np.random.default_rng(1)
    (tmp_path / "train/a").mkdir(parents=True)
    for i in range(8):
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / f"train/a/{i}.png")
    options = options_of(tmp_path, dict(crop_scale_min=AREA))
    last = data.open_dataset(options, 1).source.records("train").path(7)
    Image.fromarray(generator.integers(0, 256, (90, 80, 3), np.uint8)).save(last)
    for _ in range(2):  # also with what the first left in the cache
        loaded = data.load_dataset(options, mesh1)
        assert loaded.loader == "streaming" and loaded.preprocess.cropped
        loaded.close()
        assert "read while training, so that random crops" in capsys.readouterr().out
    kept = data.load_dataset(dataclasses.replace(options, augment=Augment()), mesh1)
    assert kept.loader == "on_device" and kept.stored_size == SIZE
    assert data.load_dataset(options, mesh1).loader == "streaming"
    for path in (tmp_path / "cache/data").glob("*/entry.json"):  # as an older version wrote it
        path.write_text(json.dumps({"checksums": json.loads(path.read_text())["checksums"]}))
    assert data.load_dataset(options, mesh1).loader == "streaming"
    with pytest.raises(UserError, match="normalize='dataset' needs"):
        data.load_dataset(dataclasses.replace(options, normalize="dataset", loader="streaming"), mesh1)


def test_small_squares_too_large_to_be_copied_to_every_device_are_split_over_them(squares):
    needed = 8 * 32 * 32 * 3
    options = options_of(squares, image_size=40, max_on_device_gib=needed / 4 / 2**30)
    opened = data.open_dataset(options, 8)
    assert (opened.loader, opened.options.on_device_sharding) == ("on_device", "sharded")
    fits = dataclasses.replace(options, max_on_device_gib=8.0)
    assert data.open_dataset(fits, 8).options.on_device_sharding == "replicated"
    none = dataclasses.replace(options, max_on_device_gib=1e-9)
    with pytest.raises(UserError, match=r"or set config\.dataset\.loader=streaming"):
        data.load_dataset(none, mesh_lib.make_mesh(data=1))


def test_an_estimate_chooses_as_the_run_does():
    """An ImageNet that is not here: random crops are streamed, however few images and much memory there are."""
    options = DataOptions("imagenet2012", augment=Augment(crop_scale_min=AREA), val_split="none", test_split="none")
    chosen = {
        find_dataset_spec(dataclasses.replace(options, max_on_device_gib=gib), devices, 100, 7).loader
        for gib, devices in itertools.product(MEMORY, (1, 8))
    }
    assert chosen == {"streaming"}
    without = dataclasses.replace(options, augment=Augment())
    assert find_dataset_spec(without, 1, 100, 7).loader == "on_device"
