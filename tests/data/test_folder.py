"""A folder of images becomes a data set with the right pixels, labels and order, or an error that names the path."""

import os
import pathlib
import pickle
import shutil
import threading
import warnings

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from patchnets import data
from patchnets.data import decoded_cache, sources
from patchnets.data.options import DataOptions
from patchnets.data.sources import folder
from patchnets.errors import RunError, UserError
from patchnets.parallel import mesh as mesh_lib

GIB = 2.0**30


def solid(value, size=(4, 4), channels=3):
    """An image of one color, whose value tells it from others."""
    return np.full((*size, channels) if channels == 3 else size, value, np.uint8)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def make(root, images):
    """Writes {path below the root: array} and returns the root."""
    for path, image in images.items():
        save(root / path, image)
    return root


def read(source, split="train", size=None):
    """All images and labels of a split, in its order."""
    records = source.records(split)
    return records.examples(range(len(records)), size)


def values(source, split="train"):
    """The first pixel of every image, in order: enough to tell solid images apart."""
    return [int(image.flat[0]) for image, _ in read(source, split)]


@pytest.fixture(scope="module")
def photo():
    """A real photograph, 427 x 640."""
    return datasets.load_sample_image("china.jpg")


@pytest.fixture
def plain(tmp_path):
    """Two classes of three solid images each: 10, 11, 12 and 20, 21, 22."""
    return make(
        tmp_path / "plain",
        {f"train/{name}/{v}.png": solid(v) for name, v0 in (("ant", 10), ("bee", 20)) for v in range(v0, v0 + 3)},
    )


def bicubic_matrix(out, size, low, high):
    """Keys' cubic convolution (a = -0.5) from [low, high) of a line to `out` pixels, widened where it shrinks."""
    scale = (high - low) / out
    distance = (np.arange(size) + 0.5 - (low + (np.arange(out)[:, None] + 0.5) * scale)) / max(scale, 1.0)
    x = np.abs(distance)
    weights = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0.0))
    return weights / weights.sum(1, keepdims=True)


