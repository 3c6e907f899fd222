"""A configuration gives the three loaders that it describes; by default test examples are not trained on."""

import dataclasses
import importlib.util

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from patchnets import config as config_lib
from patchnets import data
from patchnets.data import sources, splits
from patchnets.data.options import DataOptions
from patchnets.data.pixel_rules import PixelRules
from patchnets.data.sources import digits, folder
from patchnets.errors import RunError, UserError
from patchnets.experiment import data_options
from patchnets.parallel import mesh as mesh_lib

GIB = 2**30


def run_config(**values) -> data.DataOptions:
    """What a whole configuration of the digits, 8 x 8, says of the data."""
    config = config_lib.default_config()
    config.image_size, config.batch_size = 8, 64
    for name, value in values.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return data_options(config)


def positions(spec, sizes):
    """Every example that a specification selects, by TFDS's own reading."""
    infos = {name: tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0) for name, size in sizes.items()}
    parts = tfds.core.ReadInstruction.from_spec(spec).to_absolute(infos)
    return [(p.splitname, i) for p in parts for i in range(p.from_ or 0, sizes[p.splitname] if p.to is None else p.to)]


# Which splits.


@pytest.mark.parametrize(
    ("sizes", "settings", "expected"),
    [
        (["train", "test"], {}, ("train[:90%]", "train[90%:]", "test")),
        (["train", "test", "validation"], {}, ("train", "validation", "test")),
        (["train", "val"], {}, ("train", "val", None)),
        (["train"], {}, ("train[:90%]", "train[90%:]", None)),
        (["train", "test"], {"val": "none"}, ("train", None, "test")),
        (["train", "test"], {"test": "none"}, ("train[:90%]", "train[90%:]", None)),
        (["train", "test"], {"val": "none", "test": "none"}, ("train", None, None)),
        (["train", "test"], {"val": "test", "test": "none"}, ("train", "test", None)),
        (["train", "test"], {"train": "train[:50%]"}, ("train[:50%]", "train[90%:]", "test")),
        (["train", "test"], {"train": "train[:80%]", "val": "train[80%:]"}, ("train[:80%]", "train[80%:]", "test")),
        (
            ["train", "test"],
            {"train": "train+test[50%:]", "val": "none", "test": "test[:50%]"},
            ("train+test[50%:]", None, "test[:50%]"),
        ),
        (
            ["train", "validation"],
            {"val": "train[:5%]", "train": "train[5%:]", "test": "validation"},
            ("train[5%:]", "train[:5%]", "validation"),
        ),
    ],
)
def test_splits_that_are_not_given_have_their_defaults(sizes, settings, expected):
    specs = splits.choose_splits(dict.fromkeys(sizes, 1000), **settings)
    assert tuple(specs[role] for role in ("train", "val", "test")) == expected


@pytest.mark.parametrize("size", [5, 6, 14, 15, 95, 1438, 1437])
def test_the_default_validation_split_takes_what_training_leaves(size):
    specs = splits.choose_splits({"train": size})
    both = positions(specs["train"], {"train": size}) + positions(specs["val"], {"train": size})
    assert both == [("train", i) for i in range(size)]


@pytest.mark.parametrize("val", ["train[80%:]", "train[:10%]", "train[-100:]"])
def test_the_default_train_split_is_train_less_the_validation_split(val):
    sizes = {"train": 1000}
    specs = splits.choose_splits(sizes, val=val)
    both = positions(specs["train"], sizes) + positions(specs["val"], sizes)
    assert sorted(both) == [("train", i) for i in range(1000)]


