"""One recipe for networks of all families, by which `python -m experiments.compare` compares them.

    python -m patchnets.main --config=configs/compare.py
    python -m patchnets.main --config=configs/compare.py:cifar10
    python -m patchnets.main --config=configs/compare.py:digits

Images of 32 pixels in 8 x 8 patches: CIFAR-100 without an argument, or CIFAR-10; digits are of 8 pixels, and their
patches single pixels. Mirrored and cropped (digits: moved), batches of 128, AdamW with a decay of 0.05 for kernels and
a peak of 1e-3, warmed up over a tenth of the run, which takes 10 epochs, and a cosine after that; gradients of a norm
above 1 scaled down.

Nothing is published about it, and it claims nothing: it is nobody's own recipe, and so favors no family by design.
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
