"""MLP-Mixer on CIFAR-100: 19.11 / 45.67 % (top-1 / top-5) after 1 epoch in 2 min; published: 9.76 / 30.8 %.

Keras example "image classification with modern MLP models"; its earlier edition publishes 47.58 / 77.18 % after 50
epochs (not run). Measured with :one_epoch on two CPU cores, test split, three seeds; Keras itself on a similar machine
gives 19.29 / 45.33 and 18.38 / 44.24 % with two seeds.

:paper trains the paper's network with the same recipe: one LayerNorm per sub-block, a final LayerNorm, a head
initialized with zeros. Measured after 1 epoch: 19.56 / 47.11 %. :nano is Mixer-nano with the recipe of
github.com/omihub777/MLP-Mixer-CIFAR, 300 epochs: 67.51 % published (not run to the end).

    python -m patchnets.main --config=configs/mixer_cifar100.py
    python -m patchnets.main --config=configs/mixer_cifar100.py:one_epoch
    python -m patchnets.main --config=configs/mixer_cifar100.py:paper
    python -m patchnets.main --config=configs/mixer_cifar100.py:nano
"""

from patchnets.config import common


def get_config(variant: str | None = None):
    return common.choose(variant, dict(tutorial=tutorial, one_epoch=one_epoch, paper=paper, nano=nano))


def tutorial():
    return common.keras_mlp(
        "cifar100",
        0.005,
        model=dict(name="keras_mixer", variant="cifar100"),
        published=common.published(0.4758, 0.7718, source="Keras example, earlier edition, 50 epochs", tolerance=0.02),
    )


def one_epoch():
    source = "Keras example, 1 epoch"
    return common.changed(
        tutorial(), total_epochs=1.0, published=common.published(0.0976, 0.308, source=source, tolerance=0.02)
    )


def paper():
    return common.keras_mlp(
        "cifar100",
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
    return common.mixer_nano("cifar100", published=common.published(0.6751, source="omihub777/MLP-Mixer-CIFAR"))
