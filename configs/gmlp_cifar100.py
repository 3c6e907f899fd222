"""gMLP on CIFAR-100: 16.33 / 41.63 % (top-1 / top-5) after 1 epoch in 3 min; published: 17.05 / 42.57 %.

Keras example "image classification with modern MLP models"; its earlier edition publishes 50.64 / 78.28 % after 50
epochs (not run). Measured with :one_epoch on two CPU cores, test split, six seeds; Keras itself on a similar machine
gives 16.78 / 42.39 and 16.19 / 41.65 % with two seeds.

:paper trains the paper's network with the same recipe: a skip connection around the LayerNorm, d_ffn of six times the
width, spatial weights initialized near zero. Measured after 1 epoch, one seed: 19.28 / 47.11 %.

    python -m patchnets.main --config=configs/gmlp_cifar100.py
    python -m patchnets.main --config=configs/gmlp_cifar100.py:one_epoch
    python -m patchnets.main --config=configs/gmlp_cifar100.py:paper
"""

from patchnets.config import common


def get_config(variant: str | None = None):
    return common.choose(variant, dict(tutorial=tutorial, one_epoch=one_epoch, paper=paper))


def tutorial():
    return common.keras_mlp(
        "cifar100",
        0.003,
        model=dict(name="keras_gmlp", variant="cifar100"),
        published=common.published(0.5064, 0.7828, source="Keras example, earlier edition, 50 epochs", tolerance=0.02),
    )


def one_epoch():
    source = "Keras example, 1 epoch"
    return common.changed(
        tutorial(), total_epochs=1.0, published=common.published(0.1705, 0.4257, source=source, tolerance=0.02)
    )


def paper():
    return common.keras_mlp(
        "cifar100", 0.003, model=dict(name="gmlp", patch_size=8, depth=4, hidden_dim=256, ffn_dim=1536)
    )
