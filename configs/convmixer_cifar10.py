"""ConvMixer on CIFAR-10, as the Keras example "image classification with ConvMixer" has it.

    python -m patchnets.main --config=configs/convmixer_cifar10.py
    python -m patchnets.main --config=configs/convmixer_cifar10.py:paper

The second trains, by the same recipe, the paper's network: 256/8 with kernels of 9 and patches of 1, which the paper
trains on CIFAR-10, BatchNorm with PyTorch's epsilon and momentum.

The example publishes 83.69 % after its 10 epochs. The paper's own recipe, 200 epochs with RandAugment, mixup, CutMix
and random erasing, gives 96.03 %. Not run to its end yet.
"""

from configs import common


def get_config(variant: str | None = None):
    return common.choose(variant, dict(tutorial=tutorial, paper=paper))


def tutorial():
    return common.keras_convmixer("cifar10", model=dict(name="keras_convmixer", variant="cifar10"))


def paper():
    return common.keras_convmixer("cifar10", model=dict(name="convmixer", variant="256/8-k9-p1"))
