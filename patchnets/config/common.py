"""Recipes shared by several configurations. Keys, defaults and meanings: patchnets/config/schema.py, or --help."""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from patchnets.config import TO_BE_SET, default_config
from patchnets.errors import UserError


def base(**values) -> ConfigDict:
    """Return all keys at their defaults, updated by `values`; a dict sets a group: `dataset=dict(name="cifar10")`."""
    return default_config(**values)


def choose(argument: str | None, choices: Mapping[str, Callable[[], ConfigDict]]) -> ConfigDict:
    """Return the configuration that `--config=FILE:ARGUMENT` selects: the first without ARGUMENT."""
    if not argument:
        return next(iter(choices.values()))()
    if argument not in choices:
        raise UserError(f"the configuration has no variant {argument!r}; known: {', '.join(choices)}")
    return choices[argument]()


def published(accuracy: float, top5_accuracy: float | None = None, *, source: str, tolerance: float = 0.01) -> dict:
    """Return the published test metrics of a recipe, for `published=published(...)`."""
    return dict(accuracy=accuracy, top5_accuracy=top5_accuracy, source=source, tolerance=tolerance)


def changed(config: ConfigDict, **values) -> ConfigDict:
    """Update `config` with `values` and return it."""
    config.update(values)
    return config


def digits(**values) -> ConfigDict:
    """Return a recipe for scikit-learn's digits and a small network: 60 epochs of AdamW, translation and zoom."""
    return base(
        dataset=dict(name="digits"),
        image_size=8,
        augment=dict(translate=0.1, zoom=0.1),
        batch_size=64,
        total_epochs=60.0,
        eval_every_epochs=5.0,
        optimizer=dict(learning_rate=3e-3, weight_decay=0.05, grad_clip_norm=1.0),
        schedule=dict(name="cosine", warmup_epochs=5.0),
        **values,
    )


def keras_adamw(learning_rate: float) -> dict:
    """Return Keras's AdamW: epsilon 1e-7, and weight decay 1e-4 on all parameters.

    Keras adds epsilon before the bias correction of the second moment, optax after it.
    """
    return dict(learning_rate=learning_rate, weight_decay=1e-4, wd_mask="all", epsilon=1e-7)


def keras_mlp(dataset: str, learning_rate: float, model: dict, **values) -> ConfigDict:
    """Return the recipe of the Keras example "image classification with modern MLP models".

    Images are resized from 32 to 64 pixels, flipped, and zoomed by up to 20 %. Batch 128, AdamW at a constant learning
    rate that is halved after 5 validations without a lower loss; at most 50 epochs, early stopping after 10. The last
    10 % of the training images are for validation; the lowest validation loss selects the checkpoint.
    """
    return base(
        dataset=dict(name=dataset),
        image_size=64,
        normalize="dataset",
        augment=dict(flip=True, zoom=0.2),
        model=model,
        batch_size=128,
        total_epochs=50.0,
        optimizer=keras_adamw(learning_rate),
        schedule=dict(name="constant"),
        reduce_on_plateau=dict(factor=0.5, patience=5),
        early_stopping=dict(patience=10),
        checkpoint=dict(best_metric="loss"),
        **values,
    )


def keras_vit(dataset: str, model: dict, **values) -> ConfigDict:
    """Return the recipe of the Keras example "image classification with Vision Transformer".

    Images are resized from 32 to 72 pixels, flipped, rotated by up to 0.02 turns, and zoomed by up to 20 %. Batch 256,
    AdamW at a constant 1e-3, 10 epochs. The last 10 % of the training images are for validation; the highest validation
    accuracy selects the checkpoint.
    """
    return base(
        dataset=dict(name=dataset),
        image_size=72,
        normalize="dataset",
        augment=dict(flip=True, rotation=0.02, zoom=0.2),
        model=model,
        batch_size=256,
        total_epochs=10.0,
        optimizer=keras_adamw(1e-3),
        schedule=dict(name="constant"),
        **values,
    )


