"""MLP-Mixer on CIFAR-100, as the Keras example "image classification with modern MLP models" has it.

    python -m patchnets.main --config=configs/mixer_cifar100.py
    python -m patchnets.main --config=configs/mixer_cifar100.py:paper

The second trains, by the same recipe, the paper's network: one LayerNorm a sub-block, a final LayerNorm, a head that
starts at zero.

The example publishes 9.76 / 30.8 % (top-1 / top-5) after 1 epoch, and 47.58 / 77.18 % after 50 in an earlier edition.
Measured with --config.total_epochs=1 on two CPU cores, seed 0: 17.51 / 43.49 % of the test split in 3 min (Keras itself
on a machine of this kind: 17.17 / 43.93 and 16.93 / 42.75 % with two seeds); the paper's network 18.27 / 46.12 %.
"""

from configs import common


def get_config(variant: str | None = None):
    return common.choose(variant, dict(tutorial=tutorial, paper=paper))


def tutorial():
    return common.keras_mlp("cifar100", 0.005, model=dict(name="keras_mixer", variant="cifar100"))


def paper():
    return common.keras_mlp(
        "cifar100",
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
