"""ViT on CIFAR-100: 10.69 / 29.42 % (top-1 / top-5) after 1 epoch in 11 min; published: 10.61 / 31.51 % after 10.

Keras example "image classification with Vision Transformer", which states about 55 / 82 % for 100 epochs. Measured on
two CPU cores; Keras itself on a similar machine gives 8.36 / 25.87 % after 1 epoch. Not run to the end.

:paper trains the paper's network with the same recipe: a class token, a linear head, an MLP of four times the width
with GELU after its first dense layer only. Measured after 1 epoch: 10.35 / 31.28 %. :omihub777
(github.com/omihub777/ViT-CIFAR: 66.54 % published) and :kentaroy47 (github.com/kentaroy47/vision-transformers-cifar10:
52 %) have their own networks and recipes.

    python -m patchnets.main --config=configs/vit_cifar100.py
    python -m patchnets.main --config=configs/vit_cifar100.py:hundred_epochs
    python -m patchnets.main --config=configs/vit_cifar100.py:paper
    python -m patchnets.main --config=configs/vit_cifar100.py:omihub777
    python -m patchnets.main --config=configs/vit_cifar100.py:kentaroy47
"""

from patchnets.config import common


def get_config(variant: str | None = None):
    return common.choose(
        variant,
        dict(
            tutorial=tutorial,
            hundred_epochs=hundred_epochs,
            paper=paper,
            omihub777=omihub777,
            kentaroy47=kentaroy47,
        ),
    )


def tutorial():
    return common.keras_vit(
        "cifar100",
        model=dict(name="keras_vit", variant="cifar100"),
        published=common.published(0.1061, 0.3151, source="Keras example, 10 epochs", tolerance=0.02),
    )


def hundred_epochs():
    return common.changed(
        tutorial(),
        total_epochs=100.0,
        published=common.published(0.55, 0.82, source="Keras example, about, for 100 epochs", tolerance=0.02),
    )


def paper():
    return common.keras_vit(
        "cifar100",
        model=dict(name="vit", patch_size=6, depth=8, hidden_dim=64, num_heads=4, mlp_dim=256, dropout_rate=0.1),
    )


def omihub777():
    return common.vit_small("cifar100", published=common.published(0.6654, source="omihub777/ViT-CIFAR"))


def kentaroy47():
    source = "kentaroy47/vision-transformers-cifar10"
    return common.kentaroy47("cifar100", total_epochs=200.0, published=common.published(0.52, source=source))
