"""Exports: what is written is what the model computes, or nothing is; and patchnets.load reads weights again.

With timm and PyTorch: tests/parity/test_export.py. With jax2onnx and onnxruntime: tests/onnx_export.
"""

import dataclasses
import io
import json
import re
import shutil

import jax
import numpy as np
import pytest
from jax import export as jax_export
from PIL import Image
from small_models import NETWORKS, images, make_model

import patchnets
from patchnets import train
from patchnets.config import common, flatten
from patchnets.errors import RunError, UserError
from patchnets.export import __main__ as program
from patchnets.inference import metadata, programs, verify
from patchnets.inference.images import decode_one
from patchnets.run.workdir import Workdir
from patchnets.weights import files


def load_program(folder):
    return jax_export.deserialize(bytearray((folder / "model.jax_export").read_bytes()))


def same(first, second):
    return verify.same_variables(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_programs_of_all_networks_give_the_logits_of_the_network_for_any_batch(name, tmp_path):
    model = make_model(name)
    report = model.export(tmp_path / "program", "stablehlo")
    assert report.comparison.difference < 1e-5 and report.comparison.agree == report.comparison.count == 32
    loaded = load_program(tmp_path / "program")
    assert loaded.platforms == ("cpu", "cuda", "tpu")
    for batch in (1, 5):
        inputs = np.asarray(model.preprocess(images(batch)))
        expected = np.asarray(model.network.apply(model.variables, inputs, train=False))
        assert expected.std() > 0.1  # or agreement would say little
        np.testing.assert_allclose(loaded.call(inputs), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_program_of_uint8_images_crops_resizes_and_normalizes_and_one_of_probabilities_has_softmax(tmp_path):
    model = make_model("mlp_mixer", decoded_size=20, crop_pct=0.9)
    report = model.export(tmp_path / "program", "stablehlo", inputs="uint8", outputs="probabilities")
    assert report.comparison.outputs == "probabilities" and report.comparison.limit < 1e-4
    assert report.comparison.logits.holds and report.comparison.logits.limit >= 1e-4
    assert re.search(r"probabilities differ by at most .*, its logits differ by at most", str(report))
    assert report.files == ("README.md", "export.json", "model.jax_export", "model.json")
    decoded = images(3, 20)
    actual = np.asarray(load_program(tmp_path / "program").call(decoded))
    np.testing.assert_allclose(actual, model.probabilities(decoded), atol=1e-5)
    np.testing.assert_allclose(actual.sum(axis=1), 1, atol=1e-5)
    text = (tmp_path / "program" / "README.md").read_text()
    assert "(batch, 20, 20, 3)" in text and "0.9 of that square's side" in text


def test_a_program_says_until_when_it_loads(tmp_path):
    make_model("keras_mixer").export(tmp_path / "program", "stablehlo", verified=False)
    text = (tmp_path / "program" / "README.md").read_text()
    assert re.search(r"exported on \d{4}-\d\d-\d\d, it loads until \d{4}-\d\d-\d\d", text)
    assert "--verify=off" in text


@pytest.mark.parametrize(("name", "to"), [("mlp_mixer", "npz"), ("mlp_mixer", "timm"), ("vit", "npz"), ("vit", "timm")])
@pytest.mark.parametrize("scan", [False, True])
def test_exported_weights_are_loaded_again_to_the_last_bit(name, to, scan, tmp_path):
    model = make_model(name, fields=dict(scan=scan))
    report = model.export(tmp_path / "folder", to, verified=False)
    assert {"model.json", "README.md"} < set(report.files)
    loaded = patchnets.load(tmp_path / "folder")
    assert loaded.spec == model.spec and loaded.classes == tuple("abcde")
    assert same(loaded.variables, model.variables)


@pytest.mark.parametrize("name", ["gmlp", "convmixer"])
def test_other_families_are_loaded_again_from_timm_s_layout(name, tmp_path):
    model = make_model(name)
    model.export(tmp_path / "folder", "timm", verified=False)
    assert same(patchnets.load(tmp_path / "folder").variables, model.variables)


@pytest.mark.slow
def test_what_is_loaded_again_predicts_the_same_and_can_be_exported_again(tmp_path):
    model = make_model("mlp_mixer", fields=dict(gelu="tanh"))
    report = model.export(tmp_path / "folder", "npz")
    assert report.comparison.difference == 0 and "32 random images" in report.comparison.images
    loaded = patchnets.load(tmp_path / "folder")
    np.testing.assert_array_equal(loaded.probabilities(images(3)), model.probabilities(images(3)))
    loaded.export(tmp_path / "again", "npz")
    first, second = ((tmp_path / name / "model.npz").read_bytes() for name in ("folder", "again"))
    assert np.load(io.BytesIO(first)).files == np.load(io.BytesIO(second)).files
    assert same(patchnets.load(tmp_path / "again").variables, model.variables)


def test_config_json_has_preprocessing_classes_and_sizes(tmp_path):
    make_model("vit", decoded_size=18, decoded_crop_pct=0.9, crop_pct=8 / 9).export(
        tmp_path / "a", "timm", verified=False
    )
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["label_names"] == list("abcde") and config["num_classes"] == 5
    cfg = config["pretrained_cfg"]
    assert cfg["input_size"] == [3, 16, 16] and cfg["interpolation"] == "bicubic"
    np.testing.assert_allclose(cfg["mean"], np.array([110, 120, 130]) / 255)
    np.testing.assert_allclose(cfg["std"], np.array([60, 65, 70]) / 255)
    assert cfg["crop_pct"] == pytest.approx(0.8)
    make_model("vit", decoded_size=8).export(tmp_path / "b", "timm", verified=False)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["pretrained_cfg"]["interpolation"] == "bilinear"  # 8 px are resized by the device


@pytest.mark.slow
def test_logits_are_compared_where_probabilities_are_too_near_to_one_to_differ(tmp_path, monkeypatch):
    model = make_model("keras_mixer")
    params = model.variables["params"]
    head = params["head"]
    sure = {**head, "bias": head["bias"] + np.array([60, 0, 0, 0, 0], np.float32)}
    model = model.with_variables({**model.variables, "params": {**params, "head": sure}})
    other = {**sure, "bias": sure["bias"] + np.array([0, 1, 0, 0, 0], np.float32)}
    write = programs.to_jax_export

    def write_other(spec, variables, *options):
        return write(spec, {**variables, "params": {**params, "head": other}}, *options)

    monkeypatch.setattr(programs, "to_jax_export", write_other)
    with pytest.raises(RunError, match=r": logits differ by at most 1\.0e\+00"):
        model.export(tmp_path / "program", "stablehlo", outputs="probabilities")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_export_that_computes_something_else_is_removed(tmp_path, monkeypatch):
    model = make_model("keras_mixer")
    other = jax.tree.map(lambda leaf: leaf * 1.01, model.variables)
    write = programs.to_jax_export
    monkeypatch.setattr(programs, "to_jax_export", lambda spec, variables, *options: write(spec, other, *options))
    with pytest.raises(RunError, match=r"does not agree .* top class agrees on \d+ of 32") as caught:
        model.export(tmp_path / "parent" / "program", "stablehlo")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_read_back_as_others_are_removed(tmp_path, monkeypatch):
    write = files.write_npz
    monkeypatch.setattr(
        files, "write_npz", lambda path, arrays: write(path, {n: np.nextafter(a, 9) for n, a in arrays.items()})
    )
    with pytest.raises(RunError, match="others when read again"):
        make_model("mlp_mixer").export(tmp_path / "folder", "npz")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_removes_only_folders_that_it_made(tmp_path, monkeypatch):
    model = make_model("mlp_mixer")

    def fail(path, arrays):
        (path.parent.parent.parent / "mine.txt").write_text("mine")
        raise RunError("the disk is full")

    monkeypatch.setattr(files, "write_npz", fail)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "export").mkdir()
    with pytest.raises(RunError, match="the disk is full"):
        model.export(tmp_path / "run" / "export" / "npz", "npz")
    assert list((tmp_path / "run" / "export").iterdir()) == []
    with pytest.raises(RunError, match="the disk is full"):
        model.export(tmp_path / "a" / "b" / "npz", "npz")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(("exif", "background"), [(True, "white"), (False, "none")])
def test_exports_say_how_images_are_turned_and_what_lies_behind_them(exif, background, tmp_path):
    model = make_model("vit", exif_orientation=exif, background=background)
    written = metadata.program_metadata(model.spec, "float", "logits")
    model.export(tmp_path / "folder", "timm", verified=False)
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    for values in (written, config):
        assert (values["exif_orientation"], values["background"]) == (exif, background)
    text = (tmp_path / "folder" / "README.md").read_text()
    assert f"| exif_orientation | {exif} |" in text and f"| background | {background} |" in text
    assert ("turned as its EXIF header says" in text) == ("exif_transpose" in text) == exif
    assert ("laid on white" in text) == ("alpha_composite" in text) == (background == "white")


@pytest.mark.slow
def test_the_model_card_says_where_timm_prepares_images_in_another_way(tmp_path):
    for name, size, crop_pct, expected in (("a", 16, 1.0, 0), ("b", 8, 1.0, 1), ("c", 18, 0.5, 1), ("d", 17, 0.9, 0)):
        make_model("vit", decoded_size=size, crop_pct=crop_pct).export(tmp_path / name, "timm", verified=False)
        text = (tmp_path / name / "README.md").read_text()
        assert text.count(f"were shrunk to {size} x {size} pixels first and enlarged to 16 x 16 then") == expected


SUMMARY = dict(best_step=12_000, test_accuracy=0.91, val_accuracy=0.92, epochs=3.0, params=1000)


def card_of(folder, step, summary):
    model = make_model("mlp_mixer")
    model = patchnets.Model(model.spec, model.variables, str(folder), step)
    (folder / "summary.json").write_text(json.dumps(summary))
    model.export(folder / "exported", "npz", verified=False)
    return (folder / "exported" / "README.md").read_text()


def test_figures_are_those_of_the_exported_checkpoint(tmp_path):
    text = card_of(tmp_path, 12_000, SUMMARY)
    assert "| checkpoint | step 12,000 |" in text and "| test accuracy | 0.91 |" in text
    assert "| validation accuracy | 0.92 |" in text and "these weights are" not in text


@pytest.mark.parametrize(("step", "these"), [(13_000, "step 13,000"), (None, "an unknown step")])
def test_figures_of_another_checkpoint_are_not_given_as_its_own(step, these, tmp_path):
    text = card_of(tmp_path, step, SUMMARY)
    assert f"The run's figures are of step 12,000; these weights are of {these}." in text
    assert "accuracy |" not in text and "| parameters | 1,000 |" in text
    assert ("| checkpoint |" in text) == (step is not None)


@pytest.mark.slow
def test_an_export_of_an_export_is_of_the_same_step(tmp_path):
    card_of(tmp_path, 13_000, SUMMARY)
    loaded = patchnets.load(tmp_path / "exported")
    assert loaded.step == 13_000
    loaded.export(tmp_path / "again", "npz", verified=False)
    assert "| checkpoint | step 13,000 |" in (tmp_path / "again" / "README.md").read_text()
    assert patchnets.load(tmp_path / "again").step == 13_000
    for content in ("", "[]", "{}", '{"step": "x"}', '{"step": true}', '{"step": -1}'):
        (tmp_path / "again" / "export.json").write_text(content)
        assert patchnets.load(tmp_path / "again").step is None


def test_computing_in_float32_what_was_trained_in_bfloat16_is_said(tmp_path):
    model = make_model("mlp_mixer")
    fields = model.spec.fields | {"dtype": "bfloat16"}
    model = patchnets.Model(dataclasses.replace(model.spec, fields=fields), model.variables)
    note = "Computed in float32; the run computed in bfloat16."
    report = model.export(tmp_path / "a", "npz", verified=False)
    assert note in report.notes and note in (tmp_path / "a" / "README.md").read_text()
    report = make_model("mlp_mixer").export(tmp_path / "b", "npz", verified=False)
    assert note not in report.notes and note not in (tmp_path / "b" / "README.md").read_text()


def test_images_to_compare_on_are_those_of_the_test_split_as_the_model_decodes_them(tmp_path, monkeypatch):
    generator, paths = np.random.default_rng(0), []
    for split, count in (("train", 6), ("test", 4)):
        for name in "ab":
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                paths.append(tmp_path / "data" / split / name / f"{i}.png")
                picture = generator.integers(0, 256, (20 + i, 30, 3), np.uint8)
                Image.fromarray(picture).save(paths[-1])
    config = common.base(
        dataset=dict(name="folder", path=str(tmp_path / "data")),
        image_size=16,
        model=dict(name="vit", variant="Ti/16"),
        total_steps=1,
    )
    Workdir(tmp_path / "run", flatten(config)).acquire({})
    spec = make_model("vit", decoded_crop_pct=0.9).spec
    actual, description = verify.verification_images(str(tmp_path / "run"), spec)
    assert description == "the 8 images of folder test"
    expected = [decode_one(path, spec) for path in paths if "test" in path.parts]
    assert {image.tobytes() for image in actual} == {image.tobytes() for image in expected} and len(actual) == 8
    next(path for path in paths if "test" in path.parts).write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    rest, description = verify.verification_images("run", spec)
    assert description == "7 of the 8 images of folder test (1 more cannot be read)"
    assert {image.tobytes() for image in rest} == {image.tobytes() for image in expected[1:]}
    shutil.rmtree(tmp_path / "data")
    first, description = verify.verification_images(str(tmp_path / "run"), spec)
    assert description.startswith("32 random images, for the data cannot be opened (config.dataset.path=")
    np.testing.assert_array_equal(first, verify.verification_images("", spec)[0])


def test_outputs_that_are_no_numbers_never_agree():
    outputs = np.zeros((2, 3), np.float32)
    assert verify.compare(outputs, outputs + 9e-5, "x", "y").holds
    assert not verify.compare(outputs, outputs + 2e-4, "x", "y").holds
    assert verify.compare(outputs + 1000, outputs + 1000.05, "x", "y").holds  # relative to the largest
    assert not verify.compare(outputs, outputs * np.nan, "x", "y").holds
    small = np.full((2, 3), 1e-3, np.float32)
    assert verify.compare(small, small + 9e-5, "x", "y").holds
    assert not verify.compare(small, small + 2e-7, "x", "y", "probabilities").holds  # relative to probabilities
    assert verify.compare(small, small + 0.9e-7, "x", "y", "probabilities").holds
    assert verify.compare(outputs, outputs + 0.9e-10, "x", "y", "probabilities").holds
    assert not verify.compare(outputs, outputs + 2e-10, "x", "y", "probabilities").holds
    with pytest.raises(RunError, match=r"\(2, 4\); expected \(2, 3\)"):
        verify.compare(outputs, np.zeros((2, 4), np.float32), "x", "y")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        make_model("mlp_mixer").export(tmp_path, "npz")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    make_model("mlp_mixer").export(tmp_path / "empty", "npz", verified=False)
    assert (tmp_path / "empty" / "model.npz").exists()


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (dict(to="pickle"), "--to=pickle is unknown; expected timm, npz, onnx, stablehlo"),
        (dict(to="timm", inputs="uint8"), "leave out --input"),
        (dict(to="npz", outputs="probabilities"), "leave out --input and --output_type"),
        (dict(to="stablehlo", inputs="int4"), "--input=int4 is unknown"),
    ],
)
def test_options_that_do_not_exist_or_fit_are_one_line(options, pattern, tmp_path):
    with pytest.raises(UserError, match=pattern):
        make_model("vit").export(tmp_path / "folder", **options)
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(("file", "pattern"), [("model.onnx", "InferenceSession"), ("model.jax_export", "deserialize")])
def test_folders_of_programs_say_how_they_are_loaded(file, pattern, tmp_path):
    (tmp_path / "model.json").write_text(json.dumps(make_model("vit").spec.to_json()))
    (tmp_path / file).write_bytes(b"")
    with pytest.raises(UserError, match=pattern) as caught:
        patchnets.load(tmp_path)
    assert "\n" not in str(caught.value)


