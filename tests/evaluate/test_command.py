"""The command on small runs: the run's own figures again, files, pictures, notes and exit statuses."""

import csv
import json
import shutil

import numpy as np
import pytest
from isolated import run_isolated
from PIL import Image
from sklearn import metrics

import patchnets
from patchnets import train
from patchnets.config import common
from patchnets.data import sources
from patchnets.evaluate import __main__ as program
from patchnets.evaluate import report

MIXER = dict(name="mlp_mixer", patch_size=4, depth=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=32)
PICTURES = {"confusion.png", "class_accuracy.png", "calibration.png", "calibration_scaled.png", "mistakes.png"}
TABLES = {"evaluation.json", "per_class.csv", "confusion.csv", "predictions.csv"}
METRICS = ("accuracy", "top5_accuracy", "loss")


def train_small(path, dataset, **values):
    settings = dict(
        image_size=8, model=MIXER, batch_size=64, total_epochs=3.0, mesh=dict(data=1), tensorboard=False, plots=False
    )
    train.train(common.base(dataset=dataset, optimizer=dict(learning_rate=1e-2), **settings | values), path)
    return path


def evaluate(*arguments):
    return program.main(["evaluate", *map(str, arguments)])


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def figures_of(folder):
    return json.loads((folder / "evaluation.json").read_text())


