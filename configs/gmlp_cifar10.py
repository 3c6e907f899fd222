"""gMLP on CIFAR-10, as the Keras example "image classification with modern MLP models" has it on CIFAR-100.

    python -m patchnets.main --config=configs/gmlp_cifar10.py
    python -m patchnets.main --config=configs/gmlp_cifar10.py:paper

The second trains, by the same recipe, the paper's network: a skip connection around the LayerNorm, d_ffn of six times
the width, spatial weights that start near zero.

Not run yet.
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