def change_fields(folder, **fields):
    content = json.loads((folder / "model.json").read_text())
    content["fields"] |= fields
    (folder / "model.json").write_text(json.dumps(content))


@pytest.mark.parametrize("to", ["timm", "npz"])
@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        (dict(depth=2**20), "too small for the network"),
        (dict(hidden_dim=2**20), "too small for the network"),
        (dict(depth=1), "no array of this network"),
        (dict(mlp_dim=25), "expected float32 of"),
        (dict(num_heads=3), "num_heads"),
    ],
)
def test_weights_of_another_network_than_model_json_s_are_one_line(to, fields, pattern, tmp_path):
    make_model("vit").export(tmp_path / "folder", to, verified=False)
    change_fields(tmp_path / "folder", **fields)
    with pytest.raises((RunError, UserError), match=pattern) as caught:
        patchnets.load(tmp_path / "folder")
    assert "\n" not in str(caught.value)


def test_one_set_of_weights_has_no_checkpoints(tmp_path):
    make_model("mlp_mixer").export(tmp_path / "folder", "npz", verified=False)
    with pytest.raises(UserError, match="one set of weights"):
        patchnets.load(tmp_path / "folder", checkpoint=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a Mixer of two blocks on the digits; read it, and do not change it."""
    path = tmp_path_factory.mktemp("run") / "mixer"
    config = common.base(
        dataset=dict(name="digits", cache_dir=str(path.parent)),
        image_size=8,
        model=dict(name="mlp_mixer", patch_size=2, depth=2, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=16),
        batch_size=64,
        total_steps=2,
        tensorboard=False,
        plots=False,
    )
    train.train(config, path)
    return path


@pytest.mark.slow
def test_the_command_exports_a_run_and_compares_on_its_test_split(trained, tmp_path, capsys):
    argv = ["patchnets.export", str(trained), "--to=npz", f"--output={tmp_path / 'folder'}"]
    assert program.main(argv) == 0
    printed = capsys.readouterr().out
    assert "on the 359 images of digits test" in printed and "agrees on 359 of 359" in printed
    text = (tmp_path / "folder" / "README.md").read_text()
    summary = json.loads((trained / "summary.json").read_text())
    assert f"| test accuracy | {summary['test_accuracy']:.5g} |" in text
    assert f"| checkpoint | step {summary['best_step']} |" in text
    assert patchnets.load(tmp_path / "folder").step == patchnets.load(trained).step == summary["best_step"]
    assert program.main(argv) == 2  # the folder is there
    assert "not an empty folder" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_s_mistakes_are_one_line_each(trained, tmp_path, capsys, monkeypatch):
    for options, status, pattern in (
        (["--to=timm"], 2, "gelu='tanh'"),
        (["--to=tmm"], 2, "invalid choice"),
        (["--to=npz", "--checkpoint=7"], 2, "no checkpoint of step 7"),
        (["--to=npz", "--input=uint8"], 2, "leave out --input"),
    ):
        output = f"--output={tmp_path / 'folder'}"
        assert program.main(["patchnets.export", str(trained), output, *options]) == status
        error = capsys.readouterr().err
        assert error.startswith("patchnets.export: ") and error.count("\n") == 1 and pattern in error, error
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(verify, "TOLERANCE", -1.0)
    assert program.main(["patchnets.export", str(trained), "--to=npz", f"--output={tmp_path / 'folder'}"]) == 1
    assert "does not agree" in capsys.readouterr().err and list(tmp_path.iterdir()) == []