@pytest.mark.parametrize(
    ("settings", "first", "other"),
    [
        ({"train": "train", "val": "train[90%:]"}, "train", "val"),
        ({"train": "train[:60%]+test", "val": "train[80%:]"}, "train", "test"),
        ({"train": "train[:10%]", "val": "test[:5%]"}, "val", "test"),
        ({"train": "train[:52%]", "val": "train[517:]", "test": "none"}, "train", "val"),
        ({"val": "test"}, "val", "test"),
    ],
)
def test_splits_that_share_examples_are_an_error_with_their_number(settings, first, other):
    sizes = {"train": 1003, "test": 207}
    specs = {"train": "train", "test": "test"} | settings
    shared = set(positions(specs[first], sizes)) & set(positions(specs[other], sizes))
    with pytest.raises(UserError) as error:
        splits.choose_splits(sizes, **settings)
    message = str(error.value)
    assert f" {len(shared)} examples" in message
    assert f"config.dataset.{first}_split" in message
    assert f"config.dataset.{other}_split" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train": "none"}, ["config.dataset.train_split='none'"]),
        ({"train": "training"}, ["'training'", "train, test"]),
        ({"val": "validation"}, ["'validation'", "train, test"]),
        ({"test": "test[:0]"}, ["'test[:0]'", "no examples"]),
        ({"val": "train[90:"}, ["'train[90:'", "cannot be read"]),
    ],
)
def test_a_split_that_cannot_be_had_is_an_error_that_quotes_it(settings, words):
    with pytest.raises(UserError) as error:
        splits.choose_splits({"train": 100, "test": 20}, **settings)
    assert all(word in str(error.value) for word in words)


def test_a_data_set_without_train_is_an_error_that_names_what_there_is():
    with pytest.raises(UserError, match=r"no 'train'.*there is test"):
        splits.choose_splits({"test": 10})


def test_a_train_split_too_small_for_a_tenth_is_an_error():
    with pytest.raises(UserError, match="holds no examples"):
        splits.choose_splits({"train": 4})


# Which data set.


def test_the_name_decides_between_digits_folder_and_tfds(tmp_path, monkeypatch):
    from patchnets.data.sources import tfds as tfds_lib

    (tmp_path / "train/a").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "train/a/1.png")
    requested = []
    monkeypatch.setattr(tfds_lib, "open_tfds", lambda *arguments: requested.append(arguments))
    lies = dict(path=str(tmp_path), data_dir="there")
    assert isinstance(sources.open_source("digits", **lies), digits.Digits)
    assert isinstance(sources.open_source("folder", **lies), folder.Folder)
    sources.open_source("cifar10", **lies)
    assert requested == [("cifar10", "there", PixelRules())]


# The feeds.


@pytest.fixture(scope="module")
def loaded(mesh8):
    """The digits with every default."""
    return data.load_dataset(run_config(seed=3, eval_batch_size=48), mesh8)


def held(loader):
    """All images and labels of a feed, in the order in which they are held."""
    inputs = loader.step_inputs(0)[0]
    return np.asarray(inputs.images), np.asarray(inputs.labels)


def original(split, low=0, high=None):
    """Images and labels of the digits, read without any cache."""
    source = digits.Digits()
    images, labels = zip(*source.records(split).examples(range(low, high or source.sizes[split])))
    return np.stack(images), np.array(labels)


def test_the_digits_have_the_splits_that_tfds_syntax_gives(loaded):
    sizes = digits.Digits().sizes
    assert loaded.split_specs == {"train": "train[:90%]", "val": "train[90%:]", "test": "test"}
    for role, loader in (("train", loaded.train), ("val", loaded.val), ("test", loaded.test)):
        wanted = positions(loaded.split_specs[role], sizes)
        images, labels = held(loader)
        assert loader.num_examples == len(labels) == len(wanted)
        expected = original(wanted[0][0], wanted[0][1], wanted[-1][1] + 1)
        np.testing.assert_array_equal(images, expected[0])
        np.testing.assert_array_equal(labels, expected[1])


def test_training_is_shuffled_by_the_seed_and_evaluation_is_not(loaded, mesh8):
    assert loaded.train.shuffle_seed == 3
    assert np.asarray(loaded.val.step_inputs(0)[0].order).tolist() == list(range(144))
    assert np.asarray(loaded.test.step_inputs(7)[0].order).tolist() == list(range(359))
    order = np.asarray(loaded.train.step_inputs(0)[0].order)
    assert sorted(order.tolist()) == list(range(1294))
    again, other = (data.load_dataset(run_config(seed=seed), mesh8).train.step_inputs(0)[0].order for seed in (3, 4))
    np.testing.assert_array_equal(again, order)
    assert not np.array_equal(other, order)


