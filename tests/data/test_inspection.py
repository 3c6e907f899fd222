"""What an inspection says of a folder that was made for it, and of data sets that are known."""

import json
import os
import time

import numpy as np
import pytest
from PIL import Image

from patchnets.data import __main__ as program
from patchnets.data import inspection
from patchnets.data.sources import open_source
from patchnets.data.sources.folder import Folder
from patchnets.errors import UserError
from patchnets.plots import contact_sheet


def picture(seed, mode="RGB", size=(12, 10)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def folder(tmp_path):
    """Two classes of 4 and 2 training images and 3 of test, with a fault of every kind."""
    root = tmp_path / "photos"
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (root / name).mkdir(parents=True)
    picture(0).save(root / "train/cat/a.png")
    picture(0).save(root / "train/cat/again.bmp")  # other bytes, the same pixels
    picture(1, size=(40, 10)).save(root / "train/cat/wide.png")
    (root / "train/cat/torn.png").write_bytes((root / "train/cat/a.png").read_bytes()[:60])
    picture(0).save(root / "train/dog/as_cat.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(2).save(root / "train/dog/turned.jpg", exif=exif)
    picture(1, size=(40, 10)).save(root / "test/cat/leaked.png")
    picture(3, "RGBA").save(root / "test/cat/clear.png")
    picture(4).save(root / "test/dog/moving.gif", save_all=True, append_images=[picture(5)])
    return root


def test_every_fault_of_a_folder_is_counted_and_named(folder):
    figures = inspection.inspect(Folder(str(folder))).to_json()
    assert figures["splits"]["train"] == dict(images=6, unlabeled=0, classes=dict(cat=4, dog=2))
    assert figures["splits"]["test"] == dict(images=3, unlabeled=0, classes=dict(cat=2, dog=1))
    assert figures["kinds"] == {"PNG RGB": 4, "BMP RGB": 1, "JPEG RGB": 1, "PNG RGBA": 1, "GIF P": 1}
    assert figures["sizes"] == {"10 x 12": 6, "10 x 40": 2}
    assert (figures["turned"], figures["animated"]) == (1, 1)
    (torn,) = figures["unreadable"]
    assert "torn.png" in torn
    assert figures["repeated_within"] == dict(train=2, test=0)
    assert figures["shared_between"] == {"train, test": 1}
    (conflict,) = figures["other_labels"]
    assert sorted(name.rsplit("/", 1)[1] for name in conflict) == ["a.png", "again.bmp", "as_cat.png"]
    assert len(figures["same_pixels"]) == 2


def test_the_screen_says_what_the_figures_say(folder):
    text = "\n".join(inspection.describe(inspection.inspect(Folder(str(folder)))))
    for line in (
        "2 classes, 3 channel(s)",
        "1 images by their EXIF orientation",
        "1 images, of which the first frame",
        "WARNING: 1 images cannot be read",
        "2 of 6 train images are in it more than once",
        "WARNING: 1 of 3 test images are in train too",
        "WARNING: 1 images are there under different labels",
        "width 12 to 40 pixels, median 12; height 10 to 10",
    ):
        assert line in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith(("all", "cat", "dog"))}
    assert rows == dict(all=["6", "3"], cat=["4", "2"], dog=["2", "1"])


def test_a_split_that_cannot_be_used_is_a_line_and_the_others_are_read(folder):
    (folder / "test/bird").mkdir()
    picture(9).save(folder / "test/bird/x.png")
    result = inspection.inspect(Folder(str(folder)))
    assert list(result.facts) == ["train"]
    (problem,) = result.problems
    assert "test/bird is a class that train/ does not have" in problem


def test_digits_are_whole_and_no_two_are_alike():
    figures = inspection.inspect(open_source("digits")).to_json()
    assert {name: split["images"] for name, split in figures["splits"].items()} == dict(train=1438, test=359)
    # scikit-learn documents 178, 182, 177, 183, 181, 182, 181, 179, 174, 180 images of 0 to 9.
    totals = [sum(split["classes"][str(digit)] for split in figures["splits"].values()) for digit in range(10)]
    assert totals == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert figures["sizes"] == {"8 x 8": 1797} and figures["unreadable"] == [] and figures["same_pixels"] == []


def test_of_many_classes_the_largest_and_the_smallest_are_shown(tmp_path):
    for label in range(30):
        directory = tmp_path / f"train/class{label:02}"
        directory.mkdir(parents=True)
        for i in range(1 + label):
            picture(100 * label + i, size=(2, 2)).save(directory / f"{i}.png")
    lines = list(inspection.describe(inspection.inspect(Folder(str(tmp_path)))))
    names = [line.split()[0] for line in lines if line.startswith(("class", "..."))][1:]
    assert names == [f"class{i}" for i in range(29, 19, -1)] + ["..."] + [f"class{i:02}" for i in range(9, -1, -1)]
    assert "... 10 more" in lines


def test_contact_sheets_show_readable_images_of_each_class(folder):
    rows = contact_sheet.sample(inspection.inspect(Folder(str(folder))), 6)
    assert {name: images.shape for name, images in rows.items()} == dict(cat=(3, 6, 6, 3), dog=(2, 6, 6, 3))


@pytest.mark.slow  # compiles an augmentation
def test_the_command_writes_figures_and_pictures_and_its_status_tells_of_unreadable_images(folder, tmp_path, capsys):
    output = tmp_path / "out"
    assert program.main(["data", str(folder), f"--output={output}"]) == 1
    assert sorted(path.name for path in output.iterdir()) == ["augmented.png", "classes.png", "inspection.json"]
    assert json.loads((output / "inspection.json").read_text())["name"] == "folder"
    assert np.ptp(np.asarray(Image.open(output / "classes.png").convert("L"))) > 100
    (folder / "train/cat/torn.png").unlink()
    augment = ["--config=vit_digits", "--config.augment.flip=True", "--config.image_size=8"]
    assert program.main(["data", str(folder), f"--output={output}", *augment]) == 0
    assert "wrote" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere/at/all"], "/nowhere/at/all"),
        (["digits", "--config.image_size=8"], "name it with --config"),
        (["no_such_data_set_at_all"], "no_such_data_set_at_all"),
        ([], "--help"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert program.main(["data", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_without_a_usable_split_is_an_error(folder):
    source = Folder(str(folder))
    source._errors = {name: UserError(f"{name} is broken") for name in source.sizes}
    with pytest.raises(UserError, match="train is broken; test is broken"):
        inspection.inspect(source)


@pytest.mark.slow
def test_classes_of_sixteen_bits_are_drawn_as_those_of_eight(tmp_path):
    """100 / 257 of a level more: all that is left of them in bytes, if only the lower eight bits are drawn."""
    eight = np.random.default_rng(0).integers(0, 255, (2, 6, 6, 3)).astype(np.uint8)
    sixteen = eight.astype(np.uint16) * 257 + 100
    drawn = [
        np.asarray(Image.open(contact_sheet.draw_rows({"cat": images}, "cats", tmp_path / f"{images.dtype}.png")), int)
        for images in (eight, sixteen)
    ]
    assert np.ptp(drawn[0]) > 200 and np.abs(drawn[0] - drawn[1]).max() <= 1


def test_broken_links_are_images_that_cannot_be_read_and_pipes_are_none(folder):
    (folder / "train/cat/lost.png").symlink_to(folder / "gone.png")
    (folder / "train/cat/itself.png").symlink_to("itself.png")
    os.mkfifo(folder / "train/cat/pipe.png")
    unreadable = inspection.inspect(Folder(str(folder))).unreadable()
    assert sorted(line.split(" cannot")[0].rsplit("/", 1)[1] for line in unreadable) == [
        "itself.png",
        "lost.png",
        "torn.png",
    ]


def test_a_split_that_cannot_be_used_counts_for_the_status(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(contact_sheet, "draw", lambda *_: [])
    (folder / "train/cat/torn.png").unlink()
    arguments = ["data", str(folder), f"--output={tmp_path / 'out'}"]
    assert program.main(arguments) == 0
    (folder / "test/dog").rename(folder / "test/wolf")
    assert program.main(arguments) == 1
    assert "wolf is a class that train/ does not have" in capsys.readouterr().out


def test_results_that_cannot_be_written_are_an_error_before_images_are_read(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inspection, "inspect", lambda _: pytest.fail("read"))
    (tmp_path / "file").write_bytes(b"")
    assert program.main(["data", str(folder), f"--output={tmp_path / 'file/out'}"]) == 1
    assert program.main(["data", str(folder), f"--output={folder / 'train/out'}"]) == 2
    first, second = capsys.readouterr().err.strip().splitlines()
    assert "Not a directory" in first and "lies among the images" in second
    assert not (folder / "train/out").exists()


def test_a_configuration_of_tfds_is_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine/photos").mkdir(parents=True)
    names = {name: program.options_of(name, None, None, ()).name for name in ("a/b", "mine/photos", "./a", "/a/b")}
    assert names == {"a/b": "a/b", "mine/photos": "folder", "./a": "folder", "/a/b": "folder"}


def test_ctrl_c_does_not_wait_for_the_rest_of_what_threads_have_begun(monkeypatch):
    begun = []

    def read(source, records, position):
        begun.append(position)
        time.sleep(0.02 * (position >= inspection.CHUNK))
        return inspection.ImageFacts(0)

    class Bar(inspection.tqdm):
        def update(self, n=1):
            raise KeyboardInterrupt

    monkeypatch.setattr(inspection, "_read", read)
    monkeypatch.setattr(inspection, "tqdm", Bar)
    with pytest.raises(KeyboardInterrupt):
        inspection.inspect(open_source("digits"))
    assert len(begun) < 3 * inspection.CHUNK
