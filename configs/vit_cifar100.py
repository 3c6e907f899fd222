"""ViT on CIFAR-100, as the Keras example "image classification with Vision Transformer" has it.

    python -m patchnets.main --config=configs/vit_cifar100.py
    python -m patchnets.main --config=configs/vit_cifar100.py:paper

The second trains, by the same recipe, the paper's network: a class token, a linear head, GELU after the first dense
layer of the MLP alone, which is four times the width.

The example publishes 10.61 / 31.51 % (top-1 / top-5) after its 10 epochs, and says about 55 / 82 % for 100
(--config.total_epochs=100). Not run to its end yet.
"""

from configs import common


def get_config(variant: str | None = None):
    return common.choose(variant, dict(tutorial=tutorial, paper=paper))


def tutorial():
    return common.keras_vit("cifar100", model=dict(name="keras_vit", variant="cifar100"))


def paper():
    return common.keras_vit(
        "cifar100",
        model=dict(name="vit", patch_size=6, depth=8, hidden_dim=64, num_heads=4, mlp_dim=256, dropout_rate=0.1),
    )
