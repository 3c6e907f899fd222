"""ConvMixer-1536/20 on ImageNet-1k, the paper's recipe (arXiv 2201.09792, section 3 and its repository).

    python -m patchnets.main --config=configs/convmixer_imagenet.py --config.dataset.data_dir=PATH

150 epochs, batch 640, AdamW with epsilon 1e-3, learning rate 0.01 in one cycle, weight decay 2e-5, gradient clipping at
1, label smoothing 0.1: 81.37 % top-1 in the paper. Random resized crops, RandAugment (magnitude 9), mixup 0.5, CutMix
0.5, random erasing 0.25 and colour jitter 0.4 are not part of this configuration yet, and neither is reading from disk
while training: every device would hold all images, 187 GiB, so the command only says so.
"""

from configs import common


def get_config(variant: str | None = None):
    return common.choose(variant, dict(paper=paper))


def paper():
    return common.imagenet(
        normalize="imagenet",
        model=dict(name="convmixer", variant="1536/20", dtype="bfloat16"),
        batch_size=640,
        total_epochs=150.0,
        label_smoothing=0.1,
        optimizer=dict(learning_rate=0.01, weight_decay=2e-5, epsilon=1e-3, clip_norm=1.0),
        schedule=dict(name="one_cycle"),
    )
