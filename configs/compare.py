"""One recipe for networks of all families, used by `python -m experiments.compare`. No published result.

It favors no family by design, because it is not the recipe of any paper. CIFAR-100 (default) or CIFAR-10: images of 32
pixels in 8 x 8 patches, flips and padded crops; digits: 8 pixels, patches of one pixel, translation. Batch 128, AdamW
with peak learning rate 1e-3 and weight decay 0.05 on kernels, 10 epochs, warm-up over 1 epoch, cosine decay, gradient
clipping at 1.

    python -m patchnets.main --config=configs/compare.py
    python -m patchnets.main --config=configs/compare.py:cifar10
    python -m patchnets.main --config=configs/compare.py:digits
"""

from patchnets.config import common


def get_config(dataset: str | None = None):
    return common.choose(dataset, dict(cifar100=cifar100, cifar10=cifar10, digits=digits))


def cifar100():
    return recipe("cifar100", image_size=32, patch_size=4, augment=dict(flip=True, crop_padding=4))


def cifar10():
    return common.changed(cifar100(), dataset=dict(name="cifar10"))


def digits():
    return recipe("digits", image_size=8, patch_size=1, augment=dict(translate=0.1))


def recipe(dataset: str, image_size: int, patch_size: int, augment: dict):
    return common.base(
        dataset=dict(name=dataset),
        image_size=image_size,
        normalize="dataset",
        augment=augment,
        model=dict(
            name="mlp_mixer",
            patch_size=patch_size,
            depth=8,
            hidden_dim=128,
            tokens_mlp_dim=64,
            channels_mlp_dim=512,
        ),
        batch_size=128,
        total_epochs=10.0,
        eval_every_epochs=1.0,
        optimizer=dict(learning_rate=1e-3, weight_decay=0.05, grad_clip_norm=1.0),
        schedule=dict(name="cosine", warmup_epochs=1.0),
    )