def test_batch_sizes_are_those_of_the_configuration(loaded, mesh8):
    assert (loaded.train.batch_size, loaded.val.batch_size, loaded.test.batch_size) == (64, 48, 48)
    assert (loaded.train.steps_per_epoch, loaded.val.steps_per_epoch, loaded.test.steps_per_epoch) == (21, 3, 8)
    assert data.load_dataset(run_config(), mesh8).val.batch_size == 64


def test_what_the_run_is_told_about_the_data_set(loaded):
    assert loaded.name == "digits"
    assert loaded.class_names == tuple("0123456789")
    assert (loaded.channels, loaded.stored_size) == (1, 8)


def test_the_images_on_the_devices_are_small_until_the_step_resizes_them(mesh8):
    loaded = data.load_dataset(run_config(image_size=20), mesh8)
    assert loaded.stored_size == 8
    assert held(loaded.val)[0].shape == (144, 8, 8, 1)
    assert jax.eval_shape(loaded.preprocess, held(loaded.val)[0]).shape == (144, 20, 20, 1)


def test_augmentation_is_that_of_the_configuration(mesh8):
    loaded = data.load_dataset(run_config(augment__flip=True, augment__zoom=0.25, augment__translate=0.5), mesh8)
    augment = loaded.preprocess.augment
    assert (augment.flip, augment.zoom, augment.translate) == (True, 0.25, 0.5)
    assert not data.load_dataset(run_config(), mesh8).preprocess.augment


def test_normalization_is_fitted_on_the_training_split_alone(mesh8):
    config = run_config(normalize="dataset", dataset__train_split="train[:10%]")
    images = original("train", 0, 144)[0]
    preprocess = data.load_dataset(config, mesh8).preprocess
    np.testing.assert_allclose(preprocess.mean, images.mean(), rtol=1e-9)
    np.testing.assert_allclose(preprocess.std, images.std(), rtol=1e-9)
    assert abs(images.mean() - original("train")[0].mean()) > 0.01  # the two could be told apart


def test_a_sum_of_splits_is_held_in_the_order_of_its_parts(mesh8):
    config = run_config(dataset__train_split="test[5:8]+train[:4]", dataset__test_split="test[100:]")
    images, labels = held(data.load_dataset(config, mesh8).train)
    parts = original("test", 5, 8), original("train", 0, 4)
    np.testing.assert_array_equal(images, np.concatenate([part[0] for part in parts]))
    np.testing.assert_array_equal(labels, np.concatenate([part[1] for part in parts]))


def test_splits_that_are_not_wanted_have_no_feed(mesh8):
    loaded = data.load_dataset(run_config(dataset__val_split="none", dataset__test_split="none"), mesh8)
    assert loaded.val is None
    assert loaded.test is None
    assert loaded.train.num_examples == 1438


def test_only_the_splits_that_are_used_are_decoded_and_only_once(mesh1, tmp_path):
    config = run_config(dataset__cache_dir=str(tmp_path), dataset__test_split="none")
    first = data.load_dataset(config, mesh1)
    (entry,) = (tmp_path / "data").iterdir()
    before = {path: path.stat().st_mtime_ns for path in entry.iterdir()}
    again = data.load_dataset(config, mesh1)
    assert {path: path.stat().st_mtime_ns for path in entry.iterdir()} == before
    for a, b in zip(held(first.train), held(again.train)):
        np.testing.assert_array_equal(a, b)


def test_one_device_and_eight_hold_the_same_data(loaded, mesh1):
    first = data.load_dataset(run_config(seed=3, eval_batch_size=48), mesh1)
    for loader, other in ((first.train, loaded.train), (first.val, loaded.val), (first.test, loaded.test)):
        for a, b in zip(loader.step_inputs(0)[0], other.step_inputs(0)[0]):
            np.testing.assert_array_equal(jax.device_get(a), jax.device_get(b))


