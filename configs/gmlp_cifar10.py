"""gMLP on CIFAR-10. No published result; not run yet.

Network and recipe of the Keras example "image classification with modern MLP models", which uses CIFAR-100. :paper
trains the paper's network with the same recipe: a skip connection around the LayerNorm, d_ffn of six times the width,
spatial weights initialized near zero.

    python -m patchnets.main --config=configs/gmlp_cifar10.py
    python -m patchnets.main --config=configs/gmlp_cifar10.py:paper
"""

from patchnets.config import common


def get_config(variant: str | None = None):
    return common.choose(variant, dict(tutorial=tutorial, paper=paper))


def tutorial():
    return common.keras_mlp("cifar10", 0.003, model=dict(name="keras_gmlp", variant="cifar100"))


def paper():
    return common.keras_mlp(
        "cifar10", 0.003, model=dict(name="gmlp", patch_size=8, depth=4, hidden_dim=256, ffn_dim=1536)
    )
