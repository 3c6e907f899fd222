"""gMLP on CIFAR-100, as the Keras example "image classification with modern MLP models" has it.

    python -m patchnets.main --config=configs/gmlp_cifar100.py
    python -m patchnets.main --config=configs/gmlp_cifar100.py:one_epoch
    python -m patchnets.main --config=configs/gmlp_cifar100.py:paper

The third trains, by the same recipe, the paper's network: a skip connection around the LayerNorm, d_ffn of six times
the width, spatial weights that start near zero.

The example publishes 17.05 / 42.57 % (top-1 / top-5) after 1 epoch, and 50.64 / 78.28 % after 50 in an earlier edition.
Measured with :one_epoch on two CPU cores, six seeds: 16.33 / 41.63 % of the test split in 3 min (Keras itself on a
machine of this kind: 16.78 / 42.39 and 16.19 / 41.65 % with two seeds); the paper's network, one seed: 19.28 / 47.11 %.
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
