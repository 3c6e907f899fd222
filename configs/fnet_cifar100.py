"""FNet on CIFAR-100: 13.75 / 36.18 % (top-1 / top-5) after 1 epoch in 2 min; published: 13.82 / 36.15 %.

Keras example "image classification with modern MLP models"; its earlier edition publishes 46.63 / 76.47 % after 50
epochs (not run). Measured with :one_epoch on two CPU cores, test split, three seeds; Keras itself on a similar machine
gives 14.01 / 36.25 and 13.73 / 36.53 % with two seeds.

:paper trains the paper's network with the same recipe: a hidden layer of four times the width, dropout after the second
dense layer, LayerNorm after the embeddings. Measured after 1 epoch, one seed: 3.77 / 16.16 %.

    python -m patchnets.main --config=configs/fnet_cifar100.py
    python -m patchnets.main --config=configs/fnet_cifar100.py:one_epoch
    python -m patchnets.main --config=configs/fnet_cifar100.py:paper
"""

from patchnets.config import common


def get_config(variant: str | None = None):
    return common.choose(variant, dict(tutorial=tutorial, one_epoch=one_epoch, paper=paper))


def tutorial():
    return common.keras_mlp(
        "cifar100",
        0.001,
        model=dict(name="keras_fnet", variant="cifar100"),
        published=common.published(0.4663, 0.7647, source="Keras example, earlier edition, 50 epochs", tolerance=0.02),
    )


def one_epoch():
    source = "Keras example, 1 epoch"
    return common.changed(
        tutorial(), total_epochs=1.0, published=common.published(0.1382, 0.3615, source=source, tolerance=0.02)
    )


def paper():
    return common.keras_mlp(
        "cifar100",
        0.001,
        model=dict(name="fnet", patch_size=8, depth=4, hidden_dim=256, mlp_dim=1024, dropout_rate=0.2),
    )
