"""--probe: classifiers on features of a model, of data sets with other classes too."""

import json

import numpy as np
import pytest
from PIL import Image
from small_models import make_model

from patchnets.data.sources import digits
from patchnets.errors import UserError
from patchnets.evaluate import __main__ as program
from patchnets.evaluate import probe
from patchnets.inference import labeled, probes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Dark and bright images, of which a random network can tell which is which."""
    root, random = tmp_path_factory.mktemp("shades"), np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 5)):
        for name, level in (("dark", 40), ("bright", 200)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(level, level + 50, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def test_features_are_the_inputs_of_the_head_in_the_order_of_the_images(folder):
    model = make_model("mlp_mixer")
    data = labeled.from_folder(folder / "test")
    actual = probe.compute_features(model, data, ("dark", "bright"), batch_size=4)
    examples = list(data.examples())
    np.testing.assert_allclose(actual.features, model.features([image for _, image, _ in examples]), atol=1e-5)
    assert actual.labels.tolist() == [("dark", "bright").index(label) for *_, label in examples]


@pytest.mark.slow
def test_the_command_fits_and_tests_on_folders_of_any_classes(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("patchnets.inference.load.load", lambda *_: make_model("mlp_mixer"))
    arguments = ["evaluate", str(tmp_path), f"--data={folder}", "--probe=knn,fewshot,linear", f"--output={tmp_path}"]
    assert program.main(arguments) == 0
    content = json.loads((tmp_path / probe.FILE_NAME).read_text())
    results = {(row["name"], row["settings"].get("shots")): row["accuracy"] for row in content["probes"]}
    assert set(results) == {("knn", None), ("fewshot", 1), ("fewshot", 5), ("fewshot", 10), ("linear", None)}
    assert min(results.values()) > 0.9
    assert "knn      top-1" in capsys.readouterr().out

    assert program.main([*arguments[:3], "--probe=svm"]) == 2
    assert "'svm' is unknown; expected knn, fewshot or linear" in capsys.readouterr().err
    assert program.main(["evaluate", str(tmp_path), f"--data={folder / 'train'}", "--probe=knn"]) == 2
    assert "there is no train/" in capsys.readouterr().err


def test_a_data_set_without_validation_keeps_a_tenth_of_train_for_it(tmp_path):
    spec = make_model("mlp_mixer").spec
    data = probe.select(spec, tmp_path, folder=None, dataset="digits", data_dir=None)
    assert data.train.count + data.val.count == len(digits.Digits().records("train"))
    assert 0.09 < data.val.count / (data.train.count + data.val.count) < 0.11


def test_only_a_linear_probe_needs_a_validation_split(tmp_path):
    splits = dict(train="train", test="test")
    spec = make_model("mlp_mixer", dataset=dict(name="digits", splits=splits), channels=1, mean=(0.0,), std=(1.0,)).spec
    options = dict(folder=None, dataset=None, data_dir=None)
    data = probe.select(spec, tmp_path, **options, with_val=False)
    assert data.val is None and data.train.count == len(digits.Digits().records("train"))
    with pytest.raises(UserError, match="has no val split"):
        probe.select(spec, tmp_path, **options)


def test_settings_of_the_classifiers_are_options(capsys):
    options = program.make_parser().parse_args(["run", "--probe=fewshot", "--shots=2,4", "--draws=3", "--k=9"])
    assert (options.shots, options.draws, options.k, options.temperature) == ((2, 4), 3, 9, 0.07)
    assert program.main(["evaluate", "run", "--probe=fewshot", "--shots=2,0"]) == 2
    assert "--shots" in capsys.readouterr().err


def test_shots_that_a_class_has_not_are_left_out_and_named():
    random = np.random.default_rng(0)
    both = probes.LabeledFeatures(random.standard_normal((8, 3)).astype(np.float32), np.arange(8) % 2)
    settings = probes.ProbeSettings(("fewshot",), shots=(1, 4, 5), draws=2)
    results, notes = probes.run_probes(settings, both, both)
    assert [result.metric for result in results] == ["fewshot_1", "fewshot_4"]
    assert notes == ["a class has 4 training images; no more shots than that"]
