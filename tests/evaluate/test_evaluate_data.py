"""Which images are evaluated: folders, data sets, and the splits of a run."""

import inspect
import json
import types

import numpy as np
import pytest
from PIL import Image

from patchnets.data import sources
from patchnets.data.sources import tfds
from patchnets.errors import RunError, UserError
from patchnets.evaluate import data
from patchnets.inference import labeled


def write_images(folder, classes, count=2):
    folder.mkdir(parents=True, exist_ok=True)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((4, 4), i, np.uint8)).save(folder / name / f"{i}.png")
    return folder


def spec_of(name="digits", **dataset):
    splits = dict(train="train[:90%]", val="train[90%:]", test="test[:10]")
    return types.SimpleNamespace(dataset=dict(name=name, splits=splits) | dataset, channels=1, classes=("a", "b"))


def test_a_folder_has_a_folder_for_each_class(tmp_path):
    write_images(tmp_path, ("b", "a", "10"))
    (tmp_path / "a" / ".hidden.png").write_text("")
    (tmp_path / ".git").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("")
    Image.new("L", (4, 4)).save(write_images(tmp_path / "b" / "more", "") / "2.webp")
    images = labeled.from_folder(tmp_path)
    assert images.classes == ("10", "a", "b") and images.count == 7 and not images.numbered
    first = next(images.examples())
    assert (first.name, first.label, first.image) == ("10/0.png", "10", tmp_path / "10" / "0.png")


@pytest.mark.parametrize("make", ["nothing", "no folders", "no images"])
def test_a_folder_that_cannot_be_evaluated_costs_one_line(make, tmp_path):
    root = tmp_path / "flowers"
    if make != "nothing":
        root.mkdir()
    if make == "no images":
        (root / "train").mkdir()
    words = {"nothing": "there is no folder", "no folders": "no class folders", "no images": "hold no images"}
    with pytest.raises(UserError, match=f"{words[make]}.*") as error:
        labeled.from_folder(root)
    assert "flowers" in str(error.value) and "\n" not in str(error.value)


def test_test_and_val_are_looked_for_in_the_folder_or_around_it(tmp_path):
    test, val = write_images(tmp_path / "test", "ab"), write_images(tmp_path / "val", "ab")
    (tmp_path / "train").mkdir()
    assert data.split_folders(tmp_path, "ab") == (test, val)
    assert data.split_folders(test, "ab") == (test, val)
    assert data.split_folders(val, "ab") == (val, None)
    assert data.folder_label(test) == f"{tmp_path.name}-test"
    plain = write_images(tmp_path / "other", ("test", "val"))  # classes that are called so
    (plain / "test" / "nested").mkdir()
    assert data.split_folders(plain, ("test", "val")) == (plain, None) and data.folder_label(plain) == "other"


def test_a_split_of_the_digits_is_read_by_number():
    source = sources.open_source("digits")
    images = labeled.from_source(source, "test[5:8]+train[:1]", "digits")
    rows = list(images.examples())
    records = source.records("test").examples([5, 6, 7]) + source.records("train").examples([0])
    assert images.count == 4 and images.numbered and [row.name for row in rows] == ["0", "1", "2", "3"]
    for row, (image, label) in zip(rows, records, strict=True):
        np.testing.assert_array_equal(row.image, image)
        assert row.label == str(label)


class EncodedRecords:
    """Of four records the second cannot be read, and the last has no label."""

    def encoded(self, position):
        if position == 1:
            raise RunError("record 1 cannot be read")
        return b"bytes", -1 if position == 3 else position % 2

    def name_of(self, position):
        return f"record {position}"


def test_records_of_a_data_set_stay_encoded_until_they_are_decoded():
    source = types.SimpleNamespace(
        sizes={"test": 4}, class_names=("a", "b"), encoded=True, records=lambda split: EncodedRecords()
    )
    first, broken, third = labeled.from_source(source, "test[:3]", "x").examples()
    assert (first.image, first.label, third.label) == (b"bytes", "a", "a")
    assert isinstance(broken.image, RunError) and broken.label is None
    with pytest.raises(UserError, match="record 3 has no label"):
        list(labeled.from_source(source, "test", "x").examples())


