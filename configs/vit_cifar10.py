"""ViT on CIFAR-10, as the Keras example "image classification with Vision Transformer" has it on CIFAR-100.

    python -m patchnets.main --config=configs/vit_cifar10.py
    python -m patchnets.main --config=configs/vit_cifar10.py:paper
    python -m patchnets.main --config=configs/vit_cifar10.py:omihub777
    python -m patchnets.main --config=configs/vit_cifar10.py:kentaroy47-200

The second trains, by the same recipe, the paper's network: a class token, a linear head, GELU after the first dense
layer of the MLP alone, which is four times the width. The others are the networks and recipes of
github.com/omihub777/ViT-CIFAR (200 epochs: 90.92 %) and, for 200, 500 or 1000 epochs, of
github.com/kentaroy47/vision-transformers-cifar10 (80, 85 and 89 %).

Not run yet.
"""

from functools import partial

from patchnets.config import common

KENTAROY47 = {200: 0.80, 500: 0.85, 1000: 0.89}  # epochs: test accuracy


def get_config(variant: str | None = None):
    choices = dict(tutorial=tutorial, paper=paper, omihub777=omihub777)
    return common.choose(variant, choices | {f"kentaroy47-{n}": partial(kentaroy47, n) for n in KENTAROY47})


def tutorial():
    return common.keras_vit("cifar10", model=dict(name="keras_vit", variant="cifar100"))


def paper():
    return common.keras_vit(
        "cifar10",
        model=dict(name="vit", patch_size=6, depth=8, hidden_dim=64, num_heads=4, mlp_dim=256, dropout_rate=0.1),
    )


def omihub777():
    return common.vit_small("cifar10", published=common.published(0.9092, source="omihub777/ViT-CIFAR"))


def kentaroy47(epochs: int):
    source = f"kentaroy47/vision-transformers-cifar10, {epochs} epochs"
    return common.kentaroy47(
        "cifar10", total_epochs=float(epochs), published=common.published(KENTAROY47[epochs], source=source)
    )
