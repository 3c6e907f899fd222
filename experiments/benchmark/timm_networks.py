"""timm's network for each workload: by name, or by class with the tutorial's sizes."""

from typing import Any

import torch

from experiments.benchmark.without_torchvision import stand_in
from experiments.benchmark.workloads import WORKLOADS

with stand_in():
    import timm
    import timm.layers
    import timm.models


class WideHeads(timm.models.vision_transformer.Attention):
    """Attention with heads of the full width, as in the tutorial's ViT."""

    def __init__(self, dim: int, num_heads: int, **settings: Any):
        super().__init__(dim, num_heads, attn_head_dim=dim, **settings)


def without(network: Any, kind: type, dropout: str) -> Any:
    """Remove a dropout that the tutorial does not have from all layers of type `kind`."""
    for layer in network.modules():
        if isinstance(layer, kind):
            setattr(layer, dropout, torch.nn.Identity())
    return network


def mixer(**settings: Any) -> Any:
    """Build an MLP with the tutorial's sizes: 64 patches of 8 x 8 pixels, 4 blocks of 256 channels, dropout 0.2."""
    sizes = dict(img_size=64, patch_size=8, num_blocks=4, embed_dim=256, num_classes=100)
    return timm.models.MlpMixer(**sizes, drop_rate=0.2, proj_drop_rate=0.2, **settings)


def gmlp() -> Any:
    """Build gMLP, with dropout only after the GELU."""
    kinds = dict(block_layer=timm.models.mlp_mixer.SpatialGatingBlock, mlp_layer=timm.layers.GatedMlp)
    return without(mixer(mlp_ratio=2, **kinds), timm.layers.GatedMlp, "drop2")


def vit() -> Any:
    """Build ViT with mean pooling and a linear head; the tutorial has two more dense layers."""
    network = timm.models.VisionTransformer(
        img_size=72,
        patch_size=6,
        embed_dim=64,
        depth=8,
        num_heads=4,
        mlp_ratio=2,
        attn_layer=WideHeads,
        class_token=False,
        global_pool="avg",
        proj_drop_rate=0.1,
        attn_drop_rate=0.1,
        num_classes=100,
    )
    return without(network, WideHeads, "proj_drop")


BUILT = {
    "mixer": lambda: without(mixer(mlp_ratio=(0.25, 0.25)), timm.layers.Mlp, "drop1"),
    "gmlp": gmlp,
    "vit": vit,
    "convmixer": lambda: timm.models.ConvMixer(256, 8, kernel_size=5, patch_size=2, num_classes=10),
    "convmixer_512_16": lambda: timm.models.ConvMixer(512, 16, kernel_size=8, patch_size=7, num_classes=1000),
}


def build(model: str) -> Any:
    """Return a network with random weights; raise KeyError if timm has none (FNet)."""
    name = WORKLOADS[model].timm
    if not name:
        raise KeyError(f"timm has no {model}")
    return BUILT[name]() if name in BUILT else timm.create_model(name)