def center_square(image, size):
    """The shorter side resized to `size`, the longer one cropped about its center: independent of Pillow."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) / 2, (width - side) / 2
    rows = bicubic_matrix(size, height, top, top + side)
    columns = bicubic_matrix(size, width, left, left + side)
    resized = np.einsum("ph,hwc,qw->pqc", rows, image.astype(float), columns, optimize=True)
    return np.clip(resized, 0, 255).round()


# Which files are images, and of which class.


def test_labels_are_the_alphabetical_places_of_the_class_folders(plain):
    source = folder.Folder(str(plain))
    assert source.class_names == ("ant", "bee")
    assert sorted((int(image.flat[0]), label) for image, label in read(source)) == [
        (10, 0),
        (11, 0),
        (12, 0),
        (20, 1),
        (21, 1),
        (22, 1),
    ]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif", "ppm"])
def test_every_format_that_pillow_decodes_counts_in_upper_and_lower_case(tmp_path, suffix):
    save(tmp_path / "train/only" / f"a.{suffix}", solid(200))
    save(tmp_path / "train/only" / f"B.{suffix.upper()}", solid(200))
    assert values(folder.Folder(str(tmp_path))) == [200, 200]


def test_images_in_nested_folders_are_of_the_class_around_them(plain):
    make(plain, {"train/ant/more/30.png": solid(30), "train/ant/more/.hidden/40.png": solid(40)})
    make(plain, {"train/ant/even/more/31.webp": solid(31), "train/ant/10.png": solid(10)})
    source = folder.Folder(str(plain))
    pixels = {int(image.flat[0]): label for image, label in read(source)}
    assert pixels == {10: 0, 11: 0, 12: 0, 30: 0, 31: 0, 20: 1, 21: 1, 22: 1}
    names = {source.records("train").name_of(i).removeprefix(str(plain)) for i in range(8)}
    assert "/train/ant/even/more/31.webp" in names
    records = pickle.loads(pickle.dumps(source.records("train")))
    assert records.fingerprint() == source.records("train").fingerprint()


def test_a_link_to_a_folder_around_it_does_not_go_round(plain):
    (plain / "train/ant/again").symlink_to(plain / "train/ant")
    (plain / "train/ant/more").mkdir()
    (plain / "train/ant/more/up").symlink_to(plain / "train")
    assert folder.Folder(str(plain)).sizes == {"train": 6}


@pytest.mark.parametrize("names", [("validation", "Test"), ("valid", "testing"), ("Val", "TEST"), ("dev", "test")])
def test_the_usual_names_of_splits_are_taken_in_any_case(plain, names):
    make(plain, {f"{names[0]}/bee/x.png": solid(30), f"{names[1]}/ant/y.png": solid(40)})
    plain.joinpath("train").rename(plain / "Training")
    source = folder.Folder(str(plain))
    assert source.sizes == {"train": 6, "val": 1, "test": 1} and source.notes == []
    assert values(source, "val") == [30] and values(source, "test") == [40]


def test_what_is_not_used_is_named(plain, capsys):
    make(plain, {"extra/ant/1.png": solid(1), "holdout/ant/1.png": solid(1)})
    for name in ("a.txt", "b.TXT", "c.json", "Thumbs.db", ".DS_Store", "README"):
        (plain / "train/ant" / name).write_text("no image")
    expected = [
        f"{plain}: not used: extra/, holdout/",
        f"{plain}/train: 5 files are no images that Pillow reads (.txt 2, .json 1, .db 1, no suffix 1)",
    ]
    source = folder.Folder(str(plain))
    assert [sorted(note.replace(")", ",").split()) for note in source.notes] == [
        sorted(note.replace(")", ",").split()) for note in expected
    ]
    options = DataOptions("folder", str(plain), image_size=4, cache_dir=str(plain / "cache"), batch_size=2)
    data.load_dataset(options, mesh_lib.make_mesh(data=1)).close()
    assert set(source.notes) <= set(capsys.readouterr().out.splitlines())


def test_other_files_are_left_alone(plain):
    (plain / "train/ant/notes.txt").write_text("an ant")
    (plain / "train/ant/thumbs.db").write_bytes(b"\0")
    (plain / "train/readme.png.md").write_text("not a class")
    (plain / "labels.csv").write_text("not a split")
    assert folder.Folder(str(plain)).sizes == {"train": 6}


def test_val_and_test_are_optional_and_share_the_labels_of_train(plain):
    assert set(folder.Folder(str(plain)).sizes) == {"train"}
    make(plain, {"val/bee/x.png": solid(30), "test/ant/y.png": solid(40), "test/bee/z.png": solid(41)})
    source = folder.Folder(str(plain))
    assert source.sizes == {"train": 6, "val": 1, "test": 2}
    assert [(int(image.flat[0]), label) for image, label in read(source, "val")] == [(30, 1)]
    assert sorted((int(image.flat[0]), label) for image, label in read(source, "test")) == [(40, 0), (41, 1)]


def test_a_folder_named_like_an_image_is_none(plain):
    (plain / "train/ant/0.jpg").mkdir()
    assert folder.Folder(str(plain)).sizes == {"train": 6}


def test_symbolic_links_to_classes_and_files_are_followed(plain, tmp_path):
    save(tmp_path / "elsewhere/cat/1.png", solid(50))
    save(tmp_path / "single.png", solid(60))
    (plain / "train/cat").symlink_to(tmp_path / "elsewhere/cat", target_is_directory=True)
    (plain / "train/ant/linked.png").symlink_to(tmp_path / "single.png")
    source = folder.Folder(str(plain))
    assert source.class_names == ("ant", "bee", "cat")
    assert {(50, 2), (60, 0)} <= {(int(image.flat[0]), label) for image, label in read(source)}


def test_a_link_to_nothing_is_an_error_that_names_it(plain):
    (plain / "train/ant/lost.png").symlink_to(plain / "gone.png")
    with pytest.raises((UserError, RunError, OSError)) as error:
        read(folder.Folder(str(plain)))
    assert "lost.png" in str(error.value)


def test_hidden_folders_are_no_classes(plain):
    save(plain / "train/.thumbnails/1.png", solid(70))
    (plain / "train/.git").mkdir()
    source = folder.Folder(str(plain))
    assert source.class_names == ("ant", "bee")
    assert source.sizes == {"train": 6}


def test_hidden_files_are_no_images(plain):
    (plain / "train/ant/._10.png").write_bytes(b"\0\5\26\7 resource fork")
    assert sorted(values(folder.Folder(str(plain)))) == [10, 11, 12, 20, 21, 22]


def test_names_with_spaces_and_of_any_script_are_read(tmp_path):
    make(tmp_path, {"train/große Katze/ein Bild.png": solid(1), "train/猫/画像 1.png": solid(2)})
    source = folder.Folder(str(tmp_path))
    assert source.class_names == ("große Katze", "猫")
    assert sorted((int(image.flat[0]), label) for image, label in read(source)) == [(1, 0), (2, 1)]


def test_file_names_that_are_not_unicode_are_read(plain):
    try:
        os.rename(plain / "train/ant/10.png", os.path.join(os.fsencode(plain / "train/ant"), b"\xff.png"))
    except OSError:
        pytest.skip("this file system takes no such names")
    source = folder.Folder(str(plain))
    assert sorted(values(source)) == [10, 11, 12, 20, 21, 22]
    assert source.version == folder.Folder(str(plain)).version


# Pixels.


def test_one_colored_image_makes_all_rgb_however_many_gray_ones_there_are(tmp_path):
    make(tmp_path, {f"train/{name}/{i}.png": solid(7, channels=1) for name in "ab" for i in range(20)})
    save(tmp_path / "train/b/colored.png", solid(9))
    assert folder.Folder(str(tmp_path)).channels == 3
    (tmp_path / "train/b/colored.png").unlink()
    assert folder.Folder(str(tmp_path)).channels == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_the_channels_can_be_set(tmp_path, channels):
    make(tmp_path, {"train/a/1.png": solid(7, channels=1), "train/b/1.png": solid(9)})
    source = sources.open_source("folder", str(tmp_path), channels=channels)
    assert source.channels == channels and {image.shape for image, _ in read(source)} == {(4, 4, channels)}
    assert source.version != folder.Folder(str(tmp_path)).version
    with pytest.raises(UserError, match=r"config\.dataset\.channels=1 applies only to dataset\.name=folder, not"):
        sources.open_source("digits", channels=1)


def test_images_are_rgb_where_they_are_colored(plain):
    source = folder.Folder(str(plain))
    assert source.channels == 3
    assert all(image.shape == (4, 4, 3) and image.dtype == np.uint8 for image, _ in read(source))


def test_images_are_gray_where_all_of_train_are(tmp_path):
    make(tmp_path, {"train/a/1.png": solid(7, channels=1), "train/b/1.jpg": solid(9, channels=1)})
    source = folder.Folder(str(tmp_path))
    assert source.channels == 1
    assert all(image.shape == (4, 4, 1) for image, _ in read(source))
    assert sorted(values(source)) == [7, 9]


def test_one_colored_class_makes_all_images_rgb(tmp_path):
    make(
        tmp_path,
        {"train/a/1.png": solid(7, channels=1), "train/b/1.png": solid(9), "train/c/1.png": solid(8, channels=1)},
    )
    source = folder.Folder(str(tmp_path))
    assert source.channels == 3
    for image, label in read(source):
        assert np.array_equal(image, np.full((4, 4, 3), (7, 9, 8)[label]))


def test_a_colored_image_among_gray_ones_is_read_by_its_luminance(tmp_path):
    make(tmp_path, {"train/a/1.png": solid(7, channels=1), "val/a/2.png": np.tile(np.uint8([200, 100, 50]), (4, 4, 1))})
    source = folder.Folder(str(tmp_path))
    (image, _), *_ = read(source, "val")
    assert source.channels == 1
    assert abs(int(image.flat[0]) - (0.299 * 200 + 0.587 * 100 + 0.114 * 50)) <= 1


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLORS = np.stack([RAMP, RAMP.T, 255 - RAMP], -1)


def odd_files():
    """{name: (image, what its file is called, pixels that it stands for, tolerance)} of the formats that occur."""
    palette = Image.fromarray(RAMP, "P")
    palette.putpalette(np.stack([np.arange(256), np.arange(256)[::-1], np.full(256, 9)], -1).astype(np.uint8).tobytes())
    palette.info["transparency"] = 3
    through_palette = np.stack([RAMP, 255 - RAMP, np.full_like(RAMP, 9)], -1)
    through_palette[RAMP == 3] = 255  # the transparent one shows the background
    bits = (RAMP % 3 == 0).astype(np.uint8) * 255
    inks = np.stack([COLORS[..., 0], COLORS[..., 1], np.full_like(RAMP, 60), np.full_like(RAMP, 30)], -1)
    mixed = (255 - inks[..., :3].astype(float)) * (255 - 30) / 255
    return {
        "rgba": (Image.fromarray(np.dstack([COLORS, np.full_like(RAMP, 255)]), "RGBA"), "x.png", COLORS, 0),
        "palette": (palette, "x.png", through_palette, 0),
        "gray and alpha": (
            Image.fromarray(np.dstack([RAMP, np.full_like(RAMP, 255)]), "LA"),
            "x.png",
            RAMP[..., None],
            0,
        ),
        "one bit": (Image.fromarray(bits).convert("1"), "x.png", bits[..., None], 0),
        "cmyk": (Image.fromarray(inks, "CMYK"), "x.jpg", mixed, 12),
    }


@pytest.mark.filterwarnings("ignore:.*mode.*:DeprecationWarning")
@pytest.mark.parametrize("name", ["rgba", "palette", "gray and alpha", "one bit", "cmyk"])
def test_less_usual_formats_are_read_as_the_colors_they_stand_for(tmp_path, name):
    image, file, expected, tolerance = odd_files()[name]
    options = {"quality": 100, "subsampling": 0} if file.endswith("jpg") else {}
    save(tmp_path / "train/a" / file, image, **options)
    with Image.open(tmp_path / "train/a" / file) as written:
        assert written.mode == image.mode  # the file does hold that format
    source = folder.Folder(str(tmp_path))
    ((pixels, _),) = read(source)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(float) - expected).max() <= tolerance


@pytest.mark.parametrize("channels", [1, 3])
def test_gray_images_of_16_bits_are_scaled_to_bytes(tmp_path, channels):
    levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    save(tmp_path / "train/a/x.png", levels)
    if channels == 3:
        save(tmp_path / "train/b/x.png", COLORS)
    source = folder.Folder(str(tmp_path))
    pixels = next(image for image, label in read(source) if label == 0)
    assert pixels.shape == (16, 16, channels)
    assert np.abs(pixels[..., 0] - levels / 257).max() <= 1


@pytest.mark.parametrize("shape", [(30, 30), (40, 31), (31, 40), (12, 90), (33, 32)])
def test_images_of_other_shapes_are_resized_and_cropped_to_the_center(tmp_path, photo, shape):
    image = np.ascontiguousarray(photo[100 : 100 + shape[0], 250 : 250 + shape[1]])
    save(tmp_path / "train/a/x.png", image)
    ((pixels, _),) = read(folder.Folder(str(tmp_path)), size=16)
    assert pixels.shape == (16, 16, 3)
    assert np.abs(pixels - center_square(image, 16)).max() <= 2


def test_small_images_are_enlarged(tmp_path, photo):
    image = np.ascontiguousarray(photo[200:209, 300:311])
    save(tmp_path / "train/a/x.png", image)
    ((pixels, _),) = read(folder.Folder(str(tmp_path)), size=24)
    assert np.abs(pixels - center_square(image, 24)).max() <= 2


def test_a_jpeg_less_than_twice_as_large_is_resized_from_all_its_pixels(tmp_path, photo):
    path = save(tmp_path / "train/a/x.jpg", np.ascontiguousarray(photo[:60, :90]), quality=95)
    ((pixels, _),) = read(folder.Folder(str(tmp_path)), size=32)
    assert np.abs(pixels - center_square(np.asarray(Image.open(path)), 32)).max() <= 2


@pytest.mark.parametrize("size", [32, 160])
def test_a_large_jpeg_is_reduced_without_a_visible_difference(tmp_path, photo, size):
    path = save(tmp_path / "train/a/x.jpg", photo, quality=95)
    ((pixels, _),) = read(folder.Folder(str(tmp_path)), size=size)
    difference = np.abs(pixels - center_square(np.asarray(Image.open(path)), size))
    assert difference.mean() < 1
    assert difference.max() < 12


@pytest.mark.parametrize(
    ("shapes", "side"),
    [([(8, 8), (8, 8)], 8), ([(8, 6), (8, 6)], None), ([(8, 6), (6, 8)], None)],
)
def test_the_native_size_is_stated_only_where_images_are_squares(tmp_path, shapes, side):
    make(tmp_path, {f"train/a/{i}.png": solid(i, shape) for i, shape in enumerate(shapes)})
    assert folder.Folder(str(tmp_path)).records("train").native_size() == side


@pytest.mark.parametrize(("native", "image_size", "stored"), [(8, 16, 8), (16, 16, 16), (20, 16, 16)])
def test_squares_no_larger_than_asked_for_are_kept_as_they_are(tmp_path, photo, native, image_size, stored):
    image = np.ascontiguousarray(photo[:native, :native])
    save(tmp_path / "images/train/a/x.png", image)
    source = folder.Folder(str(tmp_path / "images"))
    images, labels, _ = decoded_cache.load_or_decode(source, "train", image_size, tmp_path / "cache", GIB)
    assert images.shape == (1, stored, stored, 3)
    assert labels.tolist() == [0]
    if stored == native:
        np.testing.assert_array_equal(images[0], image)
    else:
        assert np.abs(images[0] - center_square(image, stored)).max() <= 2


def test_a_folder_of_mixed_sizes_is_stored_at_the_size_asked_for(tmp_path, photo):
    cuts = {"1.png": photo[:20, :20], "2.png": photo[:40, :25], "3.png": photo[:12, :30]}
    make(tmp_path / "images", {f"train/a/{name}": np.ascontiguousarray(cut) for name, cut in cuts.items()})
    source = folder.Folder(str(tmp_path / "images"))
    images, *_ = decoded_cache.load_or_decode(source, "train", 16, tmp_path / "cache", GIB)
    assert images.shape == (3, 16, 16, 3)
    for expected in (center_square(cut, 16) for cut in cuts.values()):
        assert min(np.abs(image - expected).max() for image in images) <= 2


def test_decoding_in_threads_leaves_warnings_as_they_were(plain, monkeypatch):
    first_inside, second_inside, first_done = threading.Event(), threading.Event(), threading.Event()
    convert = Image.Image.convert

    def in_turns(image, *arguments, **options):
        if threading.current_thread().name == "first":
            first_inside.set()
            second_inside.wait(1)
        else:
            second_inside.set()
            first_done.wait(1)
        return convert(image, *arguments, **options)

    monkeypatch.setattr(Image.Image, "convert", in_turns)
    records = folder.Folder(str(plain)).records("train")

    def task():
        records.examples([0])
        if threading.current_thread().name == "first":
            first_done.set()

    with warnings.catch_warnings():  # whatever happens, other tests see theirs
        before = list(warnings.filters)
        threads = [threading.Thread(target=task, name=name) for name in ("first", "second")]
        threads[0].start()
        first_inside.wait(1)
        threads[1].start()
        for thread in threads:
            thread.join()
        assert list(warnings.filters) == before


# The order.


def many(root, names, reverse=False):
    """Solid images named `names`, each with its own value, created in this order or the reverse."""
    numbered = sorted(enumerate(names), reverse=reverse)
    return make(root, {f"train/{name}.png": solid(i, (1, 1)) for i, name in numbered})


def test_the_order_is_the_same_whatever_the_place_and_the_order_of_creation(tmp_path):
    names = [f"{c}/{i}" for c in "abc" for i in range(20)]
    first, other = many(tmp_path / "one", names), many(tmp_path / "other/place", names, reverse=True)
    order = values(folder.Folder(str(first)))
    assert order == values(folder.Folder(str(first))) == values(folder.Folder(str(other)))
    assert sorted(order) == list(range(60))
    assert order != sorted(order)


def test_the_last_tenth_is_a_fair_mix_of_all_classes(tmp_path):
    root = many(tmp_path, [f"{c}/image_{i:04}" for c in ("ant", "bee", "cat", "dog", "eel") for i in range(50)])
    labels = [label for _, label in read(folder.Folder(str(root)))]
    held = np.bincount(labels[225:], minlength=5)
    assert held.min() >= 2
    assert held.max() <= 9


def test_a_new_file_moves_no_other(tmp_path):
    names = [f"{c}/{i}" for c in "abc" for i in range(10)]
    root = many(tmp_path, names)
    before = values(folder.Folder(str(root)))
    save(root / "train/b/new.png", solid(200, (1, 1)))
    after = values(folder.Folder(str(root)))
    assert 200 in after
    assert [value for value in after if value != 200] == before


# The version, which names the cached images.


def test_the_version_stays_while_nothing_changes(plain, tmp_path):
    (tmp_path / "link").symlink_to(plain, target_is_directory=True)
    (plain / "train/ant/notes.txt").write_text("no image")
    assert folder.Folder(str(plain)).version == folder.Folder(str(tmp_path / "link")).version


def touch(path):
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))


CHANGES = {
    "other pixels": lambda root: save(root / "train/ant/10.png", np.arange(48, dtype=np.uint8).reshape(4, 4, 3)),
    "a later time": lambda root: touch(root / "train/ant/10.png"),
    "a new file": lambda root: save(root / "train/ant/13.png", solid(13)),
    "a file less": lambda root: (root / "train/ant/10.png").unlink(),
    "another name": lambda root: (root / "train/ant/10.png").rename(root / "train/ant/99.png"),
    "another class": lambda root: (root / "train/ant/10.png").rename(root / "train/bee/10.png"),
    "a new split": lambda root: save(root / "val/ant/1.png", solid(1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_version_changes_with_the_images(plain, change):
    before = folder.Folder(str(plain)).version
    CHANGES[change](plain)
    assert folder.Folder(str(plain)).version != before


def fingerprint(root):
    return folder.Folder(str(root)).records("train").fingerprint()


UNCHANGED = ("a later time", "a new split")


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_changes_with_names_labels_and_contents(plain, change):
    before = fingerprint(plain)
    CHANGES[change](plain)
    assert (fingerprint(plain) == before) == (change in UNCHANGED)


def test_contents_count_whatever_size_and_time_say(plain, monkeypatch):
    path = plain / "train/ant/10.png"
    stat, before = path.stat(), folder.Folder(str(plain))
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = folder.Folder(str(plain))
    assert path.stat().st_size == stat.st_size
    assert after.version != before.version
    assert after.records("train").fingerprint() != before.records("train").fingerprint()


def test_of_a_large_split_a_sample_is_read_and_all_sizes_count(plain, monkeypatch):
    make(plain, {f"train/ant/{i}.png": solid(i) for i in range(100, 160)})
    monkeypatch.setattr(folder, "MAX_HASHED_BYTES", 100)
    monkeypatch.setattr(folder, "NUM_HASHED", 6)
    records, read = folder.Folder(str(plain)).records("train"), []
    original = pathlib.Path.read_bytes
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda path: read.append(path) or original(path))
    before = fingerprint(plain)
    assert 6 <= len(read) <= 12 and before == records.fingerprint()
    for path in (plain / "train").glob("*/*.png"):
        save(path, solid(0))  # every image black, as the same files
    assert fingerprint(plain) != before
    smallest = min((plain / "train").glob("*/*.png"))
    smallest.write_bytes(smallest.read_bytes() + b"\0")
    assert fingerprint(plain) not in (before, records.fingerprint())


def test_the_fingerprint_hangs_neither_on_the_place_nor_on_how_long_other_names_are(tmp_path):
    names = [f"{c}/{i}" for c in "ab" for i in range(6)]
    root = many(tmp_path / "one", names)
    before = fingerprint(root)
    assert fingerprint(shutil.copytree(root, tmp_path / "another")) == before
    assert 0 <= before < 2**32
    sample = [folder.File(b"", name, 0, "") for name in ("ab", "c")]
    others = [folder.File(b"", name, 0, "") for name in ("a", "bc")]
    first, other = (folder.FolderRecords(tmp_path, ["a"], files, 3).fingerprint() for files in (sample, others))
    assert first != other


def test_two_folders_of_equal_names_have_versions_of_their_own(tmp_path):
    for path in ("one", "other"):
        save(tmp_path / path / "train/a/1.png", solid(1))
        os.utime(tmp_path / path / "train/a/1.png", ns=(0, 0))
    assert folder.Folder(str(tmp_path / "one")).version != folder.Folder(str(tmp_path / "other")).version


def test_the_path_may_be_relative_or_begin_with_a_tilde(plain, monkeypatch):
    monkeypatch.chdir(plain.parent)
    monkeypatch.setenv("HOME", str(plain.parent))
    versions = {folder.Folder(path).version for path in ("plain", "./plain/", "~/plain", str(plain))}
    assert len(versions) == 1


# Errors.


def expect_user_error(root, *words):
    with pytest.raises(UserError) as error:
        source = folder.Folder(str(root))
        for split in source.sizes:
            source.records(split)
    message = str(error.value)
    assert "\n" not in message
    assert all(str(word) in message for word in words), message


def test_a_path_that_is_not_there_is_an_error(tmp_path):
    expect_user_error(tmp_path / "nowhere", tmp_path / "nowhere", "train/")


def test_a_folder_without_train_is_an_error(tmp_path):
    save(tmp_path / "cats/1.png", solid(1))
    expect_user_error(tmp_path, tmp_path, "train/", "train/CLASS")


def test_train_without_class_folders_is_an_error(tmp_path):
    save(tmp_path / "train/1.png", solid(1))
    expect_user_error(tmp_path, tmp_path / "train", "class")


@pytest.mark.parametrize("path", ["train/cat", "val/ant", "test/bee"])
def test_an_empty_class_folder_is_an_error(plain, path):
    (plain / path).mkdir(parents=True)
    (plain / path / "notes.txt").write_text("nothing else")
    expect_user_error(plain, plain / path, "no images")


@pytest.mark.parametrize("names", [("val", "Validation"), ("TEST", "testing"), ("train", "Train")])
def test_two_folders_of_one_split_are_refused(plain, names):
    for name in names:
        save(plain / name / "ant/1.png", solid(1))
    expect_user_error(plain, *(f"{name}/" for name in names), "both mean")


@pytest.mark.parametrize(
    "problem, words",
    [
        ("test/1.png", "holds no class folders"),
        ("test/wasp/1.png", "is a class that train/ does not have"),
        ("test/ant/notes.txt", "holds no images"),
    ],
)
def test_a_test_split_that_cannot_be_used_is_no_error_until_it_is_read(plain, problem, words):
    save(plain / "test/1.png", solid(1))
    (plain / problem).parent.mkdir(parents=True, exist_ok=True)
    if problem.endswith("txt"):
        (plain / problem).write_text("an ant")
    else:
        save(plain / problem, solid(1))
    source = folder.Folder(str(plain))
    assert len(source.records("train")) == 6
    opened = data.open_dataset(DataOptions("folder", str(plain), image_size=4, test_split="none"), 1)
    assert opened.split_specs["test"] is None
    with pytest.raises(UserError, match=rf"{words}.*or set config\.dataset\.test_split=none"):
        data.open_dataset(DataOptions("folder", str(plain), image_size=4), 1)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_train_does_not_have_is_an_error(plain, split):
    save(plain / split / "wasp/1.png", solid(1))
    expect_user_error(plain, plain / split / "wasp", "train/")


def test_val_without_class_folders_is_an_error(plain):
    save(plain / "val/1.png", solid(1))
    expect_user_error(plain, plain / "val", "val/CLASS")


def test_a_path_that_is_not_set_is_an_error():
    with pytest.raises(UserError, match=r"config\.dataset\.path is not set"):
        sources.open_source("folder")


def truncated_jpeg(path, photo):
    full = save(path, photo).read_bytes()
    path.write_bytes(full[: len(full) // 2])


BROKEN = {
    "truncated.jpg": truncated_jpeg,
    "truncated.png": truncated_jpeg,  # saved as PNG, by its suffix
    "header_only.jpg": lambda path, photo: path.write_bytes(save(path, photo).read_bytes()[:300]),
    "text.jpg": lambda path, photo: path.write_text("these are words, and no image"),
    "empty.png": lambda path, photo: path.touch(),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_an_error_that_names_it_and_leaves_nothing_in_the_cache(tmp_path, photo, name):
    root = make(tmp_path / "images", {f"train/a/{i}.png": solid(i, (64, 64)) for i in range(3)})
    bad = root / "train/a" / name
    BROKEN[name](bad, np.ascontiguousarray(photo[:64, :64]))
    source = folder.Folder(str(root))
    with pytest.raises(RunError) as error:
        decoded_cache.load_or_decode(source, "train", 64, tmp_path / "cache", GIB)
    assert str(bad) in str(error.value)
    assert "\n" not in str(error.value)
    assert [path for path in pathlib.Path(tmp_path / "cache").rglob("*") if path.is_file()] == []
    assert list((tmp_path / "cache").glob("data/*")) == []


# Reading without decoding, as workers do.


def test_files_are_given_as_they_are_with_their_labels_and_paths(plain):
    copy = pickle.loads(pickle.dumps(folder.Folder(str(plain)).records("train")))
    assert len(copy) == 6
    for position, (image, label) in enumerate(read(folder.Folder(str(plain)))):
        path = pathlib.Path(copy.name_of(position))
        assert path.parent == plain.resolve() / "train" / ("ant", "bee")[label]
        assert copy.encoded(position) == (path.read_bytes(), label)
        assert int(np.asarray(Image.open(path)).flat[0]) == image.flat[0]


def test_a_million_files_take_little_more_than_their_names(tmp_path):
    files = [folder.File(b"", f"n{i:08}_{i}.JPEG", i % 1000, "") for i in range(100_000)]
    records = folder.FolderRecords(tmp_path, [f"n{i:08}" for i in range(1000)], files, 3)
    assert records.name_of(12_345) == str(tmp_path / "n00000345" / "n00012345_12345.JPEG")
    assert len(pickle.dumps(records)) < 100_000 * (len("n00012345_12345.JPEG") + 8)


def test_names_of_any_bytes_are_read(tmp_path):
    path = tmp_path / "train/ä" / os.fsdecode(b"\xff\xe9 x.png")
    try:
        save(path, solid(9))
    except OSError:
        pytest.skip("this file system takes no such names")
    records = folder.Folder(str(tmp_path)).records("train")
    assert records.encoded(0) == (path.read_bytes(), 0)


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(plain):
    records = folder.Folder(str(plain)).records("train")
    pathlib.Path(records.name_of(2)).unlink()
    with pytest.raises(RunError) as error:
        records.encoded(2)
    assert records.name_of(2) in str(error.value)
    assert "No such file or directory" in str(error.value)


# Names that look alike: e with an accent composed (NFC), and as e and the accent (NFD).

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_two_classes_whose_names_look_alike_are_refused_in_one_line_that_tells_them_apart(tmp_path):
    make(tmp_path, {f"train/{name}/1.png": solid(9) for name in (COMPOSED, DECOMPOSED, "tea")})
    with pytest.raises(UserError, match=r"'cafe\\u0301' and 'caf\\xe9', in two forms of Unicode; merge") as error:
        folder.Folder(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("train", "val"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_a_class_whose_folder_has_another_form_of_unicode_in_val_is_the_same_class(tmp_path, train, val):
    names = {"train": train, "val": val, "test": train}
    make(tmp_path, {f"{split}/{name}/{i}.png": solid(i + 1) for split, name in names.items() for i in range(2)})
    make(tmp_path, {f"{split}/aaa/9.png": solid(9) for split in names})
    source = folder.Folder(str(tmp_path))
    assert source.class_names == ("aaa", train)
    for split, name in names.items():
        assert sorted((int(image.flat[0]), label) for image, label in read(source, split)) == [(1, 1), (2, 1), (9, 0)]
        records = source.records(split)
        assert {records.path(i).parent.name for i in range(3)} == {"aaa", name}


def test_twins_in_val_are_refused_when_it_is_read(tmp_path):
    make(tmp_path, {f"train/{COMPOSED}/1.png": solid(9)})
    make(tmp_path, {f"val/{name}/1.png": solid(9) for name in (COMPOSED, DECOMPOSED)})
    with pytest.raises(UserError, match="look alike"):
        folder.Folder(str(tmp_path)).records("val")


def test_a_broken_file_does_not_make_gray_images_rgb(tmp_path):
    make(tmp_path, {f"train/a/{i}.png": solid(i, channels=1) for i in range(5)})
    (tmp_path / "train" / "a" / "0.png").write_bytes(b"no image")
    assert folder.Folder(str(tmp_path)).channels == 1
