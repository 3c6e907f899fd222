"""Fine-tuning from trained weights: 99.02 % published on CIFAR-10 and 92.06 % on CIFAR-100 for ViT-B/16. Not run yet.

The weights are left to you, and where no data set is named, the data too (docs/transfer.md):

    python -m patchnets.main --config=configs/finetune.py:vit-B/16 --config.init.weights=ViT-B_16.npz \
        --config.dataset.name=folder --config.dataset.path=photos

vit-Ti/16, vit-S/16, vit-B/16, vit-B/32, mixer-B/16, gmlp-S/16 and convmixer-768/32 have the recipe with which ViT and
MLP-Mixer were fine-tuned (arXiv 2010.11929, section 4.1 and appendix B; arXiv 2105.01601, section 3): SGD with momentum
0.9, batch 512, gradient clipping at 1, 10,000 steps, cosine decay after 500 steps of warm-up, no weight decay, a head
of zeros, and random crops of 384 out of 448 pixels. Mixer and gMLP have 224 of 256, for their weights are of 224 pixels
(as in github.com/google-research/vision_transformer); ConvMixer has 385 of 449, for its patches are of 7 pixels.

NAME,small is for fewer than 20,000 images: 500 steps at a learning rate of 0.003, divided by 10 after 30, 60 and 90 %
of them (BiT's rule, arXiv 1912.11370, section 3.3).

vit-B/16,cifar10 and vit-B/16,cifar100 are published by github.com/google-research/vision_transformer for the weights
imagenet21k/ViT-B_16.npz. vit-B/32,cifar10, cifar100, pets and flowers are the runs of configs/transfer.py in
github.com/google-research/big_vision, from AugReg's B/32 of ImageNet-21k: 98.55, 91.35, 93.78 and 99.43 %.

linear trains the head alone, of any network, on features computed once. lp_ft goes on from its work directory and
trains all parameters: a new head would distort the features first (LP-FT, arXiv 2202.10054). Their lengths and learning
rates are ours:

    python -m patchnets.main --config=configs/finetune.py:linear --config.init.weights=ViT-B_16.npz \
        --config.dataset.name=cifar10 --workdir=runs/linear
    python -m patchnets.main --config=configs/finetune.py:lp_ft --config.init.weights=runs/linear \
        --config.dataset.name=cifar10 --workdir=runs/lp_ft
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from patchnets.config import common

CROP = 6 / 7  # 384 of 448 pixels
# What differs between networks: those of ViT's and the Mixer's authors have GELU by tanh, timm's the exact form.
NETWORKS: dict[str, dict[str, Any]] = {
    "vit-Ti/16": dict(model=dict(name="vit", variant="Ti/16")),
    "vit-S/16": dict(model=dict(name="vit", variant="S/16")),
    "vit-B/16": dict(model=dict(name="vit", variant="B/16")),
    "vit-B/32": dict(model=dict(name="vit", variant="B/32")),
    "mixer-B/16": dict(model=dict(name="mlp_mixer", variant="B/16"), image_size=224, crop_share=7 / 8),
    "gmlp-S/16": dict(model=dict(name="gmlp", variant="S/16", gelu="exact"), image_size=224, crop_share=7 / 8),
    "convmixer-768/32": dict(model=dict(name="convmixer", variant="768/32"), image_size=385, normalize="imagenet"),
}
VIT_JAX = {"cifar10": 0.9902, "cifar100": 0.9206}
# name: (TFDS's name, share of train that is trained on, steps, warm-up, learning rate, accuracy)
BIG_VISION = {
    "cifar10": ("cifar10", 98, 10_000, 500, 0.003, 0.9855),
    "cifar100": ("cifar100", 98, 10_000, 500, 0.01, 0.9135),
    "pets": ("oxford_iiit_pet", 90, 500, 100, 0.003, 0.9378),
    "flowers": ("oxford_flowers102", 90, 500, 100, 0.003, 0.9943),
}


def get_config(variant: str | None = None):
    choices: dict[str, Callable[[], ConfigDict]] = {name: partial(official, name) for name in NETWORKS}
    choices |= {f"{name},small": partial(small, name) for name in NETWORKS}
    choices |= {f"vit-B/16,{name}": partial(vit_jax, name) for name in VIT_JAX}
    choices |= {f"vit-B/32,{name}": partial(big_vision, name) for name in BIG_VISION}
    return common.choose(variant, choices | dict(linear=linear, lp_ft=lp_ft))


def official(name: str, learning_rate: float = 0.01, **values):
    network = dict(image_size=384, crop_share=CROP) | NETWORKS[name]
    recipe: dict[str, Any] = dict(
        augment=dict(flip=True, crop_share=network.pop("crop_share")),
        total_steps=10_000,
        eval_every_steps=500,
        optimizer=common.finetuning_sgd(learning_rate),
        schedule=dict(name="cosine", warmup_steps=500),
    )
    return common.from_weights(**recipe | network | values)


def small(name: str):
    schedule = dict(name="step", step_every_steps=150)
    return official(name, 0.003, total_steps=500, eval_every_steps=50, schedule=schedule)


def vit_jax(dataset: str):
    source = "github.com/google-research/vision_transformer, ViT-B_16 of imagenet21k without dropout"
    return official(
        "vit-B/16",
        0.03,
        dataset=dict(name=dataset, train_split="train[:98%]", val_split="train[98%:]"),
        published=common.published(VIT_JAX[dataset], source=source),
    )


def big_vision(dataset: str):
    name, percent, steps, warmup, learning_rate, accuracy = BIG_VISION[dataset]
    photographs = name.startswith("oxford")  # the others are of 32 x 32 pixels
    return official(
        "vit-B/32",
        learning_rate,
        dataset=dict(
            name=name,
            train_split=f"train[:{percent}%]",
            val_split=f"train[{percent}%:]",
            exif_orientation=False,  # the published pipeline reads the stored pixels
        ),
        augment=dict(flip=True, **(dict(crop_scale_min=0.05) if photographs else dict(crop_share=CROP))),
        crop_pct=CROP,
        total_steps=steps,
        eval_every_steps=steps // 20,
        schedule=dict(name="cosine", warmup_steps=warmup),
        published=common.published(accuracy, source="github.com/google-research/big_vision, configs/transfer.py"),
    )


def linear():
    return common.from_weights(
        total_epochs=20.0,
        optimizer=dict(learning_rate=1e-3, frozen=(("head/.*", False), (".*", True))),
        frozen_features="once",
        schedule=dict(name="cosine"),
    )


def lp_ft():
    return common.from_weights(
        head="keep",
        augment=dict(flip=True, crop_share=CROP),
        total_epochs=10.0,
        optimizer=common.finetuning_sgd(0.003),
        schedule=dict(name="cosine"),
    )
