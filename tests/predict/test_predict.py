"""The command: predictions of images against those of the model, and what it says of images it cannot read."""

import argparse
import csv
import io
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from isolated import run_isolated
from PIL import Image
from sklearn import metrics

import patchnets
from patchnets import runtime, train
from patchnets.config import common
from patchnets.data.sources.digits import Digits
from patchnets.inference import images as images_lib
from patchnets.predict import __main__ as program
from patchnets.predict import stream
from patchnets.predict.writers import Layout

pytestmark = pytest.mark.slow  # each needs a trained run


def predict(*arguments):
    return program.main(["predict", *map(str, arguments)])


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_image_is_a_line(trained, capsys):
    paths = [trained.images / "digit_00.png", trained.images / "more" / "digit_01.png"]
    assert predict(trained.workdir, *paths, "--topk=2") == 0
    printed = capsys.readouterr()
    expected = [
        f"{path}: " + ", ".join(f"{label} {probability:.2%}" for label, probability in top)
        for path, top in zip(paths, trained.model.predict(paths, topk=2))
    ]
    assert printed.out.splitlines() == expected and printed.err == ""


def test_a_folder_into_a_table(trained, tmp_path, capsys):
    table = tmp_path / "new" / "table.csv"
    assert predict(trained.workdir, trained.images, f"--output={table}", "--all", "--batch_size=16") == 0
    assert capsys.readouterr().out == f"20 images: {table}\n"
    rows = rows_of(table)
    files = [row["filename"] for row in rows]
    assert sorted(files) == sorted(map(str, trained.images.rglob("*.png"))) and len(files) == 20
    expected = trained.model.probabilities(files)
    actual = [[float(row[f"probability_of_{name}"]) for name in trained.model.classes] for row in rows]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)
    assert [row["label"] for row in rows] == [trained.model.classes[i] for i in expected.argmax(axis=1)]
    ranked = [[float(row[name]) for name in ("probability", "probability_2", "probability_5")] for row in rows]
    np.testing.assert_allclose(ranked, np.sort(expected)[:, [-1, -2, -5]], rtol=1e-5)
    assert {row["error"] for row in rows} == {""}


def test_lines_of_json_and_arrays_agree(trained, tmp_path):
    lines, arrays = tmp_path / "out.jsonl", tmp_path / "out.npz"
    assert predict(trained.workdir, trained.images, f"--output={lines}", "--all", "--topk=99") == 0
    assert predict(trained.workdir, trained.images, f"--output={arrays}", "--features") == 0
    read = [json.loads(line) for line in lines.read_text().splitlines()]
    with np.load(arrays, allow_pickle=False) as saved:
        assert saved["filenames"].tolist() == [row["filename"] for row in read]
        assert saved["classes"].tolist() == list(trained.model.classes)
        np.testing.assert_allclose(saved["probabilities"], [list(row["probabilities"].values()) for row in read])
        expected = trained.model.features(saved["filenames"].tolist())
        np.testing.assert_allclose(saved["features"], expected, rtol=1e-5, atol=1e-6)
    assert all(len(row["predictions"]) == len(trained.model.classes) for row in read)


def test_predictions_of_the_test_split_are_those_that_training_counted(trained, tmp_path):
    """From files, through the command, to the last example."""
    examples = Digits().records("test").examples(range(Digits().sizes["test"]))
    (tmp_path / "test").mkdir()
    for number, (image, _) in enumerate(examples):
        Image.fromarray(image[..., 0]).save(tmp_path / "test" / f"{number:04d}.png")
    assert predict(trained.workdir, tmp_path / "test", f"--output={tmp_path / 'out.csv'}") == 0
    predicted = [int(row["label"]) for row in rows_of(tmp_path / "out.csv")]
    accuracy = metrics.accuracy_score([label for _, label in examples], predicted)
    summary = json.loads((trained.workdir / "summary.json").read_text())
    assert accuracy == pytest.approx(summary["test_accuracy"], abs=1e-6)


