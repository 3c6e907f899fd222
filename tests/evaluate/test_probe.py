"""--probe: classifiers on features of a model, of data sets with other classes too."""

import json

import numpy as np
import pytest
from PIL import Image
from small_models import make_model

from patchnets.data.sources import digits
from patchnets.errors import RunError, UserError
from patchnets.evaluate import __main__ as program
from patchnets.evaluate import kept_features, probe
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


@pytest.mark.slow
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
    assert (content["resize"], content["splits"]["test"]) == (None, f"{folder} test")
    results = {(row["name"], row["settings"].get("shots")): row["accuracy"] for row in content["probes"]}
    assert set(results) == {("knn", None), ("fewshot", 1), ("fewshot", 5), ("fewshot", 10), ("linear", None)}
    assert min(results.values()) > 0.9
    assert "knn      top-1" in capsys.readouterr().out

    assert program.main([*arguments[:3], "--probe=svm"]) == 2
    assert "'svm' is unknown; expected knn, fewshot or linear" in capsys.readouterr().err
    assert program.main(["evaluate", str(tmp_path), f"--data={folder / 'train'}", "--probe=knn"]) == 2
    assert "there is no train/" in capsys.readouterr().err


@pytest.mark.slow
def test_kept_features_are_not_computed_again_and_serve_no_other_images(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("patchnets.inference.load.load", lambda *_: make_model("mlp_mixer"))
    kept = f"--features={tmp_path / 'kept'}"
    arguments = ["evaluate", str(tmp_path), f"--data={folder}", "--probe=fewshot", f"--output={tmp_path}"]
    assert program.main([*arguments, "--shots=2,3", kept]) == 0
    first = (tmp_path / probe.FILE_NAME).read_bytes()
    assert [row["settings"]["shots"] for row in json.loads(first)["probes"]] == [2, 3]
    (tmp_path / probe.FILE_NAME).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(probe, "compute_features", lambda *_: pytest.fail("they were kept"))
        assert program.main([*arguments, "--shots=2,3", kept]) == 0
    assert (tmp_path / probe.FILE_NAME).read_bytes() == first
    assert program.main([*arguments, "--shots=2,3"]) == 0
    assert (tmp_path / probe.FILE_NAME).read_bytes() == first

    capsys.readouterr()
    assert program.main([*arguments, kept, "--train_split=train[:6]"]) == 2
    assert "train.npz holds features of other images; remove it" in capsys.readouterr().err
    monkeypatch.setattr("patchnets.inference.load.load", lambda *_: make_model("mlp_mixer", crop_pct=0.5))
    assert program.main([*arguments, "--shots=2,3", kept]) == 2
    assert "holds features of other preprocessing" in capsys.readouterr().err
    assert program.main([*arguments[:3], kept]) == 2
    assert "--features goes with --probe" in capsys.readouterr().err
    assert program.main([*arguments[:3], "--seed=0"]) == 2
    assert "--seed goes with --probe" in capsys.readouterr().err


def test_kept_features_are_those_written_and_a_broken_file_is_a_line(tmp_path):
    features = probe.FeatureSet(np.eye(3, dtype=np.float32), np.array([0, 1, 1]), ("a.png: torn", "☃"))
    path, identity = tmp_path / "new" / "train.npz", {"weights": "1", "images": "2"}
    assert kept_features.read(path, identity) is None
    kept_features.write(path, features, identity)
    actual = kept_features.read(path, identity)
    np.testing.assert_array_equal(actual.features, features.features)
    assert (actual.labels.tolist(), actual.unreadable) == ([0, 1, 1], features.unreadable)
    with pytest.raises(UserError, match="features of other weights and images"):
        kept_features.read(path, {"weights": "3", "images": "4"})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RunError, match="holds no features of this command"):
        kept_features.read(path, identity)


def test_splits_of_a_data_set_are_chosen(tmp_path):
    spec, chosen = make_model("mlp_mixer").spec, {"train": "train[:100]", "val": "train[100:150]", "test": "test[:40]"}
    options = dict(folder=None, dataset="digits", data_dir=None)
    data = probe.select(spec, tmp_path, chosen=chosen, **options)
    assert (data.train.count, data.val.count, data.test.count) == (100, 50, 40)
    with pytest.raises(UserError, match="share 50 examples; set --train_split and --val_split apart"):
        probe.select(spec, tmp_path, chosen=chosen | {"train": "train[:200]"}, **options)


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


@pytest.mark.parametrize("chosen", [dict(train="test[:100]"), dict(train="train"), dict(test="train[:9]")])
def test_splits_of_a_run_that_share_images_with_chosen_ones_are_refused(tmp_path, chosen):
    splits = dict(train="train[:90%]", val="train[90%:]", test="test")
    values = dict(channels=1, mean=(0.0,), std=(1.0,))
    spec = make_model("mlp_mixer", dataset=dict(name="digits", splits=splits), **values).spec
    with pytest.raises(UserError, match=r"share [\d,]+ examples; set --\w+_split and --\w+_split apart$"):
        probe.select(spec, tmp_path, folder=None, dataset=None, data_dir=None, chosen=chosen)


def test_settings_of_the_classifiers_are_options(capsys):
    options = program.make_parser().parse_args(["run", "--probe=fewshot", "--shots=2,4", "--draws=3", "--k=9"])
    assert (options.shots, options.draws, options.k, options.temperature) == ((2, 4), 3, 9, None)
    assert program.main(["evaluate", "run", "--probe=fewshot", "--shots=2,0"]) == 2
    assert "--shots" in capsys.readouterr().err
    assert program.main(["evaluate", "run", "--probe=fewshot", "--seed=-1"]) == 2
    assert "--seed: expected a whole number from 0 to 2^31, got '-1'" in capsys.readouterr().err


@pytest.mark.slow
def test_shots_that_a_class_has_not_are_left_out_and_named():
    random = np.random.default_rng(0)
    both = probes.LabeledFeatures(random.standard_normal((8, 3)).astype(np.float32), np.arange(8) % 2)
    settings = probes.ProbeSettings(("fewshot",), shots=(1, 4, 5), draws=2)
    results, notes = probes.run_probes(settings, both, both)
    assert [result.metric for result in results] == ["fewshot_1", "fewshot_4"]
    assert notes == ["a class has 4 training images; no more shots than that"]
