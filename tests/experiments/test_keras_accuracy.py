"""Keras on the images that patchnets trains on: which those are, and mistakes. tests/parity runs it."""

import numpy as np
import pytest

from experiments.micro import keras_accuracy
from patchnets.config.flags import parse_flags
from patchnets.data import sources


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "the following arguments are required: --model"),
        (["--model=vit-B/16"], "--model: invalid choice: 'vit-B/16' (choose from "),
        (["--model=mixer", "--epochs=0"], "--epochs: expected a whole number above 0, and at most 9,999, got '0'"),
        (["--model=mixer", "--config.batch_size=3"], "--config.batch_size=3: only --config.dataset.* can be set"),
    ],
)
def test_a_mistake_costs_one_line(options, message, capsys):
    assert keras_accuracy.main(["keras_accuracy", *options]) == 2
    out, error = capsys.readouterr()
    assert message in error and error.count("\n") == 1 and not out


def test_the_images_are_those_of_the_splits(tmp_path):
    config, _ = parse_flags(["x", "--config=configs/mixer_digits.py", f"--config.dataset.cache_dir={tmp_path}"])
    actual = keras_accuracy.arrays(config)
    source = sources.open_source(config.dataset.name, config.dataset.path)
    examples = source.sizes["train"]
    assert {role: len(images) for role, (images, _) in actual.items()} == {
        "train": examples * 9 // 10,
        "val": examples - examples * 9 // 10,
        "test": source.sizes["test"],
    }
    (train, labels), (val, _) = actual["train"], actual["val"]
    assert train.dtype == np.uint8 and train.shape[1:] == (8, 8, 1) and len(labels) == len(train)
    # scikit-learn's own digits, of levels 0 to 16: no image is in two splits but for digits that are there twice.
    assert len(np.unique(np.concatenate([train, val]), axis=0)) == len(np.unique(train, axis=0)) + len(
        np.unique(val, axis=0)
    )
