"""What the configurations share. Every key, its default and its meaning: patchnets/config.py, or --help."""

from ml_collections import ConfigDict

from patchnets.config import default_config


def base(**values) -> ConfigDict:
    """All keys at their defaults, except those given; a dict is a group: `dataset=dict(name="cifar10")`."""
    return default_config(**values)


def digits(**values) -> ConfigDict:
    """scikit-learn's digits, for a small network of any family: 60 epochs of AdamW on moved and zoomed images."""
    return base(
        dataset=dict(name="digits"),
        image_size=8,
        augment=dict(shift=0.1, zoom=0.1),
        batch_size=64,
        total_epochs=60.0,
        eval_every_epochs=5.0,
        optimizer=dict(learning_rate=3e-3, weight_decay=0.05, clip_norm=1.0),
        schedule=dict(name="cosine", warmup_epochs=5.0),
        **values,
    )


def mixer_cifar(dataset: str) -> ConfigDict:
    """MLP-Mixer at the sizes, and with the data, augmentation and optimizer, of the Keras example on CIFAR-100."""
    return base(
        dataset=dict(name=dataset),
        image_size=64,  # resized from 32
        normalize="dataset",
        augment=dict(flip=True, zoom=0.2),
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
        batch_size=128,
        total_epochs=50.0,
        optimizer=dict(learning_rate=0.005, weight_decay=1e-4, decay="all", epsilon=1e-7),
        schedule=dict(name="constant"),
    )
