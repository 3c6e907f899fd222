"""Official .npz checkpoints made by hand: arrays of random numbers under the authors' names, and what they compute."""

import math

import numpy as np
from reference import gelu, norm, patches

SIZE, PATCH, WIDTH, HIDDEN, DEPTH, HEADS, CLASSES = 12, 4, 8, 12, 2, 2, 3
ATTENTION, MLP = "MultiHeadDotProductAttention", "MlpBlock"


def draw(shapes, seed=0):
    """Random arrays; norms are near one, matrices keep the size of what they multiply."""
    generator, arrays = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        noise = generator.standard_normal(shape).astype(np.float32)
        factor = 0.3 if len(shape) < 2 or "pos" in name else math.prod(shape[:-1]) ** -0.5
        arrays[name] = 1 + 0.3 * noise if name.endswith("scale") else np.float32(factor) * noise
    return arrays


def dense(name, *shape):
    return {f"{name}/kernel": shape, f"{name}/bias": shape[1:]}


def layer_norm(name):
    return {f"{name}/scale": (WIDTH,), f"{name}/bias": (WIDTH,)}


def conv(name):
    return {f"{name}/kernel": (PATCH, PATCH, 3, WIDTH), f"{name}/bias": (WIDTH,)}


def attention(name):
    heads = (HEADS, WIDTH // HEADS)
    projections = {
        f"{name}/{kind}/{leaf}": (WIDTH, *heads) if leaf == "kernel" else heads
        for kind in ("query", "key", "value")
        for leaf in ("kernel", "bias")
    }
    return projections | {f"{name}/out/kernel": (*heads, WIDTH), f"{name}/out/bias": (WIDTH,)}


def mlp(name, hidden, features):
    return dense(f"{name}/Dense_0", features, hidden) | dense(f"{name}/Dense_1", hidden, features)


def vit(pool="cls", rep_size=0, positions=True, classes=CLASSES):
    """The names of vision_transformer; with pool="map" those of big_vision for the pooling."""
    tokens = (SIZE // PATCH) ** 2 + (pool == "cls")
    shapes = conv("embedding") | layer_norm("Transformer/encoder_norm")
    shapes |= {"cls": (1, 1, WIDTH)} if pool == "cls" else {}
    shapes |= {"Transformer/posembed_input/pos_embedding": (1, tokens, WIDTH)} if positions else {}
    for i in range(DEPTH):
        block = f"Transformer/encoderblock_{i}/"
        shapes |= layer_norm(f"{block}LayerNorm_0") | layer_norm(f"{block}LayerNorm_2")
        shapes |= attention(f"{block}{ATTENTION}_1") | mlp(f"{block}{MLP}_3", HIDDEN, WIDTH)
    if pool == "map":
        shapes |= {"MAPHead_0/probe": (1, 1, WIDTH)} | layer_norm("MAPHead_0/LayerNorm_0")
        shapes |= attention(f"MAPHead_0/{ATTENTION}_0") | mlp(f"MAPHead_0/{MLP}_0", HIDDEN, WIDTH)
    shapes |= dense("pre_logits", WIDTH, rep_size) if rep_size else {}
    shapes |= dense("head", rep_size or WIDTH, classes) if classes else {}
    return draw(shapes)


def mixer():
    """The names of the code of the paper."""
    tokens = (SIZE // PATCH) ** 2
    shapes = conv("stem") | layer_norm("pre_head_layer_norm") | dense("head", WIDTH, CLASSES)
    for i in range(DEPTH):
        block = f"MixerBlock_{i}/"
        shapes |= layer_norm(f"{block}LayerNorm_0") | layer_norm(f"{block}LayerNorm_1")
        shapes |= mlp(f"{block}token_mixing", 5, tokens) | mlp(f"{block}channel_mixing", HIDDEN, WIDTH)
    return draw(shapes)


def leaves(arrays, name):
    return {key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/")}


def linear(arrays, name, x):
    return x @ arrays[f"{name}/kernel"] + arrays[f"{name}/bias"]


def mlp_of(arrays, name, x):
    return linear(arrays, f"{name}/Dense_1", gelu(linear(arrays, f"{name}/Dense_0", x), "tanh"))


def attend(arrays, name, tokens, memory):
    """Head by head (arXiv 2010.11929, appendix A)."""
    p, out = leaves(arrays, name), np.zeros((len(tokens), WIDTH)) + arrays[f"{name}/out/bias"]
    for head in range(HEADS):
        query, key, value = (
            x @ p[f"{kind}/kernel"][:, head] + p[f"{kind}/bias"][head]
            for kind, x in (("query", tokens), ("key", memory), ("value", memory))
        )
        weights = np.exp(query @ key.T / math.sqrt(WIDTH // HEADS))
        out += weights / weights.sum(1, keepdims=True) @ value @ p["out/kernel"][head]
    return out


def vit_logits(arrays, image, epsilon=1e-6):
    arrays = {name: np.asarray(value, np.float64) for name, value in arrays.items()}
    normed = lambda name, x: norm(x, **leaves(arrays, name), epsilon=epsilon)
    x = patches(image.astype(np.float64), PATCH, **leaves(arrays, "embedding"))
    x = np.concatenate([arrays["cls"][0], x]) if "cls" in arrays else x
    if "Transformer/posembed_input/pos_embedding" in arrays:
        x = x + arrays["Transformer/posembed_input/pos_embedding"][0]
    for i in range(DEPTH):
        block = f"Transformer/encoderblock_{i}/"
        y = normed(f"{block}LayerNorm_0", x)
        x = x + attend(arrays, f"{block}{ATTENTION}_1", y, y)
        x = x + mlp_of(arrays, f"{block}{MLP}_3", normed(f"{block}LayerNorm_2", x))
    x = normed("Transformer/encoder_norm", x)
    if "MAPHead_0/probe" in arrays:
        y = attend(arrays, f"MAPHead_0/{ATTENTION}_0", arrays["MAPHead_0/probe"][0], x)
        x = (y + mlp_of(arrays, f"MAPHead_0/{MLP}_0", normed("MAPHead_0/LayerNorm_0", y)))[0]
    else:
        x = x[0] if "cls" in arrays else x.mean(0)
    x = np.tanh(linear(arrays, "pre_logits", x)) if "pre_logits/bias" in arrays else x
    return linear(arrays, "head", x) if "head/bias" in arrays else x


def mixer_logits(arrays, image):
    arrays = {name: np.asarray(value, np.float64) for name, value in arrays.items()}
    normed = lambda name, x: norm(x, **leaves(arrays, name), epsilon=1e-6)
    x = patches(image.astype(np.float64), PATCH, **leaves(arrays, "stem"))
    for i in range(DEPTH):
        block = f"MixerBlock_{i}/"
        x = x + mlp_of(arrays, f"{block}token_mixing", normed(f"{block}LayerNorm_0", x).T).T
        x = x + mlp_of(arrays, f"{block}channel_mixing", normed(f"{block}LayerNorm_1", x))
    return linear(arrays, "head", normed("pre_head_layer_norm", x).mean(0))


def vit_of_transformers(arrays, prefix="vit."):
    """The names and axes of transformers' ViTForImageClassification, by hand."""
    entries = {}

    def dense(theirs, ours):
        kernel = arrays[f"{ours}/kernel"]
        if theirs.endswith(("query", "key", "value")):
            kernel = kernel.reshape(WIDTH, -1)
        entries[f"{theirs}.weight"] = kernel.reshape(-1, kernel.shape[-1]).T
        entries[f"{theirs}.bias"] = arrays[f"{ours}/bias"].reshape(-1)

    def norm(theirs, ours):
        entries[f"{theirs}.weight"], entries[f"{theirs}.bias"] = arrays[f"{ours}/scale"], arrays[f"{ours}/bias"]

    stem = f"{prefix}embeddings.patch_embeddings.projection"
    entries[f"{stem}.weight"] = arrays["embedding/kernel"].transpose(3, 2, 0, 1)
    entries[f"{stem}.bias"] = arrays["embedding/bias"]
    entries[f"{prefix}embeddings.cls_token"] = arrays["cls"]
    entries[f"{prefix}embeddings.position_embeddings"] = arrays["Transformer/posembed_input/pos_embedding"]
    for i in range(DEPTH):
        layer, block = f"{prefix}encoder.layer.{i}.", f"Transformer/encoderblock_{i}/"
        attention = f"{block}MultiHeadDotProductAttention_1/"
        for name in ("query", "key", "value"):
            dense(f"{layer}attention.attention.{name}", attention + name)
        dense(f"{layer}attention.output.dense", attention + "out")
        norm(f"{layer}layernorm_before", f"{block}LayerNorm_0")
        norm(f"{layer}layernorm_after", f"{block}LayerNorm_2")
        dense(f"{layer}intermediate.dense", f"{block}MlpBlock_3/Dense_0")
        dense(f"{layer}output.dense", f"{block}MlpBlock_3/Dense_1")
    norm(f"{prefix}layernorm", "Transformer/encoder_norm")
    if "head/kernel" in arrays:
        dense("classifier", "head")
    return entries