def keras_convmixer(dataset: str, model: dict, **values) -> ConfigDict:
    """Return the recipe of the Keras example "image classification with ConvMixer".

    Pixels are divided by 255 and images flipped (the example's random crop is as large as the image). Batch 128, AdamW
    at a constant 1e-3, 10 epochs. The first 5,000 training images are for validation; the highest validation accuracy
    selects the checkpoint.
    """
    return base(
        dataset=dict(name=dataset, train_split="train[5000:]", val_split="train[:5000]"),
        image_size=32,
        normalize="unit",
        augment=dict(flip=True),
        model=model,
        batch_size=128,
        total_epochs=10.0,
        optimizer=keras_adamw(1e-3),
        schedule=dict(name="constant"),
        **values,
    )


def on_digits(config: ConfigDict, **model) -> ConfigDict:
    """Adapt a tutorial's recipe to scikit-learn's digits: 8 pixels and a smaller network.

    No flips or rotations: a flipped digit is another digit or none.
    """
    config.update(
        dataset=dict(name="digits", train_split=None, val_split=None),
        image_size=8,
        augment=dict(flip=False, rotation=0.0),
        model=dict(variant=None, **model),
    )
    return config


def of_convmixer(**augment) -> dict:
    """Return the ConvMixer paper's augmentation: RandAugment (magnitude 9), mixup, CutMix, random erasing, as in timm.

    Each RandAugment operation has probability 0.5 and a magnitude with standard deviation 0.5; erased rectangles are
    filled with noise.
    """
    return dict(
        policy="randaugment",
        magnitude=9.0,
        magnitude_std=0.5,
        randaugment_prob=0.5,
        mixup=0.5,
        cutmix=0.5,
        random_erasing_prob=0.25,
        random_erasing_mode="pixel",
        **augment,
    )


def convmixer_on_cifar(dataset: str, **values) -> ConfigDict:
    """Return the ConvMixer paper's recipe for CIFAR-10 (arXiv 2201.09792, appendix, and its repository).

    200 epochs, batch 64, AdamW with epsilon 1e-3, learning rate 0.01 in one cycle, weight decay 0.01, gradient clipping
    at 1; crops of at least 75 % of the area, RandAugment of magnitude 9, mixup and CutMix 0.5, random erasing 0.25.
    Other settings are those of timm, which the authors used.
    """
    return base(
        dataset=dict(name=dataset, train_split="train", val_split="none"),
        image_size=32,
        normalize="dataset",
        augment=of_convmixer(flip=True, crop_scale_min=0.75, crop_ratio_max=1.0),
        model=dict(name="convmixer", variant="256/8-k9-p1"),
        batch_size=64,
        total_epochs=200.0,
        optimizer=dict(learning_rate=0.01, weight_decay=0.01, epsilon=1e-3, grad_clip_norm=1.0),
        schedule=dict(name="one_cycle"),
        **values,
    )


def locuslab(dataset: str, **values) -> ConfigDict:
    """Return the short recipe of github.com/locuslab/convmixer-cifar10.

    25 epochs, batch 512, AdamW, learning rate 0.05 in one cycle, weight decay 0.005 on all parameters, torchvision's
    RandAugment with 2 operations of magnitude 12.
    """
    return base(
        dataset=dict(name=dataset, train_split="train", val_split="none"),
        image_size=32,
        normalize="dataset",
        augment=dict(
            flip=True, policy="randaugment", randaugment_variant="torchvision", randaugment_num_ops=2, magnitude=12.0
        ),
        model=dict(name="convmixer", variant="256/8-k5-p2"),
        batch_size=512,
        total_epochs=25.0,
        optimizer=dict(learning_rate=0.05, weight_decay=0.005, wd_mask="all"),
        schedule=dict(name="one_cycle"),
        **values,
    )


def omihub777(dataset: str, **values) -> ConfigDict:
    """Return the recipe shared by github.com/omihub777/MLP-Mixer-CIFAR and ViT-CIFAR.

    Batch 128, Adam with L2 decay 5e-5, learning rate 1e-3 with 5 epochs of warmup and cosine decay, label smoothing
    0.1, crops of images padded by 4, flips, AutoAugment.
    """
    return base(
        dataset=dict(name=dataset, train_split="train", val_split="none"),
        image_size=32,
        normalize="dataset",
        augment=dict(flip=True, crop_padding=4, policy="autoaugment_cifar10", **values.pop("augment", {})),
        batch_size=128,
        label_smoothing=0.1,
        optimizer=dict(
            name="adam", learning_rate=1e-3, weight_decay=5e-5, wd_mask="all", **values.pop("optimizer", {})
        ),
        schedule=dict(name="cosine", warmup_epochs=5.0, **values.pop("schedule", {})),
        **values,
    )