def test_a_split_larger_than_the_limit_is_an_error(mesh8):
    with pytest.raises(UserError, match=r"1,438 images.*max_on_device_gib"):
        data.load_dataset(run_config(dataset__max_on_device_gib=50_000 / GIB), mesh8)


def test_a_data_set_larger_than_the_limit_is_an_error_even_where_each_split_is_not(mesh8):
    train, test = (64 * size for size in digits.Digits().sizes.values())
    with pytest.raises(UserError, match="max_on_device_gib"):
        data.load_dataset(run_config(dataset__max_on_device_gib=(train + test / 2) / GIB), mesh8)


# Folders.


def fill(root, images):
    for path, value, size in images:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size), (value,) * 3).save(root / path)
    return root


def test_a_folder_with_its_own_splits_is_loaded_as_it_lies(mesh1, tmp_path):
    classes = ("ant", "bee")
    every = [(k, c, i) for k in range(2) for c in range(2) for i in range(3)]  # split, class, number
    value = {key: 100 * key[0] + 10 * key[1] + key[2] for key in every}
    root = fill(tmp_path, [(f"{('train', 'val')[k]}/{classes[c]}/{i}.png", value[k, c, i], 8) for k, c, i in every])
    loaded = data.load_dataset(run_config(dataset__name="folder", dataset__path=str(root), batch_size=4), mesh1)
    assert loaded.class_names == classes
    assert loaded.split_specs == {"train": "train", "val": "val", "test": None}
    for k, loader in enumerate((loaded.train, loaded.val)):
        images, labels = held(loader)
        got = sorted((int(image.flat[0]), int(label)) for image, label in zip(images, labels))
        assert got == [(value[k, c, i], c) for c in range(2) for i in range(3)]


def test_splits_of_different_sizes_are_all_resized_to_what_the_model_sees(mesh1, tmp_path):
    root = fill(tmp_path, [("train/a/1.png", 10, 8), ("train/a/2.png", 20, 8), ("val/a/1.png", 30, 6)])
    config = run_config(dataset__name="folder", dataset__path=str(root), image_size=16)
    actual = data.load_dataset(config, mesh1)
    assert actual.stored_size == 16
    for loader, values in ((actual.train, {10, 20}), (actual.val, {30})):
        images = np.asarray(loader.step_inputs(0)[0].images)
        assert images.shape[1:] == (16, 16, 3)
        assert {int(image.max()) for image in images} == {int(image.min()) for image in images} == values


# --- resident or streaming --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twelve images of 40 x 30 pixels in two classes: 14 KiB at 20 pixels a side."""
    root = tmp_path_factory.mktemp("pictures")
    for name in ("train/a", "train/b"):
        (root / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (40, 30), (20 * i, 0, 0)).save(root / name / f"{i}.png")
    return root


def streamed(root, **values):
    settings = dict(dataset__name="folder", dataset__path=str(root), dataset__val_split="none", image_size=20)
    return run_config(**settings | dict(batch_size=8, dataset__num_workers=0) | values)


@pytest.mark.parametrize(("kib", "loader"), [(15, "on_device"), (14, "streaming")])
def test_what_does_not_fit_is_read_while_training(pictures, mesh1, kib, loader):
    actual = data.open_dataset(streamed(pictures, dataset__max_on_device_gib=kib / 2**20), 1)
    assert actual.loader == loader and actual.train_examples == 12


def test_split_over_devices_more_fits(pictures):
    config = streamed(pictures, dataset__max_on_device_gib=2 / 2**20, dataset__on_device_sharding="sharded")
    assert [data.open_dataset(config, devices).loader for devices in (1, 8)] == ["streaming", "on_device"]


def test_evaluation_crops_what_was_kept_larger(pictures, mesh1):
    """20 pixels are four fifths of 25."""
    loaded = data.load_dataset(streamed(pictures, crop_pct=0.8, dataset__loader="on_device"), mesh1)
    assert loaded.loader == "on_device" and loaded.stored_size == 25 and not loaded.preprocess.cropped
    stored = np.asarray(loaded.train.step_inputs(0)[0].images)
    np.testing.assert_allclose(loaded.preprocess(stored), loaded.preprocess.normalize(stored[:, 2:22, 3:23]), atol=0.35)


