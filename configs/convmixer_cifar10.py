"""ConvMixer on CIFAR-10, as the Keras example "image classification with ConvMixer" has it.

    python -m patchnets.main --config=configs/convmixer_cifar10.py
    python -m patchnets.main --config=configs/convmixer_cifar10.py:paper
    python -m patchnets.main --config=configs/convmixer_cifar10.py:locuslab
    python -m patchnets.main --config=configs/convmixer_cifar10.py:locuslab-100
    python -m patchnets.main --config=configs/convmixer_cifar10.py:sprint
    python -m patchnets.main --config=configs/convmixer_cifar10.py:sprint-100

The second is the paper's network, 256/8 with kernels of 9 and patches of 1, with the paper's recipe of 200 epochs. The
next two are the short recipes of github.com/locuslab/convmixer-cifar10, of 25 and of 100 epochs. The last, sprint-N for
any number N of epochs and 25 by default, is put together from them for the most accuracy in little time on a GPU;
`python -m experiments.time_to_accuracy` fits its length to a wall-time limit.

The example publishes 83.69 % after its 10 epochs, the paper 96.03 %, its authors' short recipes 92.6 % and more than
94 %; nothing is published about the sprint, and it claims nothing. Not run to the end yet: after 2 of the
example's 10 epochs, 25 min on two CPU cores, 73.00 % of the test split, and 72.54 % of validation, where it has 72.4 %.
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
    """ConvMixer-256/8 (kernel 5, patch 2) for a run of so many epochs.

    From locuslab/convmixer-cifar10: network, batch 512, AdamW with a rate of 0.05 in one cycle and a decay of 0.005,
    torchvision's RandAugment(2, 12); from 100 epochs on, as in its long recipe, jitter and erasing of 0.2. From the
    paper (arXiv 2201.09792): label smoothing 0.1, which it has for ImageNet; from 200 epochs on, as many as it trains
    on CIFAR-10, crops of three quarters of the image or more. Published for neither: decay of kernels alone, not of
    biases and norms; evaluation by a running mean over about an epoch (decay 0.99, where an epoch has 98 steps);
    bfloat16, where locuslab computes in mixed float16.
    """
    more = dict(brightness=0.2, contrast=0.2, saturation=0.2, random_erasing_prob=0.2) if epochs >= 100 else {}
    more |= dict(crop_scale_min=0.75, crop_ratio_max=1.0) if epochs >= 200 else {}
    return common.changed(
        common.locuslab("cifar10"),
        total_epochs=float(epochs),
        model=dict(dtype="bfloat16"),
        augment=more,
        label_smoothing=0.1,
        optimizer=dict(wd_mask="kernels"),
        ema_decay=0.99,
    )
