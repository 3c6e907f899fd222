"""gMLP on ImageNet-1k: 79.6 % top-1 published for S/16, 72.3 % for Ti/16, 81.6 % for B/16.

The paper's recipe (arXiv 2105.08050, appendix A). Not run here: it needs a cluster.

300 epochs, batch 4096, AdamW(.9, .999, epsilon 1e-6), learning rate 1e-3 with 10,000 steps of warm-up and cosine decay,
weight decay 0.05, gradient clipping at 1, AutoAugment, mixup 0.8 or CutMix 1.0, label smoothing 0.1, and the last
block's branch kept with probability 1 (Ti), 0.95 (S) or 0.8 (B).

    python -m patchnets.main --config=configs/gmlp_imagenet.py --config.dataset.data_dir=PATH
    python -m patchnets.main --config=configs/gmlp_imagenet.py:B/16 --config.dataset.data_dir=PATH
"""

from functools import partial

from patchnets.config import common

ACCURACY = {"S/16": 0.796, "Ti/16": 0.723, "B/16": 0.816}


def get_config(variant: str | None = None):
    return common.choose(variant, {name: partial(paper, name) for name in ACCURACY})


def paper(variant: str):
    return common.imagenet(
        augment=dict(policy="autoaugment_imagenet", mixup=0.8, cutmix=1.0),
        model=dict(name="gmlp", variant=variant, dtype="bfloat16"),
        batch_size=4096,
        total_epochs=300.0,
        label_smoothing=0.1,
        optimizer=dict(learning_rate=1e-3, weight_decay=0.05, epsilon=1e-6, grad_clip_norm=1.0),
        schedule=dict(name="cosine", warmup_steps=10_000),
        published=common.published(ACCURACY[variant], source="arXiv 2105.08050, as others cite it"),
    )
