"""ViT on CIFAR-10, as the Keras example "image classification with Vision Transformer" has it on CIFAR-100.

    python -m patchnets.main --config=configs/vit_cifar10.py
    python -m patchnets.main --config=configs/vit_cifar10.py:paper

The second trains, by the same recipe, the paper's network: a class token, a linear head, GELU after the first dense
layer of the MLP alone, which is four times the width.

Not run yet.
"""

from configs import common


def get_config(variant: str | None = None):
    return common.choose(variant, dict(tutorial=tutorial, paper=paper))


def tutorial():
    return common.keras_vit("cifar10", model=dict(name="keras_vit", variant="cifar100"))


def paper():
    return common.keras_vit(
        "cifar10",
        model=dict(name="vit", patch_size=6, depth=8, hidden_dim=64, num_heads=4, mlp_dim=256, dropout_rate=0.1),
    )
