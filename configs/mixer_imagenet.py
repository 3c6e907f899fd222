"""MLP-Mixer B/16 on ImageNet-1k, the paper's recipe (arXiv 2105.01601, section 3 and appendix B).

    python -m patchnets.main --config=configs/mixer_imagenet.py --config.dataset.data_dir=PATH

300 epochs, batch 4096, Adam(.9, .999), learning rate 1e-3 with 10,000 steps of warm-up and linear decay, weight decay
0.1, gradient clipping at 1, stochastic depth 0.1, no dropout: 76.44 % top-1 in the paper. The paper's augmentation,
random resized crops, RandAugment (2 layers, magnitude 15) and mixup 0.5, is not part of this configuration yet, and
neither is reading from disk while training: every device would hold all images, 187 GiB, so the command only says so.
"""

from configs import common


def get_config(variant: str | None = None):
    return common.choose(variant, dict(paper=paper))


def paper():
    return common.imagenet(
        model=dict(name="mlp_mixer", variant="B/16", stochastic_depth_rate=0.1, dtype="bfloat16"),
        batch_size=4096,
        total_epochs=300.0,
        optimizer=dict(learning_rate=1e-3, weight_decay=0.1, clip_norm=1.0),
        schedule=dict(name="linear", warmup_steps=10_000),
    )
