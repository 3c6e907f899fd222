"""Images of more than 8 bits keep 16 from the file to the inputs of the network, with every loader and in use."""

import dataclasses
import io
import json
import zlib

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_bit_depth import COLOR, GRAY, SHAPE, deep_png, encode, gray_alpha_png, npy, values

import patchnets
from patchnets import data
from patchnets.augment.preprocess import Augment, Preprocess, normalization
from patchnets.config import common
from patchnets.data import decode
from patchnets.data.on_device import OnDeviceLoader
from patchnets.data.options import DataOptions
from patchnets.data.pixel_rules import PixelRules
from patchnets.errors import UserError
from patchnets.estimate.dataset_spec import find_dataset_spec
from patchnets.inference import images as images_lib
from patchnets.inference.model import Model
from patchnets.run import workdir
from patchnets.run.model_spec import ModelSpec, read_model_spec
from patchnets.train import train

RULES = PixelRules().with_ranges(((0.0, 4095.0),))
SIZE = 8
FIELDS = dict(patch_size=4, hidden_dim=8, depth=1, tokens_mlp_dim=8, channels_mlp_dim=8)


def wanted(array):
    """Levels by the definition: 4,095 is 65,535."""
    return np.clip(np.floor(array.astype(float) / 4095 * 65535 + 0.5), 0, 65535)


def assert_levels(actual, expected, tolerance=0):
    assert actual.dtype == np.uint16
    assert np.abs(actual.astype(float) - expected.reshape(actual.shape)).max() <= tolerance


# Decoding.


@pytest.mark.parametrize("kind", GRAY)
def test_gray_images_keep_twelve_bits(kind):
    array = values()
    data = GRAY[kind](array)
    assert_levels(decode.decode_image(data, "it", 1, rules=RULES), wanted(array))
    assert_levels(decode.decode_image(data, "it", 3, rules=RULES), np.repeat(wanted(array)[..., None], 3, 2))
    crop = decode.decode_crop(data, "it", 1, 6, lambda height, width: (0, 1, 6, 6), RULES)
    assert_levels(crop, wanted(array)[:, 1:7])


@pytest.mark.parametrize("kind", COLOR)
def test_colors_keep_twelve_bits_and_are_gray_by_their_luminance(kind):
    array = values(3)
    levels = wanted(array)
    assert_levels(decode.decode_image(COLOR[kind](array), "it", 3, rules=RULES), levels)
    gray = 0.299 * levels[..., 0] + 0.587 * levels[..., 1] + 0.114 * levels[..., 2]
    assert_levels(decode.decode_image(COLOR[kind](array), "it", 1, rules=RULES), gray, 0.501)


def test_images_of_eight_bits_among_them_have_the_same_levels():
    array = np.random.default_rng(1).integers(0, 256, (*SHAPE, 3), np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(array).save(jpeg, "JPEG")
    all_of_it = lambda height, width: (0, 0, height, width)
    for encoded in (encode(".png", array), npy(array), jpeg.getvalue()):
        eight = decode.decode_image(encoded, "it", 3)
        assert_levels(decode.decode_image(encoded, "it", 3, rules=RULES), 257.0 * eight)
        eight = decode.decode_crop(encoded, "it", 3, 6, all_of_it)
        assert_levels(decode.decode_crop(encoded, "it", 3, 6, all_of_it, RULES), 257.0 * eight, 257)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_resize_rounds_to_one_of_65536_levels(channels):
    """Beside JAX's resize, which is Pillow's, in floats, and beside the levels of 8 bits."""
    array = np.random.default_rng(0).integers(0, 4096, (40, 40, channels)).astype(np.uint16)
    resized = decode.decode_image(npy(array), "it", channels, 16, rules=RULES)
    expected = jax.image.resize(jnp.asarray(wanted(array), jnp.float32), (16, 16, channels), "cubic")
    assert_levels(resized, np.clip(expected, 0, 65535), 2)
    part = lambda height, width: (2, 3, 30, 33)
    crop = decode.decode_crop(npy(array), "it", channels, 16, part, RULES)
    eight = decode.decode_crop(npy(array), "it", channels, 16, part, dataclasses.replace(RULES, level_bits=8))
    assert_levels(crop, 257.0 * eight, 1.5 * 257)
    assert np.unique(crop % 257).size > 100


def test_a_crop_is_the_same_without_opencv_but_for_its_filter(monkeypatch):
    ramp = np.linspace(0, 4095, 48)[None].repeat(48, 0).astype(np.uint16)[..., None].repeat(3, 2)
    part = lambda height, width: (8, 8, 32, 32)
    with_opencv = decode.decode_crop(npy(ramp), "it", 3, 16, part, RULES)
    monkeypatch.setattr(decode, "_opencv", lambda: None)
    assert_levels(decode.decode_crop(npy(ramp), "it", 3, 16, part, RULES), with_opencv.astype(float), 257)


@pytest.mark.parametrize("background", ["white", "black", "none"])
def test_transparency_has_sixteen_bits_too(background):
    rules = dataclasses.replace(RULES, background=background)
    alpha = np.random.default_rng(1).integers(0, 65536, SHAPE).astype(np.uint16)
    share = 1.0 if background == "none" else alpha[..., None] / 65535
    behind = 65535 if background == "white" else 0
    array = values(3)
    expected = wanted(array) * share + behind * (1 - share)
    assert_levels(decode.decode_image(encode(".png", np.dstack([array, alpha])), "it", 3, rules=rules), expected, 0.501)
    gray = values()
    expected = wanted(gray)[..., None] * share + behind * (1 - share)
    png = gray_alpha_png(gray, alpha)
    assert decode.count_channels(png) == 1
    assert_levels(decode.decode_image(png, "it", 1, rules=rules), expected, 0.501)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_color_shows_the_background(channels, bits):
    """Only where both bytes of all channels are those of the color."""
    array = np.random.default_rng(2).integers(0x0305, 0x0307, (*SHAPE, channels)).astype(np.uint16)
    key = np.full(channels, 0x0305, np.uint16)
    rules = dataclasses.replace(RULES, level_bits=bits)
    png = deep_png(array, {1: 0, 3: 2}[channels], (b"tRNS", key.astype(">u2").tobytes()))
    plain = decode.decode_image(deep_png(array, {1: 0, 3: 2}[channels]), "it", channels, rules=rules)
    expected = np.where((array == key).all(-1, keepdims=True), 2**bits - 1, plain)
    assert 0 < (expected == 2**bits - 1).mean() < 1
    np.testing.assert_array_equal(decode.decode_image(png, "it", channels, rules=rules), expected)
    stored = dataclasses.replace(rules, background="none")
    np.testing.assert_array_equal(decode.decode_image(png, "it", channels, rules=stored), plain)


def test_an_image_is_turned_with_both_its_bytes():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    for array, channels in ((values(), 1), (values(3), 3)):
        png = encode(".png", array)
        block = exif.tobytes()[6:]  # without "Exif\0\0"
        chunk = len(block).to_bytes(4, "big") + b"eXIf" + block
        chunk += zlib.crc32(b"eXIf" + block).to_bytes(4, "big")
        turned = png[:33] + chunk + png[33:]
        expected = np.rot90(wanted(array), -1)
        assert_levels(decode.decode_image(turned, "it", channels, rules=RULES), expected)


# Preprocessing.


def test_inputs_are_the_normalized_fractions_of_levels():
    """In NumPy, and for levels that have 8 bits the inputs of those."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 65536, (4, SIZE, SIZE, 3)).astype(np.uint16)
    mean, std = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
    plain = Preprocess(SIZE, mean, std)
    expected = (images.astype(np.float64) * 255 / 65535 - mean) / std
    np.testing.assert_allclose(plain(jnp.asarray(images)), expected, atol=2e-6)
    np.testing.assert_array_equal(plain(jnp.asarray(images)), plain(jnp.asarray(images), jax.random.key(0)))
    eight = rng.integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
    same = [np.asarray(plain(jnp.asarray(x))) for x in (eight, eight.astype(np.uint16) * 257)]
    np.testing.assert_allclose(*same, atol=2e-6)


@pytest.mark.slow
def test_augmentation_takes_fractions_and_rounds_them_only_in_tables_of_levels():
    """Levels that have 8 bits are augmented as those, others within half a level of their nearest of 8 bits."""
    rng = np.random.default_rng(0)
    eight = rng.integers(0, 256, (4, SIZE, SIZE, 1), np.uint8)
    close = (eight.astype(np.int64) * 257 + rng.integers(-128, 129, eight.shape)).clip(0, 65535).astype(np.uint16)
    augment = Augment(flip=True, rotation=0.1, brightness=0.2, policy="randaugment")
    prepare = jax.jit(Preprocess(SIZE, (0.0,), (1.0,), augment))
    plain, same, near = (
        np.asarray(prepare(x, jax.random.key(1))) for x in (eight, eight.astype(np.uint16) * 257, close)
    )
    np.testing.assert_allclose(same, plain, atol=1e-3)
    assert 0 < np.abs(near - plain).mean() < 1


def test_mean_and_deviation_are_those_of_the_fractions():
    images = np.random.default_rng(0).integers(1000, 1200, (70, 3, 3, 2)).astype(np.uint16)
    mean, std = normalization("dataset", images)
    levels = images.astype(np.float64) * 255 / 65535
    np.testing.assert_allclose(mean, levels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, levels.std((0, 1, 2)), rtol=1e-9)


@pytest.mark.parametrize("sharded", [False, True])
def test_images_are_gathered_on_many_devices(mesh8, sharded):
    images = np.random.default_rng(0).integers(0, 65536, (21, 2, 2, 1)).astype(np.uint16)
    loader = OnDeviceLoader(images, np.arange(21), batch_size=8, mesh=mesh8, shuffle_seed=0, sharded=sharded)
    batch = jax.device_get(jax.jit(loader.batch)(loader.step_inputs(1)[0], np.int32(1)))
    assert batch["image"].dtype == np.uint16
    np.testing.assert_array_equal(batch["image"], images[batch["label"]])


# A data set.


@pytest.fixture
def scans(tmp_path):
    """Twelve bits in 16-bit PNGs. The classes differ by 6 of 4,095 values, which are one level of 8 bits."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8), ("test", 8)):
        for i in range(count):
            array = 2000 + 6 * (i % 2) + rng.integers(-1, 2, (SIZE, SIZE))
            path = tmp_path / f"{split}/{'ab'[i % 2]}/{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), array.astype(np.uint16))
    return tmp_path


def options_of(root, **values):
    values = dict(value_range=(0, 4095), normalize="symmetric") | values
    return DataOptions(
        "folder", str(root), image_size=SIZE, batch_size=24, num_workers=0, cache_dir=str(root / "cache"), **values
    )


def first_batch(loader):
    batch = jax.device_get(loader.batch(loader.step_inputs(0)[0], np.int32(0)))
    loader.close()
    return batch


def spec_of(loaded, **values):
    return ModelSpec(
        network="mlp_mixer",
        fields=FIELDS,
        classes=loaded.class_names,
        loss="softmax",
        channels=loaded.channels,
        decoded_size=SIZE,
        decoded_crop_pct=1.0,
        image_size=SIZE,
        crop_pct=1.0,
        mean=loaded.preprocess.mean,
        std=loaded.preprocess.std,
        value_ranges=loaded.value_ranges,
        level_bits=loaded.level_bits,
        **values,
    )


@pytest.mark.slow
def test_inputs_are_the_same_on_the_device_streamed_and_in_use(scans, mesh1):
    resident = data.load_dataset(options_of(scans, loader="on_device"), mesh1)
    streamed = data.load_dataset(options_of(scans, loader="streaming"), mesh1)
    assert resident.fingerprint["level_bits"] == streamed.fingerprint["level_bits"] == 16
    batches = [first_batch(loaded.train) for loaded in (resident, streamed)]
    for name in batches[0]:
        np.testing.assert_array_equal(batches[0][name], batches[1][name])
    spec = spec_of(resident)
    for role in ("val", "test"):
        files = sorted((scans / role).rglob("*.png"), key=lambda path: path.read_bytes())
        stored = np.stack([cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in files])[..., None]
        expected = (np.rint(stored / 4095 * 65535) / 65535 * 255 - 127.5) / 127.5
        used = spec.preprocess(jnp.asarray(images_lib.stack(images_lib.decode_many(files, spec))))
        np.testing.assert_allclose(used, expected, atol=1e-6)
        wanted_rows = sorted(np.asarray(used).tobytes()[i * 256 : i * 256 + 256] for i in range(len(files)))
        for loaded in (resident, streamed):
            batch = first_batch(getattr(loaded, role))
            inputs = np.asarray(loaded.preprocess(jnp.asarray(batch["image"])))[batch["mask"] > 0]
            assert sorted(row.tobytes() for row in inputs) == wanted_rows


def test_one_level_of_eight_bits_hides_the_classes_of_sixteen(scans, mesh1):
    batch = first_batch(data.load_dataset(options_of(scans), mesh1).train)
    means = [batch["image"][batch["label"] == label].mean() for label in (0, 1)]
    assert 0.9 * 6 < (means[1] - means[0]) * 4095 / 65535 < 1.1 * 6
    assert np.unique(np.rint(batch["image"] / 257)).size <= 2


def test_images_of_eight_bits_that_were_cached_before_are_not_used(scans, mesh1):
    """Nor are a work directory of before, whose images had 8 bits, and its model's images others than they were."""
    loaded = data.load_dataset(options_of(scans), mesh1)
    ranges = loaded.value_ranges
    before, now = PixelRules(value_ranges=ranges), PixelRules().with_ranges(ranges)
    assert before.tag != now.tag and before.dtype == np.uint8 and now.dtype == np.uint16
    (entry,) = (scans / "cache/data").glob("folder-*-train-*")
    assert np.load(entry / "images.npy").dtype == np.uint16
    stored = {name: value for name, value in loaded.fingerprint.items() if name != "level_bits"}
    assert workdir.changed_data(stored, loaded.fingerprint) == ["level_bits"]
    (scans / "old").mkdir()
    (scans / "old/data.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="made 8 bits of images of more, and they keep 16 now; give another --workdir"):
        workdir.Workdir(scans / "old", common.default_config()).acquire(loaded.fingerprint)
    content = spec_of(loaded).to_json()
    del content["level_bits"]
    old = ModelSpec.from_json(json.loads(json.dumps(content)), "model.json")
    path = next((scans / "test").rglob("*.png"))
    decoded = images_lib.decode_one(str(path), old)
    assert decoded.dtype == np.uint8
    expected = np.rint(cv2.imread(str(path), cv2.IMREAD_UNCHANGED) / 4095 * 255)
    np.testing.assert_array_equal(decoded[..., 0], expected)


@pytest.mark.parametrize("first_is_deep", [True, False])
def test_memory_counts_both_bytes(tmp_path, mesh1, first_is_deep):
    """Also where the first image has 8 bits, so that it is known only once the range is measured."""
    (tmp_path / "train/a").mkdir(parents=True)
    for i in range(40):
        array = np.random.default_rng(i).integers(0, 200, (SIZE, SIZE))
        assert cv2.imwrite(str(tmp_path / f"train/a/{i}.png"), array.astype(np.uint16))
    source = data.open_dataset(options_of(tmp_path, val_split="none"), 1).source
    if not first_is_deep:
        Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(source.records("train").path(0))
    one_byte = 40 * SIZE**2
    options = options_of(tmp_path, val_split="none", value_range=None, max_on_device_gib=1.5 * one_byte / 2**30)
    opened = data.open_dataset(options, 1)
    assert opened.loader == ("streaming" if first_is_deep else "on_device")
    loaded = data.load_opened(opened, mesh1)
    assert (loaded.loader, loaded.level_bits) == ("streaming", 16)
    loaded.train.close()
    with pytest.raises(UserError, match=r"take 5\.0 KiB of memory"):
        data.load_dataset(dataclasses.replace(options, loader="on_device"), mesh1)


@pytest.mark.parametrize("loader", ["on_device", "streaming"])
def test_an_estimate_counts_both_bytes(scans, mesh1, loader):
    """By the first image, for it measures nothing."""
    estimated = find_dataset_spec(options_of(scans, loader=loader, value_range=None), 1)
    inputs = estimated.step_inputs(mesh1)
    images = inputs["image"] if loader == "streaming" else inputs.images
    assert (images.dtype, images.shape) == (np.uint16, (24, SIZE, SIZE, 1))
    assert estimated.image_bytes == 2 * SIZE**2


def test_arrays_of_bytes_are_levels_of_a_model_of_sixteen_bits(scans, mesh1):
    spec = spec_of(data.load_dataset(options_of(scans), mesh1))
    array = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), np.uint8)
    for image in (array, array[..., None], Image.fromarray(array)):
        np.testing.assert_array_equal(images_lib.decode_one(image, spec)[..., 0], array.astype(np.uint16) * 257)


@pytest.mark.slow
def test_a_program_takes_decoded_images_of_sixteen_bits(scans, mesh1, tmp_path):
    spec = spec_of(data.load_dataset(options_of(scans), mesh1))
    network = spec.create_model()
    spec = dataclasses.replace(spec, fields=FIELDS | dict(dtype="float32"))
    model = Model(spec, network.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 1)), train=False))
    with pytest.raises(
        UserError, match="--input=uint8: images of this model are decoded to uint16; use --input=uint16"
    ):
        model.export(tmp_path / "program", "stablehlo", inputs="uint8")
    report = model.export(tmp_path / "program", "stablehlo", inputs="uint16")
    assert report.comparison is not None and report.comparison.holds
    assert "uint16, levels from 0 to 65,535" in (tmp_path / "program/README.md").read_text()


@pytest.mark.slow
def test_classes_that_differ_by_less_than_a_level_of_eight_bits_are_learnt(scans):
    """From the command's configuration to the trained model in use."""
    config = common.base(
        dataset=dict(name="folder", path=str(scans), cache_dir=str(scans / "cache"), value_range=(0.0, 4095.0)),
        image_size=SIZE,
        normalize="dataset",
        model=dict(name="mlp_mixer", **FIELDS),
        batch_size=8,
        total_epochs=10.0,
        mesh=dict(data=1),
        optimizer=dict(learning_rate=1e-2),
        tensorboard=False,
        plots=False,
    )
    summary = train(config, scans / "run")
    assert summary["val_accuracy"] == summary["test_accuracy"] == 1.0
    assert read_model_spec(scans / "run").level_bits == 16
    evaluation = patchnets.load(scans / "run").evaluate(scans / "test")
    assert evaluation.accuracy == 1.0
    assert evaluation.loss == pytest.approx(summary["test_loss"], rel=1e-5)
