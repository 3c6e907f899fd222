"""gMLP-S/16 on ImageNet-1k, the paper's recipe (arXiv 2105.08050, appendix A).

    python -m patchnets.main --config=configs/gmlp_imagenet.py --config.dataset.data_dir=PATH

300 epochs, batch 4096, AdamW(.9, .999, epsilon 1e-6), learning rate 1e-3 with 10,000 steps of warm-up and cosine decay,
weight decay 0.05, gradient clipping at 1, label smoothing 0.1, the last block's branch kept with probability 0.95: 79.6
% top-1 in the paper. Random resized crops, AutoAugment, mixup 0.8 and CutMix 1.0 are not part of this configuration
yet, and neither is reading from disk while training: every device would hold all images, 187 GiB, so the command only
says so.
"""

from configs import common


def get_config(variant: str | None = None):
    return common.choose(variant, dict(paper=paper))


def paper():
    return common.imagenet(
        model=dict(name="gmlp", variant="S/16", survival_probability=0.95, dtype="bfloat16"),
        batch_size=4096,
        total_epochs=300.0,
        label_smoothing=0.1,
        optimizer=dict(learning_rate=1e-3, weight_decay=0.05, epsilon=1e-6, clip_norm=1.0),
        schedule=dict(name="cosine", warmup_steps=10_000),
    )
