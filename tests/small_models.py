"""A small network of every kind with random weights, as a `patchnets.Model`, and random images."""

import json

import jax
import numpy as np
from flax import traverse_util

from patchnets import models
from patchnets.inference.model import Model
from patchnets.models.blocks import stack_blocks
from patchnets.run.model_spec import ModelSpec
from patchnets.weights import files, timm

BLOCKS = dict(patch_size=4, depth=2, hidden_dim=16)
NETWORKS = {
    "mlp_mixer": BLOCKS | dict(tokens_mlp_dim=6, channels_mlp_dim=24, gelu="exact"),
    "fnet": BLOCKS | dict(mlp_dim=24),
    "gmlp": BLOCKS | dict(ffn_dim=24),
    "convmixer": BLOCKS | dict(kernel_size=3),
    "vit": BLOCKS | dict(mlp_dim=24, num_heads=2),
    "keras_mixer": BLOCKS | dict(dropout_rate=0.1),
    "keras_fnet": BLOCKS | dict(dropout_rate=0.1),
    "keras_gmlp": BLOCKS | dict(dropout_rate=0.1),
    "keras_vit": BLOCKS | dict(mlp_dim=24, num_heads=2, dropout_rate=0.1, head_dropout_rate=0.1),
    "keras_convmixer": BLOCKS | dict(kernel_size=3),
    "blog_mixer_pytorch": BLOCKS | dict(tokens_mlp_dim=6, channels_mlp_dim=24),
    "blog_mixer_keras": BLOCKS | dict(tokens_mlp_dim=6, channels_mlp_dim=24),
}
SIZE = 16


def make_model(name, fields=None, **changes):
    """A network with random weights, batch statistics included, for five classes of images of 16 px.

    `fields` are the network's in place of those above, `changes` the spec's.
    """
    fields = NETWORKS[name] | (fields or {})
    network = models.create_model(name, num_classes=5, **fields)
    resolved = {field: getattr(network, field) for field in models.config_fields(name)}
    values = dict(
        network=name,
        fields=resolved | {"dtype": "float32"},
        classes=tuple("abcde"),
        loss="softmax",
        channels=3,
        decoded_size=SIZE,
        decoded_crop_pct=1.0,
        image_size=SIZE,
        crop_pct=1.0,
        mean=(110.0, 120.0, 130.0),
        std=(60.0, 65.0, 70.0),
    )
    spec = ModelSpec(**values | changes)
    shapes = jax.eval_shape(
        lambda: network.clone(scan=False).init(
            jax.random.key(0), np.zeros((1, spec.image_size, spec.image_size, spec.channels)), train=False
        )
    )
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        noise = generator.standard_normal(leaf.shape).astype(np.float32)
        if path[-1] in ("var", "scale"):
            return np.abs(1 + 0.3 * noise)
        return noise * np.float32(0.3 if leaf.ndim == 1 else np.prod(leaf.shape[:-1]) ** -0.5)

    flat = {path: draw(path, leaf) for path, leaf in traverse_util.flatten_dict(dict(shapes)).items()}
    variables = {"batch_stats": {}} | traverse_util.unflatten_dict(flat)
    return Model(spec, stack_blocks(variables) if network.scan else variables)


def images(count, size=SIZE, channels=3):
    return np.random.default_rng(1).integers(0, 256, (count, size, size, channels), np.uint8)


def entries_of(model):
    """The entries of timm's state dict."""
    return timm.to_entries(model.network, model.variables, model.spec.image_size)


def write(folder, entries, config=None, processor=None):
    """Write a folder as the hub has them; return it."""
    from safetensors.numpy import save_file  # not everywhere where this module is imported

    folder.mkdir(parents=True, exist_ok=True)
    save_file(files.contiguous(entries), folder / "model.safetensors")
    for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder
