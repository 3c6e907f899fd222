"""ViT on CIFAR-10: 90.92 % published for :omihub777; 80, 85 and 89 % for :kentaroy47-200, -500 and -1000. Not run yet.

Network and recipe of the Keras example "image classification with Vision Transformer", which uses CIFAR-100. :paper
trains the paper's network with the same recipe: a class token, a linear head, an MLP of four times the width with GELU
after its first dense layer only. :omihub777 (github.com/omihub777/ViT-CIFAR, 200 epochs) and :kentaroy47-N
(github.com/kentaroy47/vision-transformers-cifar10, N = 200, 500 or 1000 epochs) have their own networks and recipes.

    python -m patchnets.main --config=configs/vit_cifar10.py
    python -m patchnets.main --config=configs/vit_cifar10.py:paper
    python -m patchnets.main --config=configs/vit_cifar10.py:omihub777
    python -m patchnets.main --config=configs/vit_cifar10.py:kentaroy47-200
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