def test_a_streaming_feed_is_made_as_configured(pictures, mesh8):
    loaded = data.load_dataset(
        streamed(
            pictures,
            dataset__loader="streaming",
            dataset__on_corrupt="skip",
            dataset__num_workers=3,
            dataset__train_split="train[:8]",
            dataset__val_split="train[8:]",
            eval_batch_size=16,
            crop_pct=0.5,
            augment__crop_scale_min=0.25,
        ),
        mesh8,
    )
    train, val = loaded.train, loaded.val
    assert (train.num_workers, train.num_examples, val.num_examples, train.batch_size, val.batch_size) == (
        3,
        8,
        4,
        8,
        16,
    )
    assert (train._reader.skip, train._reader.crop_scale_min, train._reader.crop_pct) == (True, 0.25, 1.0)
    assert (val._reader.crop_scale_min, val._reader.crop_pct, val._reader.seed) == (1.0, 0.5, None)
    assert loaded.preprocess.cropped and loaded.loader == "streaming" and loaded.unreadable == set()
    loaded.close()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(normalize="dataset"), "normalize='dataset'"),
        (dict(augment__crop_padding=4), "padding=4"),
        (dict(augment__crop_share=0.75), "share=0.75"),
    ],
)
def test_what_cannot_be_done_to_streams_is_refused(pictures, values, message):
    with pytest.raises(UserError, match=message):
        data.open_dataset(streamed(pictures, dataset__loader="streaming", **values), 1)


def test_without_grain_streams_are_refused_and_resident_images_go_on(pictures, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "grain" else find_spec(name))
    assert data.open_dataset(streamed(pictures), 1).loader == "on_device"
    with pytest.raises(UserError, match="pip install grain"):
        data.open_dataset(streamed(pictures, dataset__loader="streaming"), 1)


def test_colors_of_gray_images_are_not_changed():
    with pytest.raises(UserError, match=r"config\.augment\.saturation=0\.4.*gray"):
        data.open_dataset(run_config(augment__saturation=0.4), 1)


# --- one order for both loaders ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A folder of 22 PNGs of noise, 8 x 8 pixels, in two classes: no two are alike."""
    root = tmp_path_factory.mktemp("noise")
    generator = np.random.default_rng(0)
    for i in range(22):
        path = root / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return root


