"""ViT on CIFAR-100, as the Keras example "image classification with Vision Transformer" has it.

    python -m patchnets.main --config=configs/vit_cifar100.py
    python -m patchnets.main --config=configs/vit_cifar100.py:hundred_epochs
    python -m patchnets.main --config=configs/vit_cifar100.py:paper
    python -m patchnets.main --config=configs/vit_cifar100.py:omihub777
    python -m patchnets.main --config=configs/vit_cifar100.py:kentaroy47

The third trains, by the same recipe, the paper's network: a class token, a linear head, GELU after the first dense
layer of the MLP alone, which is four times the width. The others are the networks and recipes of
github.com/omihub777/ViT-CIFAR and github.com/kentaroy47/vision-transformers-cifar10.

The example publishes 10.61 / 31.51 % (top-1 / top-5) after its 10 epochs, and says about 55 / 82 % for 100; omihub777
publishes 66.54 % and kentaroy47 52 %. Not run to the end yet: 1 epoch of the example takes 11 min on two CPU cores and
gives 10.69 / 29.42 % (Keras itself, on a machine of this kind: 8.36 / 25.87 %).
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