def assert_as_in_summary(actual, run):
    summary = json.loads((run / "summary.json").read_text())
    for name in ("accuracy", "top5_accuracy"):  # to the last example
        assert np.float32(actual[name]) == np.float32(summary[f"test_{name}"])
    assert actual["loss"] == pytest.approx(summary["test_loss"], rel=1e-5)


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """A run on a part of the digits; read it, and write nothing outside its evaluation/."""
    dataset = dict(name="digits", train_split="train[:700]", val_split="train[700:800]", test_split="test[:130]")
    return train_small(tmp_path_factory.mktemp("digits") / "run", dataset)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Digits as PNG files of several sizes and shapes in train/, val/ and test/."""
    root = tmp_path_factory.mktemp("photos") / "digits"
    source = sources.open_source("digits")
    for split, name, count in (("train", "train", 400), ("val", "train", 480), ("test", "test", 90)):
        first = 400 if split == "val" else 0
        for i, (image, label) in enumerate(source.records(name).examples(range(first, count))):
            size = [(16, 16), (20, 12), (9, 8)][i % 3]
            path = root / split / f"digit {label}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).resize(size).save(path)
    return root


@pytest.mark.slow
def test_figures_files_and_pictures_of_the_runs_own_test_split(digits_run, capsys):
    assert evaluate(digits_run) == 0
    folder = digits_run / "evaluation" / "digits-test"
    result = figures_of(folder)
    assert_as_in_summary(result, digits_run)
    assert {path.name for path in folder.iterdir()} == TABLES | PICTURES
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]

    rows = read(folder / "predictions.csv")
    labels = [label for _, label in sources.open_source("digits").records("test").examples(range(130))]
    assert [int(row["label"]) for row in rows] == labels and [row["index"] for row in rows] == list(
        map(str, range(130))
    )
    predicted = [int(row["prediction"]) for row in rows]
    assert [int(row["correct"]) for row in rows] == [int(a == b) for a, b in zip(labels, predicted)]
    assert result["accuracy"] == metrics.accuracy_score(labels, predicted)
    expected = metrics.precision_recall_fscore_support(labels, predicted, zero_division=0)
    columns = [
        [float(row[name]) for row in read(folder / "per_class.csv")]
        for name in ("precision", "recall", "f1", "support")
    ]
    np.testing.assert_allclose(columns, expected, rtol=1e-5)
    counts = [[int(row[name]) for name in map(str, range(10))] for row in read(folder / "confusion.csv")]
    np.testing.assert_array_equal(counts, metrics.confusion_matrix(labels, predicted))
    assert result["calibration"]["fitted_images"] == 100 and result["calibration"]["scaled_loss"] > 0

    printed = capsys.readouterr()
    accuracy = f"accuracy {result['accuracy']:.2%}".replace("%", " %")
    assert accuracy in printed.out and "macro" in printed.out and str(folder) in printed.out
    assert "fitted on the run's validation split (100 images)" in printed.out and printed.err == ""


@pytest.mark.slow
def test_the_python_interface_has_the_same_figures(digits_run):
    model = patchnets.load(digits_run)
    images, labels = zip(*sources.open_source("digits").records("test").examples(range(130)))
    result = model.evaluate((np.stack(images), labels), batch_size=50)
    assert_as_in_summary({name: getattr(result, name) for name in METRICS}, digits_run)
    by_name = model.evaluate((images, list(map(str, labels))), val=(images[:50], labels[:50]))
    assert by_name.accuracy == result.accuracy and by_name.calibration.fitted_images == 50
    probabilities = model.probabilities(images)
    np.testing.assert_allclose(result.confidence, probabilities.max(axis=-1), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["on_device", "streaming"])
def test_a_copied_run_has_the_same_figures_on_a_folder(loader, photos, tmp_path, capsys):
    """After the work directory was copied, its data set moved and its configuration removed."""
    own = shutil.copytree(photos, tmp_path / "own")
    dataset = dict(name="folder", path=str(own), loader=loader, num_workers=0)
    streaming = dict(loss="sigmoid", ema_decay=0.5) if loader == "streaming" else {}
    run = train_small(tmp_path / "run", dataset, total_epochs=2.0, crop_pct=0.875, **streaming)
    assert evaluate(run) == 0  # before, with the data where they were
    first = figures_of(run / "evaluation" / "own-test")
    assert_as_in_summary(first, run)
    assert read(run / "evaluation" / "own-test" / "predictions.csv")[0]["filename"].startswith("test/digit ")

    copied = shutil.copytree(
        run, tmp_path / "elsewhere" / "copy", ignore=shutil.ignore_patterns("evaluation", "data.json")
    )
    (copied / "config.json").unlink()
    shutil.rmtree(own)
    capsys.readouterr()
    assert evaluate(copied, f"--data={photos / 'test'}", f"--output={tmp_path / 'out'}") == 0
    second = figures_of(tmp_path / "out")
    assert_as_in_summary(second, run)
    assert second["calibration"] == pytest.approx(first["calibration"], rel=1e-4)  # fitted on val/ beside test/
    assert f"fitted on {photos / 'val'} (80 images)" in capsys.readouterr().out

    assert evaluate(copied) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "which folder they are in" in error and "--data=FOLDER" in error
    assert not (copied / "evaluation").exists()


@pytest.mark.slow
def test_classes_that_either_side_lacks_are_named_and_broken_images_make_status_1(digits_run, tmp_path, capsys):
    source = sources.open_source("digits")
    for i, (image, label) in enumerate(source.records("test").examples(range(40))):
        if label in (8, 9):
            continue
        folder = tmp_path / "images" / ("zero" if label == 0 else str(label))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / f"{i}.png")
    broken = next((tmp_path / "images" / "3").iterdir())
    broken.write_bytes(b"\x89PNG broken")
    out = tmp_path / "deep" / "out"
    assert evaluate(digits_run, f"--data={tmp_path / 'images'}", f"--output={out}") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and all(line.startswith("patchnets.evaluate: ") for line in lines)
    zeros = len(list((tmp_path / "images" / "zero").iterdir()))
    assert f"the model does not have class 'zero'; their {zeros} images are left out" in lines[0]
    assert "there are no images of 3 classes '0', '8', '9' of the model" in lines[1]
    assert str(broken) in lines[2] and "1 images could not be read" in lines[3]
    result, rows = figures_of(out), read(out / "predictions.csv")
    assert result["classes_not_in_model"] == {"zero": zeros} and result["classes_without_images"] == ["0", "8", "9"]
    assert len(result["unreadable"]) == 1 and result["macro"]["classes"] == 7
    files = {f"{path.parent.name}/{path.name}" for path in (tmp_path / "images").rglob("*.png")}
    assert {row["filename"] for row in rows} == {
        name for name in files if not name.startswith("zero/") and not name.endswith(f"3/{broken.name}")
    }
    for row in rows:  # the digits of the test split again
        assert row["label"] == row["filename"].split("/")[0]


@pytest.mark.slow
def test_a_folder_is_evaluated_without_tensorflow_tfds_and_the_configuration(digits_run, photos, tmp_path):
    """By a model that was trained on a TFDS data set, as far as its model.json tells."""
    copied = shutil.copytree(digits_run, tmp_path / "copy", ignore=shutil.ignore_patterns("config.json", "evaluation"))
    content = json.loads((copied / "model.json").read_text())
    content["classes"] = [f"digit {name}" for name in content["classes"]]
    content["dataset"]["name"] = "cifar10"
    (copied / "model.json").write_text(json.dumps(content))
    done = run_isolated("evaluate", copied, f"--data={photos / 'val'}", f"--output={tmp_path / 'out'}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "these are validation images themselves" in done.stdout
    assert figures_of(tmp_path / "out")["images"] == 80
    data = shutil.copytree(photos / "test", tmp_path / "images")
    done = run_isolated("evaluate", copied, f"--data={data}", f"--output={tmp_path / 'out'}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "no temperature was fitted: data set 'cifar10' needs tensorflow-datasets" in done.stdout


@pytest.mark.slow
def test_files_of_the_user_stay_and_those_of_an_earlier_evaluation_go(digits_run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "mistakes.png").write_bytes(b"of an earlier evaluation")
    assert evaluate(digits_run, f"--output={out}", "--split=val", "--checkpoint=latest", "--batch_size=7") == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "calibration_scaled.png").exists()
    assert "validation images themselves" in figures_of(out)["no_temperature_because"]
    assert not list(tmp_path.glob(".out*"))
    with Image.open(out / "mistakes.png") as picture:
        assert picture.width > 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data=nowhere"], "there is no folder nowhere"),
        (["--data=a", "--dataset=digits"], "not allowed with argument --data"),
        (["--data=a", "--split=test"], "--data names one split"),
        (["--dataset=folder"], "--data=FOLDER"),
        (["--split=nope"], "there is no 'nope'"),
        (["--checkpoint=first"], "--checkpoint: expected best, latest or a step, got 'first'"),
        (["--checkpoint=12345"], "there is no checkpoint of step 12345"),
        (["--batch_size=0"], "--batch_size"),
    ],
)
def test_mistakes_cost_one_line(arguments, words, digits_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert evaluate(digits_run, *arguments, "--output=out") == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and words in printed.err
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_model_costs_one_line(tmp_path, capsys):
    assert evaluate(tmp_path) == 2
    assert evaluate() == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_help_names_every_option(capsys):
    assert evaluate("--help") == 0
    text = capsys.readouterr().out
    for option in ("--data", "--dataset", "--split", "--data_dir", "--output", "--checkpoint", "--batch_size"):
        assert option in text


def test_an_evaluation_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), report.output_folder(tmp_path / "a" / "b") as partial:
        (partial / "evaluation.json").write_text("{}")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_files_are_moved_when_all_are_written(tmp_path):
    with report.output_folder(tmp_path / "a" / "b") as partial:
        (partial / "per_class.csv").write_text("1")
        assert not (tmp_path / "a" / "b").exists()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["per_class.csv"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