def mixer_nano(dataset: str, **values) -> ConfigDict:
    """Return Mixer-nano of github.com/omihub777/MLP-Mixer-CIFAR: 300 epochs, to 1e-6, CutMix on half of the batches."""
    return omihub777(
        dataset,
        model=dict(
            name="mlp_mixer",
            patch_size=4,
            depth=8,
            hidden_dim=128,
            tokens_mlp_dim=64,
            channels_mlp_dim=512,
            gelu="exact",
        ),
        total_epochs=300.0,
        augment=dict(cutmix=1.0, mix_prob=0.5),
        optimizer=dict(beta2=0.99),
        schedule=dict(end_factor=1e-3),
        **values,
    )


def vit_small(dataset: str, **values) -> ConfigDict:
    """Return the ViT of github.com/omihub777/ViT-CIFAR: 200 epochs, down to 1e-5."""
    return omihub777(
        dataset,
        model=dict(name="vit", patch_size=4, depth=7, hidden_dim=384, mlp_dim=384, num_heads=12, gelu="exact"),
        total_epochs=200.0,
        schedule=dict(end_factor=1e-2),
        **values,
    )


def kentaroy47(dataset: str, **values) -> ConfigDict:
    """Return the ViT recipe of github.com/kentaroy47/vision-transformers-cifar10.

    Batch 512, Adam without weight decay, learning rate 1e-4 with cosine decay, dropout 0.1, images padded by 4 and
    cropped, flips, RandAugment with 2 operations of magnitude 14 of 30, in TensorFlow's ranges
    (the repository's have smaller cutout squares and another solarize_add).
    """
    return base(
        dataset=dict(name=dataset, train_split="train", val_split="none"),
        image_size=32,
        normalize="dataset",
        augment=dict(
            flip=True,
            crop_padding=4,
            policy="randaugment",
            randaugment_variant="tensorflow",
            randaugment_num_ops=2,
            magnitude=14 / 3,
        ),
        model=dict(
            name="vit",
            patch_size=4,
            depth=6,
            hidden_dim=512,
            mlp_dim=512,
            num_heads=8,
            dropout_rate=0.1,
            gelu="exact",
        ),
        batch_size=512,
        optimizer=dict(name="adam", learning_rate=1e-4),
        schedule=dict(name="cosine"),
        **values,
    )


def imagenet(augment: Mapping, **values) -> ConfigDict:
    """Return a base recipe for ImageNet-1k at 224 pixels.

    Flips and crops of at least 5 % of the area; evaluation on the central crop (7/8 of the shorter side). The last 1 %
    of train is for validation; ImageNet's validation images are the test split.
    """
    return base(
        dataset=dict(
            name="imagenet2012",
            train_split="train[:99%]",
            val_split="train[99%:]",
            test_split="validation",
            exif_orientation=False,  # the published pipelines read the stored pixels
        ),
        image_size=224,
        **{"crop_pct": 0.875} | values,
        augment={"flip": True, "crop_scale_min": 0.05} | dict(augment),
        log_every_steps=100,
    )


def from_weights(head: str = "zeros", **values) -> ConfigDict:
    """Return a base recipe that starts from trained weights, in batches of 512; which weights and which images is left
    to the command line, unless `values` name them."""
    return base(init=dict(weights=TO_BE_SET, head=head), batch_size=512, **{"dataset": dict(name=TO_BE_SET)} | values)


def finetuning_sgd(learning_rate: float) -> dict:
    """Return the optimizer with which ViT (arXiv 2010.11929, section 4.1) and MLP-Mixer were fine-tuned."""
    return dict(name="sgd", momentum=0.9, learning_rate=learning_rate, grad_clip_norm=1.0)


def tensorflow_randaugment(magnitude: float) -> dict:
    """Return the Mixer and ViT authors' RandAugment: 2 operations; posterize and solarize weaken as magnitude grows."""
    return dict(
        policy="randaugment", randaugment_num_ops=2, magnitude=float(magnitude), randaugment_variant="tensorflow"
    )