@pytest.mark.parametrize("seed", [0, 5])
def test_streaming_and_on_device_runs_of_one_seed_show_the_same_images_in_the_same_order(noise, mesh1, seed):
    def epochs(loader, split):
        config = run_config(
            dataset__name="folder",
            dataset__path=str(noise),
            dataset__loader=loader,
            dataset__num_workers=0,
            dataset__train_split="train[:17]",
            dataset__val_split="train[17:]",
            batch_size=5,
            seed=seed,
        )
        loaded = data.load_dataset(config, mesh1)
        assert loaded.loader == loader
        feed = getattr(loaded, split)
        batch_fn = jax.jit(feed.batch)
        steps = range(2 * feed.steps_per_epoch)
        batches = [jax.device_get(batch_fn(feed.step_inputs(step)[0], np.int32(step))) for step in steps]
        loaded.close()
        return batches

    orders = []
    for split, count in (("train", 17), ("val", 5)):
        streamed, resident = (epochs(loader, split) for loader in ("streaming", "on_device"))
        assert len(streamed) == len(resident) == 2 * -(-count // 5)
        for step, (first, other) in enumerate(zip(streamed, resident)):
            assert set(first) == set(other) == {"image", "label", "mask"}
            for name in first:
                np.testing.assert_array_equal(first[name], other[name], err_msg=f"{name} of {split}, step {step}")
        for epoch in np.split(np.arange(len(resident)), 2):
            batches = [resident[i] for i in epoch]
            images = np.concatenate([batch["image"][batch["mask"] == 1] for batch in batches])
            assert len({image.tobytes() for image in images}) == len(images) == count
            orders.append(images.tobytes())
    assert orders[0] != orders[1] and orders[2] == orders[3]  # training is shuffled anew each epoch, evaluation never


def broken_folder(root):
    """Twelve images in train/ and three in val/, two and one of them broken; of one size, and two of one content."""
    every = [f"{name}/{i}" for name in "ab" for i in range(6)]
    fill(root, [(f"train/{name}.png", 20 * i + 5, 8) for i, name in enumerate(every)])
    fill(root, [(f"val/b/{i}.png", 245 + i, 8) for i in range(3)])
    for name in ("train/a/1.png", "train/b/4.png", "val/b/0.png"):
        (root / name).write_bytes((root / name).read_bytes()[:45])  # the header is whole
    return root


@pytest.mark.parametrize("kind", ["unit", "dataset"])
def test_broken_images_are_skipped_on_the_device_as_they_are_while_streaming(kind, mesh1, tmp_path, capsys):
    root = broken_folder(tmp_path)
    names = {str(root / name) for name in ("train/a/1.png", "train/b/4.png", "val/b/0.png")}

    def options(loader, **values):
        settings = dict(dataset__name="folder", dataset__path=str(root), image_size=8, batch_size=5)
        return run_config(
            **settings, dataset__loader=loader, dataset__on_corrupt="skip", dataset__num_workers=0, seed=1, **values
        )

    loaded = data.load_dataset(options("on_device", normalize=kind), mesh1)
    printed = capsys.readouterr()
    assert "WARNING" not in printed.out  # the black ones are no duplicates, nor is their class without images
    assert printed.err.count("skipped: ") == 3 and all(name in printed.err for name in names)
    assert loaded.unreadable == names and loaded.stored_size == 8
    if kind == "dataset":
        levels = [20 * i + 5 for i in range(12) if i not in (1, 10)]
        np.testing.assert_allclose(loaded.preprocess.mean, np.mean(levels), rtol=1e-5)
        return
    streamed = data.load_dataset(options("streaming", normalize=kind), mesh1)
    for split, valid in (("train", 10), ("val", 2)):
        first, other = (getattr(each, split) for each in (loaded, streamed))
        for step in range(2 * first.steps_per_epoch):
            batches = [
                jax.device_get(jax.jit(feed.batch)(feed.step_inputs(step)[0], np.int32(step)))
                for feed in (first, other)
            ]
            for name in ("image", "mask"):
                np.testing.assert_array_equal(*(batch[name] for batch in batches), err_msg=f"{name}, step {step}")
            valid -= batches[0]["mask"].sum() / 2
        assert valid == 0
    streamed.close()
    assert data.load_dataset(options("on_device"), mesh1).unreadable == names  # from the cache


def test_a_broken_image_stops_a_run_that_may_not_skip_also_after_one_that_may(mesh1, tmp_path):
    settings = dict(dataset__name="folder", dataset__path=str(broken_folder(tmp_path)), image_size=8, batch_size=5)
    data.load_dataset(run_config(**settings, dataset__on_corrupt="skip"), mesh1)
    with pytest.raises(RunError, match=r"\.png cannot be decoded"):
        data.load_dataset(run_config(**settings), mesh1)


@pytest.mark.parametrize("loader", ["on_device", "streaming"])
def test_a_folder_of_one_class_is_named_by_both_loaders(tmp_path, capsys, loader):
    for split in ("train", "val"):
        (tmp_path / split / "only").mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (4, 4), (i, i, 9 if split == "val" else 0)).save(tmp_path / split / "only" / f"{i}.png")
    options = DataOptions("folder", str(tmp_path), image_size=4, batch_size=1, loader=loader, num_workers=0)
    data.load_dataset(dataclasses.replace(options, cache_dir=str(tmp_path)), mesh_lib.make_mesh(data=1)).close()
    assert "WARNING: there is one class only, only: every prediction will be right" in capsys.readouterr().out