@pytest.fixture
def mixed(trained, tmp_path):
    """A folder of two images, with a file between them that is none."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    shutil.copy(trained.images / "digit_00.png", folder / "a.png")
    (folder / "b.png").write_bytes(b"no image")
    shutil.copy(trained.images / "digit_02.png", folder / "c.png")
    return folder


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_predicted(trained, mixed, tmp_path, capsys):
    table = tmp_path / "table.csv"
    assert predict(trained.workdir, mixed, f"--output={table}") == 1
    rows, printed = rows_of(table), capsys.readouterr()
    reason = f"{mixed / 'b.png'} cannot be decoded (Pillow does not know its format); repair or remove it"
    assert [row["error"] for row in rows] == ["", reason, ""] and rows[1]["label"] == ""
    assert [row["label"] for row in rows][::2] == [
        top[0][0] for top in trained.model.predict([mixed / "a.png", mixed / "c.png"])
    ]
    assert printed.err.splitlines() == [
        f"patchnets.predict: {reason}",
        "patchnets.predict: 1 of 3 images could not be read",
    ]
    assert predict(trained.workdir, mixed) == 1
    assert capsys.readouterr().out.count("\n") == 2
    assert predict(trained.workdir, mixed / "b.png", f"--output={tmp_path / 'out.npz'}") == 1
    with np.load(tmp_path / "out.npz", allow_pickle=False) as saved:
        assert np.isnan(saved["probabilities"]).all() and saved["errors"].tolist() == [reason]


def test_strict_stops_at_the_first_and_writes_nothing(trained, mixed, tmp_path, capsys):
    table = tmp_path / "table.csv"
    assert predict(trained.workdir, mixed, f"--output={table}", "--strict") == 1
    printed = capsys.readouterr()
    assert not table.exists() and printed.out == ""
    assert printed.err.count("\n") == 1 and "b.png cannot be decoded" in printed.err


def test_classes_above_a_threshold_are_marked(trained, tmp_path, capsys):
    path = trained.images / "digit_00.png"
    assert predict(trained.workdir, path, "--topk=3", "--threshold=0.2") == 0
    (top,) = trained.model.predict(path, topk=3)
    expected = ", ".join(f"{label}{'*' if p >= 0.2 else ''} {p:.2%}" for label, p in top)
    assert capsys.readouterr().out == f"{path}: {expected}\n"


def test_a_network_of_several_labels_lists_those_above_one_half(trained, tmp_path):
    workdir, table = tmp_path / "run", tmp_path / "table.csv"
    shutil.copytree(trained.workdir, workdir)
    spec = json.loads((workdir / "model.json").read_text())
    (workdir / "model.json").write_text(json.dumps(spec | {"loss": "sigmoid"}))
    assert predict(workdir, trained.images, f"--output={table}") == 0
    rows = rows_of(table)
    logits = trained.model.logits([row["filename"] for row in rows])
    for row, values in zip(rows, logits, strict=True):
        assert set(row["labels"].split(";")) - {""} == {trained.model.classes[i] for i in np.flatnonzero(values >= 0)}
        assert float(row["probability"]) == pytest.approx(1 / (1 + np.exp(-values.max())), rel=1e-5)


def test_a_list_on_standard_input(trained, monkeypatch, capsys):
    paths = [trained.images / "digit_00.png", trained.images / "gone.png"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{path}\n" for path in paths)))
    assert predict(trained.workdir, "-") == 1
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{paths[0]}: ") and printed.out.count("\n") == 1
    assert f"{paths[1]} cannot be decoded" in printed.err
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert predict(trained.workdir, "-") == 2
    assert capsys.readouterr().err == "patchnets.predict: there are no paths of images on standard input\n"


def test_images_are_read_as_they_are_predicted(trained, monkeypatch):
    """Of a list without end, only so many are read ahead as there are threads to decode them."""
    taken = itertools.count()

    class Endless:
        def __iter__(self):
            for number in taken:
                yield f"{trained.images / 'digit_00.png'}\n" if number >= 0 else ""

    monkeypatch.setattr(sys, "stdin", Endless())
    options = argparse.Namespace(
        images=["-"], batch_size=8, features=False, explain=None, strict=False, output=None, topk=5
    )
    listed = stream.predictions(trained.model, options, Layout(trained.model.classes))
    assert sum(1 for _ in itertools.islice(listed, 40)) == 40
    listed.close()
    ahead = images_lib.READ_AHEAD * runtime.cores()
    assert next(taken) <= 40 + ahead + 8 + 1


def test_names_that_are_no_text_are_printed_by_their_codes(trained, tmp_path, capsys):
    name = os.fsencode(tmp_path) + b"/\xff\n.png"
    shutil.copy(trained.images / "digit_00.png", name)
    assert predict(trained.workdir, tmp_path) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/\\udcff\\n.png: ")


def test_nothing_that_is_printed_has_control_characters(trained, tmp_path, monkeypatch, capsys):
    """Neither names of classes nor of files, on standard output or as an error, nor in pictures."""
    workdir, images = tmp_path / "run", tmp_path / "images"
    shutil.copytree(trained.workdir, workdir)
    images.mkdir()
    spec = json.loads((workdir / "model.json").read_text())
    spec["classes"] = [f"\x1b[31m{name}\n\udcff" for name in spec["classes"]]
    (workdir / "model.json").write_text(json.dumps(spec))
    shutil.copy(trained.images / "digit_00.png", os.fsencode(images) + b"/\x1b[2J\xff.png")
    (images / "\x1b]0;.png").write_bytes(b"no image")
    assert predict(workdir, images, "--topk=1", f"--explain={tmp_path / 'explained'}") == 1
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{images}/\\x1b[2J\\udcff.png: \\x1b[31m") and printed.out.count("\n") == 1
    assert predict(workdir, images, "--strict") == 1
    for text in (printed.out, printed.err, capsys.readouterr().err):
        assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}"], "the following arguments are required: IMAGES"),
        (["{run}", "gone.png"], "gone.png is neither a file nor a folder"),
        (["gone", "{image}"], "there is no gone; expected a work directory"),
        (["{run}", "{image}", "--output=out.txt"], "expected the name of a .csv, .jsonl or .npz file, got 'out.txt'"),
        (["{run}", "{image}", "--output={folder}"], "folder.csv is a folder; name a file"),
        (["{run}", "{image}", "--features"], "--features are written to .npz files"),
        (["{run}", "{image}", "--all", "--output=out.npz"], "--all is for .csv and .jsonl files"),
        (["{run}", "{image}", "--checkpoint=last"], "--checkpoint: expected best, latest or a step, got 'last'"),
        (["{run}", "{image}", "--checkpoint=7"], "there is no checkpoint of step 7"),
        (["{run}", "{image}", "--threshold=50"], "--threshold: expected a number from 0 to 1, got '50'"),
        (["{run}", "{image}", "--topk=0"], "--topk: expected a whole number above 0"),
        (["{run}", "{image}", "--explain={image}"], "is a file; name a folder"),
    ],
)
def test_mistakes_cost_one_line(trained, arguments, words, tmp_path, capsys):
    image, folder = trained.images / "digit_00.png", tmp_path / "folder.csv"
    folder.mkdir()
    assert predict(*(text.format(run=trained.workdir, image=image, folder=folder) for text in arguments)) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and words in printed.err


def test_explanations_are_pictures_named_after_their_images(trained, tmp_path, capsys):
    folder, table = tmp_path / "explained", tmp_path / "out.jsonl"
    images = tmp_path / "images"
    for name in ("a/digit.png", "b/digit.png", "digit-2.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(trained.images / "digit_00.png", images / name)
    assert predict(trained.workdir, images, f"--explain={folder}", f"--output={table}") == 0
    assert {path.name for path in folder.iterdir()} == {"digit.png", "digit-2.png", "digit-3.png"}
    for line in table.read_text().splitlines():
        with Image.open(json.loads(line)["explanation"]) as picture:
            assert picture.format == "PNG" and picture.width > 2 * 256 and picture.height > 256
    capsys.readouterr()
    assert predict(trained.workdir, images, f"--explain={images / 'a'}") == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first.endswith(f" ({images / 'a' / 'digit-2.png'})")
    assert len(others) == 1, "what the folder of explanations holds is not searched"


def test_explanations_overwrite_nothing(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("x/a.png", "b/a.png", "x/Photo.png", "x/" + 60 * "\N{GRINNING FACE}" + ".png"):
        pathlib.Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(trained.images / "digit_00.png", name)
    originals = {pathlib.Path("b/a.png"), pathlib.Path("b/PHOTO.PNG"), pathlib.Path("b/a-3.png")}
    pathlib.Path("b/PHOTO.PNG").write_bytes(b"another")
    pathlib.Path("b/a-3.png").symlink_to("nowhere")
    before = {path: path.read_bytes() for path in originals if path.exists()}
    long = f"x/{60 * chr(0x1F600)}.png"
    assert predict(trained.workdir, "x/a.png", "b/a.png", "x/Photo.png", long, "--explain=b") == 0
    assert {path: path.read_bytes() for path in before} == before
    assert os.readlink("b/a-3.png") == "nowhere"
    expected = ["b/a-2.png", "b/a-4.png", "b/Photo-2.png", f"b/{50 * chr(0x1F600)}.png"]
    assert set(pathlib.Path("b").iterdir()) == originals | set(map(pathlib.Path, expected))
    lines = capsys.readouterr().out.splitlines()
    assert [line.rsplit(" (")[1].removesuffix(")") for line in lines] == expected


def test_files_that_are_no_images_and_folders_that_cannot_be_searched_are_told(trained, mixed, monkeypatch, capsys):
    for number in range(10):
        (mixed / f"{number}.heic").write_bytes(b"")
    (mixed / "b.png").unlink()
    assert predict(trained.workdir, mixed) == 0
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 2
    assert printed.err == "patchnets.predict: 10 files are no images that Pillow reads (.heic 10)\n"
    (mixed / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert predict(trained.workdir, mixed) == 1
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 2
    first, _, last = printed.err.splitlines()
    assert first == f"patchnets.predict: {mixed / 'closed'} cannot be searched (Permission denied)"
    assert last == "patchnets.predict: 1 of 3 images and folders could not be read"


def test_the_command_imports_nothing_that_it_does_not_use(trained):
    """TensorFlow, TFDS, Grain, Matplotlib, scikit-learn and the like take seconds to import."""
    image = trained.images / "digit_00.png"
    code = (
        "import sys\nfrom patchnets.predict import __main__ as program\n"
        f"status = program.main(['predict', {str(trained.workdir)!r}, {str(image)!r}])\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}))\nsys.exit(status)\n"
    )
    root = pathlib.Path(patchnets.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root), "PATCHNETS_HUGE_PAGES": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    line, imported = done.stdout.splitlines()
    assert line.startswith(f"{image}: ")
    for name in ("tensorflow", "tensorflow_datasets", "grain", "matplotlib", "sklearn", "pandas", "cv2", "gradio"):
        assert f"'{name}'" not in imported


def test_a_copied_work_directory_predicts_without_its_data_tensorflow_and_the_configuration(tmp_path):
    """In a process of its own, from another folder; tests/evaluate has the like for an evaluation."""
    for i, (image, label) in enumerate(Digits().records("test").examples(range(40))):
        folder = tmp_path / "data" / "train" / f"digit {label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).resize((16, 12)).save(folder / f"{i}.png")
    config = common.base(
        dataset=dict(name="folder", path=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache")),
        image_size=8,
        model=dict(name="mlp_mixer", patch_size=4, depth=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=32),
        batch_size=8,
        total_steps=10,
        mesh=dict(data=1),
        tensorboard=False,
        plots=False,
    )
    train.train(config, tmp_path / "run")
    images = shutil.copytree(folder, tmp_path / "images")
    expected = patchnets.load(tmp_path / "run").probabilities(sorted(images.iterdir()))
    copied = shutil.copytree(tmp_path / "run", tmp_path / "elsewhere" / "copy")
    for gone in ("run", "data", "cache"):
        shutil.rmtree(tmp_path / gone)
    for file in ("config.json", "data.json", "metrics.jsonl", "summary.json", "parameters.txt"):
        (copied / file).unlink()
    output = tmp_path / "out.npz"
    done = run_isolated("predict", copied, images, f"--output={output}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    with np.load(output, allow_pickle=False) as arrays:
        np.testing.assert_allclose(arrays["probabilities"], expected, rtol=1e-5, atol=1e-7)
        assert set(arrays["classes"]) == {f"digit {i}" for i in range(10)}
