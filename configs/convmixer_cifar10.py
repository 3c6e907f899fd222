"""ConvMixer on CIFAR-10: 83.69 % published by the Keras example after 10 epochs, 96.03 % by the paper after 200.

Keras example: "image classification with ConvMixer". Measured after 2 of its 10 epochs, 25 min on two CPU cores:
73.00 % of the test split, and 72.54 % of validation (published: 72.4 %). Not run to the end.

:paper is 256/8 with kernels of 9 and patches of 1, trained with the paper's recipe (arXiv 2201.09792): 96.03 %
published. :locuslab and :locuslab-100 are the authors' short recipes of 25 and 100 epochs
(github.com/locuslab/convmixer-cifar10): 92.6 % and more than 94 % published. :sprint-N combines them for the highest
accuracy in N epochs (default 25) on a GPU; `python -m experiments.time_to_accuracy` fits N to a time limit. Nothing is
published for it. None of these has been run to the end.

    python -m patchnets.main --config=configs/convmixer_cifar10.py
    python -m patchnets.main --config=configs/convmixer_cifar10.py:paper
    python -m patchnets.main --config=configs/convmixer_cifar10.py:locuslab
    python -m patchnets.main --config=configs/convmixer_cifar10.py:locuslab-100
    python -m patchnets.main --config=configs/convmixer_cifar10.py:sprint
    python -m patchnets.main --config=configs/convmixer_cifar10.py:sprint-100
"""

import re

from patchnets.config import common


def get_config(variant: str | None = None):
    if variant and (numbered := re.fullmatch(r"sprint-([1-9]\d{0,5})", variant)):
        return sprint(int(numbered[1]))
    choices = {
        "tutorial": tutorial,
        "paper": paper,
        "locuslab": locuslab,
        "locuslab-100": locuslab_100,
        "sprint": sprint,
    }
    return common.choose(variant, choices)


def tutorial():
    return common.keras_convmixer(
        "cifar10",
        model=dict(name="keras_convmixer", variant="cifar10"),
        published=common.published(0.8369, source="Keras example, 10 epochs", tolerance=0.02),
    )


def paper():
    return common.convmixer_on_cifar("cifar10", published=common.published(0.9603, source="arXiv 2201.09792, table 3"))


def locuslab():
    return common.locuslab("cifar10", published=common.published(0.926, source="locuslab/convmixer-cifar10, 25 epochs"))


def locuslab_100():
    return common.changed(
        common.locuslab("cifar10"),
        total_epochs=100.0,
        augment=dict(brightness=0.2, contrast=0.2, saturation=0.2, random_erasing_prob=0.2),
        published=common.published(0.94, source="locuslab/convmixer-cifar10, 100 epochs"),
    )


def sprint(epochs: int = 25):
    """ConvMixer-256/8 (kernel 5, patch 2) for a run of `epochs` epochs.

    From locuslab/convmixer-cifar10: network, batch 512, AdamW with a one-cycle learning rate of 0.05 and weight decay
    0.005, torchvision's RandAugment(2, 12); from 100 epochs on, as in its long recipe, jitter and erasing of 0.2. From
    the paper (arXiv 2201.09792): label smoothing 0.1, which it uses on ImageNet; from 200 epochs on (its length on
    CIFAR-10), crops of at least 75 % of the area. Not published by either: weight decay on kernels only; evaluation
    with a running mean of the parameters over about an epoch (decay 0.99, 98 steps an epoch); bfloat16 (locuslab uses
    mixed float16).
    """
    augment = dict(brightness=0.2, contrast=0.2, saturation=0.2, random_erasing_prob=0.2) if epochs >= 100 else {}
    augment |= dict(crop_scale_min=0.75, crop_ratio_max=1.0) if epochs >= 200 else {}
    return common.changed(
        common.locuslab("cifar10"),
        total_epochs=float(epochs),
        model=dict(dtype="bfloat16"),
        augment=augment,
        label_smoothing=0.1,
        optimizer=dict(wd_mask="kernels"),
        ema_decay=0.99,
    )
