"""Every command on a trained network of each family: the same predictions in files, figures and exports.

With timm: tests/parity/test_export.py. As ONNX: tests/onnx_export.
"""

import csv
import json

import numpy as np
import pytest
from jax import export as jax_export
from trained_families import FAMILIES, TEST_IMAGES, held_out_images

import patchnets
from patchnets.evaluate import __main__ as evaluate
from patchnets.export import __main__ as export
from patchnets.inference import verify
from patchnets.predict import __main__ as predict

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("family", FAMILIES)]
TIMM = ("mlp_mixer", "gmlp", "convmixer", "vit")
NPZ = ("mlp_mixer", "vit")


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_of_files_are_those_that_the_run_and_the_evaluation_counted(family, families, tmp_path):
    run = families.workdir(family)
    summary = json.loads((run / "summary.json").read_text())
    command = ["predict", run, *families.files, f"--output={tmp_path / 'predictions.csv'}", "--all"]
    assert predict.main(list(map(str, command))) == 0
    rows = read(tmp_path / "predictions.csv")
    correct = [row["label"] == path.parent.name for row, path in zip(rows, families.files, strict=True)]
    assert np.float32(np.mean(correct)) == np.float32(summary["test_accuracy"]) > 0.2  # twice what chance is

    assert evaluate.main(["evaluate", str(run), f"--output={tmp_path / 'own'}"]) == 0
    own = json.loads((tmp_path / "own" / "evaluation.json").read_text())
    assert own["accuracy"] == np.mean(correct) and own["loss"] == pytest.approx(summary["test_loss"], rel=1e-5)
    assert [row["prediction"] for row in read(tmp_path / "own" / "predictions.csv")] == [row["label"] for row in rows]
    data = f"--data={families.root / 'images'}"
    assert evaluate.main(["evaluate", str(run), data, f"--output={tmp_path / 'folder'}"]) == 0
    figures = json.loads((tmp_path / "folder" / "evaluation.json").read_text())
    assert figures["images"] == TEST_IMAGES
    assert (figures["accuracy"], figures["top5_accuracy"]) == (own["accuracy"], own["top5_accuracy"])

    model = families.model(family)
    columns = [[float(row[f"probability_of_{name}"]) for name in model.classes] for row in rows]
    np.testing.assert_allclose(columns, model.probabilities(held_out_images()), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("to", ["stablehlo", "npz", "timm"])
def test_exports_compute_what_the_run_does(family, to, families, tmp_path, capsys):
    run = families.workdir(family)
    status = export.main(["export", str(run), f"--to={to}", f"--output={tmp_path / 'out'}"])
    printed = capsys.readouterr()
    if (to == "npz" and family not in NPZ) or (to == "timm" and family not in TIMM):
        assert status == 2 and printed.err.count("\n") == 1 and not (tmp_path / "out").exists()
        return
    assert status == 0 and f"the {TEST_IMAGES} images of digits test" in printed.out
    model = families.model(family)
    assert json.loads((tmp_path / "out" / "model.json").read_text())["classes"] == list("0123456789")
    if to == "stablehlo":
        loaded = jax_export.deserialize(bytearray((tmp_path / "out" / "model.jax_export").read_bytes()))
        actual = np.asarray(loaded.call(np.asarray(model.preprocess(held_out_images()))))
        np.testing.assert_allclose(actual, model.logits(held_out_images()), rtol=1e-4, atol=1e-4)
        return
    again = patchnets.load(tmp_path / "out")
    assert verify.same_variables(again.variables, model.variables) and again.step == model.step
    for command, arguments in ((predict, families.files[:3]), (evaluate, [f"--output={tmp_path / 'evaluation'}"])):
        assert command.main(["command", str(tmp_path / "out"), *map(str, arguments)]) == 0
    figures = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert figures["accuracy"] == json.loads((run / "summary.json").read_text())["test_accuracy"]
