"""The bundled digits are exactly scikit-learn's, with a fixed, stratified split into train and test."""

import collections
import zlib

import numpy as np
import pytest
from sklearn import datasets

from patchnets.data.sources import digits
from patchnets.errors import UserError


@pytest.fixture(scope="module")
def examples():
    """{split: (images, labels)}, read as any data set is read."""
    source = digits.Digits()
    actual = {}
    for split, size in source.sizes.items():
        images, labels = zip(*source.records(split).examples(range(size)))
        actual[split] = np.stack(images), np.array(labels)
    return actual


def test_train_and_test_together_are_exactly_the_original_data(examples):
    bunch = datasets.load_digits()
    ink = np.array([0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 255], np.uint8)
    expected = [(ink[image.astype(int)].tobytes(), label) for image, label in zip(bunch.images, bunch.target)]
    got = [(image.tobytes(), label) for split in examples.values() for image, label in zip(*split)]
    assert collections.Counter(got) == collections.Counter(expected)
    assert len(got) == 1797


def test_what_the_source_states_is_true_of_its_images(examples):
    source = digits.Digits()
    assert source.class_names == tuple(str(name) for name in datasets.load_digits().target_names)
    for split, (images, labels) in examples.items():
        records = source.records(split)
        assert len(records) == len(labels) == source.sizes[split]
        assert images.dtype == np.uint8
        assert images.shape[1:] == (records.native_size(), records.native_size(), source.channels)
        with pytest.raises(IndexError):
            records.examples([source.sizes[split]])


def test_every_class_has_a_fifth_of_its_images_in_test(examples):
    total = np.bincount(datasets.load_digits().target)
    held = np.bincount(examples["test"][1])
    assert np.abs(held - total / 5).max() <= 0.5


def test_both_splits_mix_the_classes_throughout(examples):
    for _, labels in examples.values():
        for part in np.array_split(labels, 4):
            assert np.bincount(part, minlength=10).min() >= 3


def test_the_order_is_the_same_in_every_release(examples):
    assert examples["train"][1][:12].tolist() == [3, 7, 1, 3, 1, 3, 4, 4, 2, 4, 3, 5]
    assert examples["test"][1][:12].tolist() == [6, 3, 2, 4, 0, 1, 8, 5, 7, 6, 6, 8]
    assert {split: zlib.crc32(images.tobytes()) for split, (images, _) in examples.items()} == {
        "train": 1198739794,
        "test": 1789034576,
    }


def test_positions_may_be_asked_for_in_any_order(examples):
    images, labels = examples["train"]
    for (image, label), i in zip(digits.Digits().records("train").examples([700, 3, 3]), [700, 3, 3]):
        np.testing.assert_array_equal(image, images[i])
        assert label == labels[i]


def test_there_is_nothing_encoded_to_stream():
    records = digits.Digits().records("train")
    with pytest.raises(UserError, match=r"always on the device; set config\.dataset\.loader=on_device$"):
        records.encoded(0)
    assert records.name_of(3) == "image 3 of digits train"
