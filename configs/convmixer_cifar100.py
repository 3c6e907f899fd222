"""ConvMixer on CIFAR-100. No published result; not run yet.

Network and recipe of the Keras example "image classification with ConvMixer", which uses CIFAR-10. :paper uses those
of the paper (arXiv 2201.09792) for CIFAR-10: 256/8 with kernels of 9 and patches of 1, 200 epochs.

    python -m patchnets.main --config=configs/convmixer_cifar100.py
    python -m patchnets.main --config=configs/convmixer_cifar100.py:paper
"""

from patchnets.config import common


def get_config(variant: str | None = None):
    return common.choose(variant, dict(tutorial=tutorial, paper=paper))


def tutorial():
    return common.keras_convmixer("cifar100", model=dict(name="keras_convmixer", variant="cifar10"))


def paper():
    return common.convmixer_on_cifar("cifar100")
