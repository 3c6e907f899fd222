"""ViT and DINOv2 saved by transformers give its outputs. Collected only where transformers is installed."""

import jax
import numpy as np
import pytest

import patchnets
from patchnets.weights.pretrained import read_pretrained

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLOSE = dict(rtol=1e-5, atol=1e-5)
SIZE = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=16, patch_size=4)
NETWORKS = {
    "vit": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(**SIZE, intermediate_size=48, num_labels=5, layer_norm_eps=1e-3)
    ),
    "vit, tanh": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(**SIZE, intermediate_size=48, num_labels=5, hidden_act="gelu_pytorch_tanh")
    ),
    "vit without a head": lambda: transformers.ViTModel(transformers.ViTConfig(**SIZE, intermediate_size=48)),
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZE, mlp_ratio=2, layerscale_value=0.5)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_transformers(name, tmp_path):
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    for value in network.state_dict().values():
        value.add_(0.1 * torch.randn(value.shape))
    network.save_pretrained(tmp_path)
    pretrained = read_pretrained(tmp_path)
    images = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
    with torch.inference_mode():
        output = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    theirs = output.logits if hasattr(output, "logits") else output.last_hidden_state[:, 0]
    ours = pretrained.spec.create_model()
    actual = jax.jit(lambda v, x: ours.apply(v, x, train=False))(pretrained.variables, images)
    np.testing.assert_allclose(actual, theirs.numpy(), **CLOSE)


@pytest.mark.parametrize("size", [12, 28])
def test_dinov2_at_another_size_is_that_of_transformers(size, tmp_path):
    torch.manual_seed(0)
    network = NETWORKS["dinov2"]().eval()
    network.save_pretrained(tmp_path)
    model = patchnets.load(tmp_path, image_size=size, resize="bicubic_no_antialias")
    images = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
    with torch.inference_mode():
        theirs = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).last_hidden_state[:, 0]
    actual = jax.jit(lambda v, x: model.network.apply(v, x, train=False))(model.variables, images)
    np.testing.assert_allclose(actual, theirs.numpy(), **CLOSE)
