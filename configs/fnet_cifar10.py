"""FNet on CIFAR-10. No published result; not run yet.

Network and recipe of the Keras example "image classification with modern MLP models", which uses CIFAR-100. :paper
trains the paper's network with the same recipe: a hidden layer of four times the width, dropout after the second dense
layer, LayerNorm after the embeddings.

    python -m patchnets.main --config=configs/fnet_cifar10.py
    python -m patchnets.main --config=configs/fnet_cifar10.py:paper
"""

from patchnets.config import common


def get_config(variant: str | None = None):
    return common.choose(variant, dict(tutorial=tutorial, paper=paper))


def tutorial():
    return common.keras_mlp("cifar10", 0.001, model=dict(name="keras_fnet", variant="cifar100"))


def paper():
    return common.keras_mlp(
        "cifar10", 0.001, model=dict(name="fnet", patch_size=8, depth=4, hidden_dim=256, mlp_dim=1024, dropout_rate=0.2)
    )
