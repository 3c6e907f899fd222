"""ConvMixer on CIFAR-100, as the Keras example "image classification with ConvMixer" has it on CIFAR-10.

    python -m patchnets.main --config=configs/convmixer_cifar100.py
    python -m patchnets.main --config=configs/convmixer_cifar100.py:paper

The second is the network and the recipe with which the paper trains on CIFAR-10: 256/8 with kernels of 9 and patches of
1, 200 epochs.

Not run yet.
"""

from patchnets.config import common


def get_config(variant: str | None = None):
    return common.choose(variant, dict(tutorial=tutorial, paper=paper))


def tutorial():
    return common.keras_convmixer("cifar100", model=dict(name="keras_convmixer", variant="cifar10"))


def paper():
    return common.convmixer_on_cifar("cifar100")