def test_by_default_it_is_the_test_split_of_the_run(tmp_path):
    selection = data.select(spec_of(), tmp_path)
    assert (selection.label, selection.role, selection.data.count) == ("digits-test", "test", 10)
    assert selection.val.count == 144 and selection.val_name == "the run's validation split"
    other = data.select(spec_of(), tmp_path, split="train[:7]")
    assert (other.label, other.role, other.data.count) == ("digits-train__7_", None, 7)
    own_val = data.select(spec_of(), tmp_path, split="val")
    assert (own_val.label, own_val.role, own_val.data.count) == ("digits-val", "val", 144)
    assert own_val.val is None and "validation images themselves" in own_val.val_name


def test_no_temperature_is_fitted_on_what_is_evaluated(tmp_path):
    for options in (dict(split="train"), dict(dataset="digits", split="train[:7]")):
        spec = spec_of(splits=dict(train="train[:90%]", val="train[90%:]", test="test"))
        assert data.select(spec, tmp_path, **options).val is not None
    for options in (dict(split="train[1300:]"), dict(dataset="digits", split="train")):
        assert data.select(spec, tmp_path, **options).val is None
    val = write_images(tmp_path / "val", "ab")
    assert data.select(spec, tmp_path, folder=val).val is None


def test_the_configuration_says_where_the_folder_of_a_run_is(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / "images" / split, "ab")
    run = tmp_path / "run"
    run.mkdir()
    spec = spec_of("folder", splits=dict(train="train", val=None, test="test"))
    with pytest.raises(UserError, match=r"no config.json that says which folder they are in; give others with --data"):
        data.select(spec, run)
    (run / "config.json").write_text(json.dumps(dict(dataset=dict(name="folder", path=str(tmp_path / "images")))))
    selection = data.select(spec, run)
    names = {example.name for example in selection.data.examples()}
    assert names == {f"test/{name}/{i}.png" for name in "ab" for i in (0, 1)} and not selection.data.numbered
    assert selection.val is None and "has no val split" in selection.val_name


def test_validation_images_of_a_folder_serve_if_those_of_the_run_are_gone(tmp_path):
    for split in ("test", "val"):
        write_images(tmp_path / "images" / split, "ab")
    selection = data.select(spec_of("folder"), tmp_path, folder=tmp_path / "images")
    assert selection.val_name == str(tmp_path / "images" / "val") and selection.val.count == 4
    assert (selection.label, selection.role) == ("images-test", None)
    images = write_images(tmp_path / "plain", "ab")
    alone = data.select(spec_of("folder"), tmp_path, folder=images)
    assert alone.val is None and "which folder they are in" in alone.val_name and "--data" not in alone.val_name
    assert data.select(spec_of(), tmp_path, folder=tmp_path / "images").val_name == "the run's validation split"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(dataset="folder"), "--dataset=folder: name the folder itself, with --data=FOLDER"),
        (dict(dataset="digits", split="val"), "there is no 'val'; there is train, test"),
        (dict(split="nope"), "there is no 'nope'"),
    ],
)
def test_mistakes_are_named_in_the_terms_of_the_command(options, words, tmp_path):
    with pytest.raises(UserError) as error:
        data.select(spec_of(), tmp_path, **options)
    assert words in str(error.value) and "config." not in str(error.value)


def test_a_data_set_that_cannot_be_had_is_explained_in_the_same_terms(monkeypatch):
    def fail(*arguments):
        raise UserError(f"x could not be downloaded; put it there, or {next(iter(data.OPTIONS))}")

    monkeypatch.setattr(data.sources, "open_source", fail)
    with pytest.raises(UserError, match=r"x could not be downloaded; put it there, or give --data=FOLDER$"):
        data.open_source("x", None, None)
    assert next(iter(data.OPTIONS)) in inspect.getsource(tfds)


def test_a_run_without_a_test_split_says_so(tmp_path):
    with pytest.raises(UserError, match="has no test split; give others with --data=FOLDER"):
        data.select(spec_of(splits=dict(train="train", val=None, test=None)), tmp_path)


def test_other_labels_than_those_of_the_run_are_noticed():
    import zlib

    labels = np.arange(5)
    fingerprint = dict(examples=dict(test=5), labels_crc32=dict(test=zlib.crc32(labels.astype("<i4").tobytes())))
    spec = types.SimpleNamespace(dataset=dict(fingerprint=fingerprint))
    assert not data.differs_from_run(spec, "test", labels)
    assert data.differs_from_run(spec, "test", labels[::-1]) and data.differs_from_run(spec, "test", labels[:4])
    assert not data.differs_from_run(types.SimpleNamespace(dataset={}), "test", labels)
