"""The augmentation sheet: its rows, the image file, and errors."""

import numpy as np
import pytest
from PIL import Image

from patchnets.config import common
from patchnets.experiment import data_options
from patchnets.plots import __main__ as plots
from patchnets.plots import augmentations

# Every operation that a configuration can ask for, in the words under which the sheet shows it.
SHOWN = (
    "flip vertical back center padding share resized zoom shift rotation shear brightness contrast sharpness "
    "solarize posterize equalize autocontrast invert saturation hue grayscale jitter RandAugment CIFAR-10 ImageNet "
    "TrivialAugment constant random pixel mixup CutMix"
)


@pytest.fixture
def quick(monkeypatch):
    """Two operations in place of all, which take half a minute to compile."""
    every = augmentations.operations(1, 8)
    few = {name: every[name] for name in ("flip", "invert")}
    monkeypatch.setattr(augmentations, "operations", lambda channels, height: few)


def test_every_operation_is_shown_and_gray_images_keep_their_only_channel():
    names = list(augmentations.operations(3, 32))
    missing = [word for word in SHOWN.split() if not any(word in name for name in names)]
    assert missing == [] and len(names) == len(SHOWN.split())
    lost = set(names) - set(augmentations.operations(1, 32))
    assert {name.split()[0] for name in lost} == {"saturation", "hue", "grayscale", "color"}


def test_rows_are_the_originals_the_configuration_and_each_operation(quick):
    config = common.base(dataset=dict(name="digits"), image_size=8, augment=dict(flip=True), total_epochs=1.0)
    options = data_options(config)
    images = augmentations.training_images(options, 6)
    rows = augmentations.sheet(options, images)
    assert list(rows) == ["original", *(f"this configuration, {i}" for i in (1, 2, 3, 4)), "flip", "invert"]
    np.testing.assert_array_equal(rows["original"], images)
    np.testing.assert_array_equal(rows["invert"], 255 - images)
    sampled = np.stack([rows[f"this configuration, {i}"] for i in (1, 2, 3, 4)])
    mirrored = (sampled == images[None, :, :, ::-1]).all(axis=(2, 3, 4))
    same = (sampled == images[None]).all(axis=(2, 3, 4))
    assert (mirrored | same).all() and mirrored.any() and same.any()


def test_the_command_draws_a_picture_and_says_where(quick, tmp_path, capsys):
    out = tmp_path / "below" / "sheet.png"
    arguments = [
        "plots",
        "augment",
        "--config=configs/mixer_digits.py",
        f"--out={out}",
        "--config.augment.translate=0.2",
    ]
    assert plots.main(arguments) == 0
    assert capsys.readouterr().out == f"{out}\n"
    with Image.open(out) as picture:
        assert picture.width > 400 and picture.height > 300
        assert len(picture.convert("L").getcolors()) > 16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["augment"], "--config is not given"),
        (
            ["augment", "--config=configs/mixer_digits.py", "--out=sheet.gif"],
            "--out: expected the name of a .png file, got 'sheet.gif'",
        ),
        (["augment", "--config=configs/mixer_digits.py", "--config.augment.hue=0.2"], "config.augment.hue=0.2"),
        (["--wrong"], "the following arguments are required: workdir"),
        (["there", "--wrong"], "unrecognized arguments: --wrong"),
        (["no/such/place"], "no/such/place"),
    ],
)
def test_mistakes_cost_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    assert plots.main(["plots", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and words in printed.err
