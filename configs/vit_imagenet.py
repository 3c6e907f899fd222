"""ViT on ImageNet-1k from scratch: 80.0 % top-1 published for plain-300, 79.15 % for augreg-B/16.

The default is the paper's recipe (arXiv 2010.11929, appendix B, table 3): B/16, 300 epochs, batch 4096, Adam(.9, .999),
learning rate 3e-3 with 10,000 steps of warm-up and cosine decay, weight decay 0.3, dropout 0.1, gradient clipping at 1.

plain-90, plain-150 and plain-300 are "Better plain ViT baselines" (arXiv 2205.01580): S/16 with fixed position
embeddings, mean pooling and a head with tanh, batch 1024, learning rate 1e-3, RandAugment of magnitude 10, mixup 0.2:
76.5, 78.5 and 80.0 %.

augreg-S/16, augreg-B/32 and augreg-B/16 are "How to train your ViT?" (arXiv 2106.10270) without its dropout: batch
4096, learning rate 1e-3, the level medium2 (RandAugment of magnitude 15, mixup 0.5); the best of its runs on
ImageNet-1k reached 78.84, 74.91 and 79.15 %. augreg-B/16-strong1 and the like use another level, without published
figures. None was run here: they need a cluster.

    python -m patchnets.main --config=configs/vit_imagenet.py --config.dataset.data_dir=PATH
    python -m patchnets.main --config=configs/vit_imagenet.py:plain-90 --config.dataset.data_dir=PATH
    python -m patchnets.main --config=configs/vit_imagenet.py:augreg-B/16 --config.dataset.data_dir=PATH
"""

from collections.abc import Callable
from functools import partial

from ml_collections import ConfigDict

from patchnets.config import common

PLAIN = {90: 0.765, 150: 0.785, 300: 0.80}  # epochs: test accuracy
AUGREG = {"S/16": 0.7884, "B/32": 0.7491, "B/16": 0.7915}
LEVELS: dict[str, tuple[float, float] | None] = {  # (magnitude of RandAugment, alpha of mixup)
    "none": None,
    "light1": (0, 0.0),
    "light2": (10, 0.2),
    "medium1": (15, 0.2),
    "medium2": (15, 0.5),
    "strong1": (20, 0.5),
    "strong2": (20, 0.8),
}


def get_config(variant: str | None = None):
    choices: dict[str, Callable[[], ConfigDict]] = {"paper": paper}
    choices |= {f"plain-{epochs}": partial(plain, epochs) for epochs in PLAIN}
    choices |= {f"augreg-{name}": partial(augreg, name) for name in AUGREG}
    choices |= {f"augreg-{name}-{level}": partial(augreg, name, level) for name in AUGREG for level in LEVELS}
    return common.choose(variant, choices)


def paper():
    return common.imagenet(
        augment={},
        model=dict(name="vit", variant="B/16", dropout_rate=0.1, dtype="bfloat16"),
        batch_size=4096,
        total_epochs=300.0,
        optimizer=dict(learning_rate=3e-3, weight_decay=0.3, grad_clip_norm=1.0),
        schedule=dict(name="cosine", warmup_steps=10_000),
    )


def plain(epochs: int):
    return common.imagenet(
        augment=level("light2"),
        model=dict(
            name="vit",
            variant="S/16",
            pool_type="gap",
            posemb="sincos2d",
            rep_size=384,
            dtype="bfloat16",
        ),
        batch_size=1024,
        total_epochs=float(epochs),
        optimizer=dict(learning_rate=1e-3, weight_decay=0.1, grad_clip_norm=1.0),
        schedule=dict(name="cosine", warmup_steps=10_000),
        published=common.published(PLAIN[epochs], source=f"arXiv 2205.01580, {epochs} epochs"),
    )


def augreg(variant: str, level_name: str | None = None):
    source = "arXiv 2106.10270, the best of its settings"
    return common.imagenet(
        augment=level(level_name or "medium2"),
        model=dict(name="vit", variant=variant, dtype="bfloat16"),
        batch_size=4096,
        total_epochs=300.0,
        optimizer=dict(learning_rate=1e-3, weight_decay=0.1, grad_clip_norm=1.0),
        schedule=dict(name="cosine", warmup_steps=10_000),
        **{} if level_name else dict(published=common.published(AUGREG[variant], source=source, tolerance=0.02)),
    )


def level(name: str) -> dict:
    """Return RandAugment and mixup of a level of augmentation, as named in arXiv 2106.10270 (figure 4)."""
    strength = LEVELS[name]
    return {} if strength is None else common.tensorflow_randaugment(strength[0]) | dict(mixup=strength[1])
