"""ViT-B/16 on ImageNet-1k, the paper's recipe for training on it from scratch (arXiv 2010.11929, appendix B, table 3).

    python -m patchnets.main --config=configs/vit_imagenet.py --config.dataset.data_dir=PATH

300 epochs, batch 4096, Adam(.9, .999), learning rate 3e-3 with 10,000 steps of warm-up and cosine decay, weight decay
0.3, dropout 0.1, gradient clipping at 1. Random resized crops are not part of this configuration yet, and neither is
reading from disk while training: every device would hold all images, 187 GiB, so the command only says so.
"""

from configs import common


def get_config(variant: str | None = None):
    return common.choose(variant, dict(paper=paper))


def paper():
    return common.imagenet(
        model=dict(name="vit", variant="B/16", dropout_rate=0.1, dtype="bfloat16"),
        batch_size=4096,
        total_epochs=300.0,
        optimizer=dict(learning_rate=3e-3, weight_decay=0.3, clip_norm=1.0),
        schedule=dict(name="cosine", warmup_steps=10_000),
    )
