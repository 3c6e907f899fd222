"""ConvMixer on ImageNet-1k: 81.37 % top-1 published for 1536/20, 80.16 % for 768/32, 76.94 % for 1024/20.

The paper's recipe (arXiv 2201.09792, section 3 and table 1, and its repository); 1024/12 and 512/16 are cited with 77.8
and 73.8 %. Not run here: it needs a cluster.

150 epochs (768/32: 300), batch 640, AdamW with epsilon 1e-3, learning rate 0.01 in one cycle, weight decay 2e-5,
gradient clipping at 1, label smoothing 0.1, RandAugment (magnitude 9, standard deviation 0.5), mixup 0.5, CutMix 0.5,
random erasing 0.25 and color jitter 0.4 (timm, which the authors used, skips the jitter when RandAugment is on).

    python -m patchnets.main --config=configs/convmixer_imagenet.py --config.dataset.data_dir=PATH
    python -m patchnets.main --config=configs/convmixer_imagenet.py:768/32 --config.dataset.data_dir=PATH
"""

from functools import partial

from patchnets.config import common

ACCURACY = {"1536/20": 0.8137, "768/32": 0.8016, "1024/20": 0.7694, "1024/12": 0.778, "512/16": 0.738}


def get_config(variant: str | None = None):
    return common.choose(variant, {name: partial(paper, name) for name in ACCURACY})


def paper(variant: str):
    source = "its repository, as others cite it" if variant in ("1024/12", "512/16") else "arXiv 2201.09792, table 1"
    return common.imagenet(
        augment=common.of_convmixer(crop_scale_min=0.08, brightness=0.4, contrast=0.4, saturation=0.4),
        crop_pct=0.96,
        normalize="imagenet",
        model=dict(name="convmixer", variant=variant, dtype="bfloat16"),
        batch_size=640,
        total_epochs=300.0 if variant == "768/32" else 150.0,
        label_smoothing=0.1,
        optimizer=dict(learning_rate=0.01, weight_decay=2e-5, epsilon=1e-3, grad_clip_norm=1.0),
        schedule=dict(name="one_cycle"),
        published=common.published(ACCURACY[variant], source=source),
    )
