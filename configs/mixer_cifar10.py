"""MLP-Mixer on CIFAR-10, as the Keras example "image classification with modern MLP models" has it on CIFAR-100.

    python -m patchnets.main --config=configs/mixer_cifar10.py
    python -m patchnets.main --config=configs/mixer_cifar10.py:paper
    python -m patchnets.main --config=configs/mixer_cifar10.py:nano

The second trains, by the same recipe, the paper's network: one LayerNorm a sub-block, a final LayerNorm, a head that
starts at zero.

Not run yet as the tutorial. Measured with configs/mixer_cifar10.py:paper, --config.total_epochs=1 and the images in
class folders (--config.dataset.name=folder --config.dataset.path=PATH, with train/CLASS/*.png and test/CLASS/*.png), on
two CPU cores, seed 0: 49.31 / 93.03 % of the test split in 3 min.

The third is Mixer-nano with the recipe of github.com/omihub777/MLP-Mixer-CIFAR, 300 epochs, which publishes 90.83 %.
Not run to its end.
"""

from patchnets.config import common


def get_config(variant: str | None = None):
    return common.choose(variant, dict(tutorial=tutorial, paper=paper, nano=nano))


def tutorial():
    return common.keras_mlp("cifar10", 0.005, model=dict(name="keras_mixer", variant="cifar100"))


def paper():
    return common.keras_mlp(
        "cifar10",
        0.005,
        model=dict(
            name="mlp_mixer",
            patch_size=8,
            depth=4,
            hidden_dim=256,
            tokens_mlp_dim=64,
            channels_mlp_dim=64,
            dropout_rate=0.2,
            gelu="exact",
        ),
    )


def nano():
    return common.mixer_nano("cifar10", published=common.published(0.9083, source="omihub777/MLP-Mixer-CIFAR"))
