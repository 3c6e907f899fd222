"""ONNX models of all networks give onnxruntime the logits of patchnets, for any batch; needs jax2onnx (make onnx)."""

import json
import re

import numpy as np
import pytest
from small_models import NETWORKS, images, make_model
from trained_families import FAMILIES, held_out_images

from patchnets.export import __main__ as program
from patchnets.inference import verify

pytest.importorskip("jax2onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_gives_the_same_logits_for_any_batch(name, tmp_path):
    model = make_model(name)
    report = model.export(tmp_path / "folder", "onnx")
    assert report.comparison.by == f"onnxruntime {onnxruntime.__version__}"
    assert report.comparison.difference < 1e-4 and report.comparison.agree == 32
    run, _ = verify.run_onnx(tmp_path / "folder" / "model.onnx")
    for batch in (1, 5):
        pictures = images(batch)
        expected = model.logits(pictures)
        assert expected.std() > 0.1  # or agreement would say little
        np.testing.assert_allclose(run(np.asarray(model.preprocess(pictures))), expected, rtol=1e-4, atol=1e-4)


def test_metadata_has_classes_and_preprocessing_and_the_readme_s_code_runs(tmp_path, monkeypatch):
    model = make_model("vit", fields=dict(scan=True), decoded_size=20, crop_pct=0.8)
    model.export(tmp_path / "folder", "onnx", inputs="uint8", outputs="probabilities")
    pictures = images(3, 20)
    code = re.search(r"```python\n(.*?)```", (tmp_path / "folder" / "README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path / "folder")
    defined = {"images": pictures}
    exec(compile(code, "README.md", "exec"), defined)
    assert defined["classes"] == list("abcde")
    np.testing.assert_allclose(defined["probabilities"], model.probabilities(pictures), atol=1e-4)
    properties = defined["session"].get_modelmeta().custom_metadata_map
    values = {name: json.loads(value) for name, value in properties.items()}
    assert values["input"] == "uint8" and values["input_shape"] == ["batch", 20, 20, 3]
    assert values["interpolation"] == "bicubic" and values["crop_pct"] == 0.8
    np.testing.assert_allclose(values["mean"], np.array(model.spec.mean) / 255)


@pytest.mark.parametrize("family", FAMILIES)
def test_onnxruntime_computes_the_logits_of_a_trained_network(family, families, tmp_path, capsys):
    arguments = [str(families.workdir(family)), "--to=onnx", f"--output={tmp_path / 'out'}"]
    assert program.main(["export", *arguments]) == 0
    assert f"onnxruntime {onnxruntime.__version__}" in capsys.readouterr().out
    model = families.model(family)
    expected = model.logits(held_out_images())
    assert expected.std() > 0.1 and len(set(expected.argmax(axis=1))) > 3  # or agreement would say little
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    (actual,) = session.run(None, {session.get_inputs()[0].name: np.asarray(model.preprocess(held_out_images()))})
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
