"""MLP-Mixer on CIFAR-10: 49.31 / 93.03 % (top-1 / top-5) after 1 epoch of :paper, in 6 min on two CPU cores.

Measured on the test split with seed 0, --config.total_epochs=1 and the images in class folders
(--config.dataset.name=folder --config.dataset.path=PATH, with train/CLASS/*.png and test/CLASS/*.png). Nothing is
published for it.

Network and recipe of the Keras example "image classification with modern MLP models", which uses CIFAR-100 (not run).
:paper trains the paper's network with the same recipe: one LayerNorm per sub-block, a final LayerNorm, a head
initialized with zeros. :nano is Mixer-nano with the recipe of github.com/omihub777/MLP-Mixer-CIFAR, 300 epochs:
90.83 % published (not run to the end).

    python -m patchnets.main --config=configs/mixer_cifar10.py
    python -m patchnets.main --config=configs/mixer_cifar10.py:paper
    python -m patchnets.main --config=configs/mixer_cifar10.py:nano
"""

from patchnets.config import common


def get_config(variant: str | None = None):
    return common.choose(variant, dict(tutorial=tutorial, paper=paper, nano=nano))


def tutorial():
    return common.keras_mlp("cifar10", 0.005, model=dict(name="keras_mixer", variant="cifar100"))


def paper():
    return common.keras_mlp(
        "cifar10",
        0.005,
        model=dict(
            name="mlp_mixer",
            patch_size=8,
            depth=4,
            hidden_dim=256,
            tokens_mlp_dim=64,
            channels_mlp_dim=64,
            dropout_rate=0.2,
            gelu="exact",
        ),
    )


def nano():
    return common.mixer_nano("cifar10", published=common.published(0.9083, source="omihub777/MLP-Mixer-CIFAR"))
