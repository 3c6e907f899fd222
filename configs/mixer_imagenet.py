"""MLP-Mixer on ImageNet-1k: 76.44 % top-1 published for B/16, 71.76 % for L/16.

The paper's recipe (arXiv 2105.01601, section 3, table 2 and appendix B). Not run here: it needs a cluster.

300 epochs, batch 4096, Adam(.9, .999), learning rate 1e-3 with 10,000 steps of warm-up and linear decay, weight decay
0.1, gradient clipping at 1, RandAugment (2 layers, magnitude 15), mixup 0.5, stochastic depth 0.1, no dropout.

    python -m patchnets.main --config=configs/mixer_imagenet.py --config.dataset.data_dir=PATH
    python -m patchnets.main --config=configs/mixer_imagenet.py:L/16 --config.dataset.data_dir=PATH
"""

from functools import partial

from patchnets.config import common

ACCURACY = {"B/16": 0.7644, "L/16": 0.7176}


def get_config(variant: str | None = None):
    return common.choose(variant, {name: partial(paper, name) for name in ACCURACY})


def paper(variant: str):
    return common.imagenet(
        augment=common.tensorflow_randaugment(15) | dict(mixup=0.5),
        model=dict(
            name="mlp_mixer",
            variant=variant,
            drop_path_rate=0.1,
            drop_path_scale_by_keep=False,  # as in the authors' code
            dtype="bfloat16",
        ),
        batch_size=4096,
        total_epochs=300.0,
        optimizer=dict(learning_rate=1e-3, weight_decay=0.1, grad_clip_norm=1.0),
        schedule=dict(name="linear", warmup_steps=10_000),
        published=common.published(ACCURACY[variant], source="arXiv 2105.01601, table 2"),
    )
