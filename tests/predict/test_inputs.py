"""Which files the arguments of the command name."""

import pathlib

import pytest

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
