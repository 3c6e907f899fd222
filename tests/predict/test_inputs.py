"""Which files the arguments of the command name."""

import collections
import io
import os
import pathlib
import sys

import pytest

from patchnets.data.sources import folder as training
from patchnets.errors import UserError
from patchnets.predict import inputs


@pytest.fixture
def photos(tmp_path, monkeypatch):
    for name in (
        "b.PNG",
        "a.jpg",
        "deep/er/c.webp",
        "deep/d.Tiff",
        ".hidden.png",
        ".git/e.png",
        "notes.txt",
        "x[1].gif",
    ):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def paths(*arguments, **options):
    return [pathlib.PurePath(path).as_posix() for path in inputs.image_paths(arguments, **options)]


def test_a_folder_is_searched_with_its_folders_in_alphabetical_order(photos):
    expected = ["photos/a.jpg", "photos/b.PNG", "photos/x[1].gif", "photos/deep/d.Tiff", "photos/deep/er/c.webp"]
    assert paths("photos") == expected
    assert inputs.count_images(["photos"]) == 5


def test_folders_of_results_are_not_searched(photos):
    assert paths("photos", exclude=photos / "deep") == ["photos/a.jpg", "photos/b.PNG", "photos/x[1].gif"]
    assert paths("photos/deep", exclude=photos / "deep" / ".." / "deep" / "er") == ["photos/deep/d.Tiff"]


def test_patterns_are_expanded_and_names_are_taken_as_they_are(photos):
    assert paths("photos/*.[jP]*") == ["photos/a.jpg", "photos/b.PNG"]
    assert paths("photos/**/c.*", "photos/notes.txt") == ["photos/deep/er/c.webp", "photos/notes.txt"]
    assert paths("photos/x[1].gif") == ["photos/x[1].gif"], "that it is a pattern too does not matter"
    assert paths("photos/de*") == ["photos/deep/d.Tiff", "photos/deep/er/c.webp"]


def test_a_list_may_name_files_and_folders_and_what_is_not_there(photos):
    lines = iter(["photos/a.jpg\n", "\n", "gone.png\r\n", "photos/deep\n", "photos/b.PNG"])
    expected = ["photos/a.jpg", "gone.png", "photos/deep/d.Tiff", "photos/deep/er/c.webp", "photos/b.PNG"]
    assert paths("-", lines=lines) == expected
    assert inputs.count_images(["-", "photos"]) is None


def test_a_list_is_read_as_it_is_used():
    def endless():
        while True:
            yield "photo.jpg\n"

    listed = inputs.image_paths(["-"], lines=endless())
    assert [next(listed) for _ in range(3)] == ["photo.jpg"] * 3


def test_the_files_are_those_that_training_uses(photos):
    """Links are followed, but not to where the walk began."""
    elsewhere = photos.parent / "elsewhere"
    (elsewhere / "more").mkdir(parents=True)
    (elsewhere / "more" / "f.png").write_bytes(b"")
    (photos / "link").symlink_to(elsewhere)
    (photos / "g.png").symlink_to(elsewhere / "more" / "f.png")
    (photos / "deep" / "up").symlink_to(photos)
    (photos / "deep" / "here").symlink_to(".")
    expected = {
        f"photos/{name}" for name, _ in training.walk_files(photos) if pathlib.Path(name).suffix.lower() != ".txt"
    }
    assert "photos/link/more/f.png" in expected
    assert sorted(paths("photos")) == sorted(expected) and len(expected) == 7


def test_other_files_are_counted_by_suffix(photos):
    for number in range(10):
        (photos / f"{number}.HEIC").write_bytes(b"")
    (photos / "deep" / "README").write_bytes(b"")
    passed_over = collections.Counter()
    assert len(paths("photos", passed_over=passed_over)) == 5
    assert passed_over == {".heic": 10, ".txt": 1, "no suffix": 1}
    assert inputs.by_suffix(passed_over) == ".heic 10, .txt 1, no suffix 1"
    pathlib.Path("phone").mkdir()
    (photos / "0.HEIC").rename("phone/0.HEIC")
    with pytest.raises(UserError, match=r"phone holds no images but \.heic 1; expected"):
        inputs.count_images(["phone"])


def test_a_folder_that_cannot_be_listed_is_an_error_in_its_place(photos, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "er":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    *images, error = inputs.image_paths(["photos"])
    assert images == ["photos/a.jpg", "photos/b.PNG", "photos/x[1].gif", "photos/deep/d.Tiff"]
    assert isinstance(error, inputs.UnreadableFolder) and error.path == "photos/deep/er"
    assert str(error) == "photos/deep/er cannot be searched (Permission denied)"
    assert inputs.count_images(["photos"]) == 5


def test_standard_input_need_not_be_utf8(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9.png\nb.png\n"), encoding="utf-8"))
    assert [os.fsencode(path) for path in inputs.image_paths(["-"])] == [b"caf\xe9.png", b"b.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["photos", "gone"], "gone is neither a file nor a folder, and as a pattern it matches nothing"),
        (["photos/*.bmp"], "photos/*.bmp is neither"),
        (["photos/.git", "empty"], "empty holds no images; expected names that end in .jpg"),
        (["-", "-"], "standard input (-) can be read once"),
    ],
)
def test_what_is_not_there_is_named(photos, arguments, words):
    pathlib.Path("empty").mkdir()
    with pytest.raises(UserError) as error:
        inputs.count_images(arguments)
    assert words in str(error.value)
