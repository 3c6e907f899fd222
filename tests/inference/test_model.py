"""A work directory as a model: it reproduces the run's figures, on images of any kind."""

import gc
import json
import shutil
import threading
import weakref

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

import patchnets
from patchnets import train
from patchnets.data.sources import digits
from patchnets.errors import RunError, UserError
from patchnets.inference.model import BATCH_SIZE, SMALL_BATCHES
from patchnets.models.resize_weights import resize_weights
from patchnets.run.checkpoints import Checkpoints
from patchnets.run.model_spec import ModelSpec, read_model_spec


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run with a running mean of its variables, of which more than one checkpoint is kept."""
    from patchnets.config import common

    config = common.base(
        dataset=dict(name="digits", train_split="train[:700]", val_split="train[700:800]", test_split="test"),
        image_size=8,
        model=dict(name="mlp_mixer", patch_size=4, depth=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=32),
        normalize="dataset",
        batch_size=64,
        total_epochs=3.0,
        ema_decay=0.9,
        checkpoint=dict(max_to_keep=3),
        mesh=dict(data=1),
        optimizer=dict(learning_rate=1e-2),
        tensorboard=False,
        plots=False,
    )
    path = tmp_path_factory.mktemp("runs") / "run"
    train.train(config, path)
    return path


@pytest.fixture(scope="module")
def model(workdir):
    return patchnets.load(workdir)


@pytest.fixture(scope="module")
def held_out():
    records = digits.Digits().records("test")
    images, labels = zip(*records.examples(range(len(records))))
    return np.stack(images), np.array(labels)


def test_predictions_over_the_test_split_are_those_that_the_run_counted(workdir, model, held_out):
    images, labels = held_out
    summary = json.loads((workdir / "summary.json").read_text())
    correct = sum(row[0][0] == str(label) for row, label in zip(model.predict(images, topk=1), labels))
    assert correct == round(summary["test_accuracy"] * len(labels))
    logits = model.logits(images)
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels]
    assert losses.mean() == pytest.approx(summary["test_loss"], rel=1e-5)


@pytest.mark.slow
def test_a_model_at_another_size_has_resized_weights_and_larger_inputs(workdir, model, held_out):
    larger = patchnets.load(workdir, image_size=16)
    assert (larger.spec.image_size, larger.spec.decoded_size, larger.classes) == (16, 16, model.classes)
    network, variables = resize_weights(model.network, model.variables, 8, 16)
    images = held_out[0][:3]
    expected = jax.jit(lambda x: network.apply(variables, x, train=False))(larger.preprocess(images))
    np.testing.assert_allclose(larger.logits(images), expected, atol=1e-4)
    tiled = patchnets.load(workdir, image_size=16, resize="block_diagonal")
    assert tiled.spec.fields["tokens_mlp_dim"] == 4 * model.spec.fields["tokens_mlp_dim"]
    same = patchnets.load(workdir, image_size=8)
    assert same.spec == model.spec and same.variables.keys() == model.variables.keys()
    with pytest.raises(UserError, match="not divisible by patch_size 4"):
        patchnets.load(workdir, image_size=15)
    with pytest.raises(UserError, match="resize='nearest' is unknown"):
        patchnets.load(workdir, resize="nearest")


def kept_steps(workdir):
    return {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()}


def test_the_work_directory_is_enough_wherever_it_is(workdir, model, held_out, tmp_path, monkeypatch):
    copy = tmp_path / "elsewhere"
    shutil.copytree(workdir, copy)
    for name in ("config.json", "data.json", "summary.json", "metrics.jsonl"):
        (copy / name).unlink()
    monkeypatch.setattr(digits, "_load", lambda: pytest.fail("the data set is not needed"))
    images = held_out[0][:9]
    assert np.array_equal(patchnets.load(copy).logits(images), model.logits(images))


@pytest.mark.slow
def test_a_run_from_before_model_json_is_loaded_by_its_data(workdir, model, held_out, tmp_path, capsys):
    copy = tmp_path / "older"
    shutil.copytree(workdir, copy)
    (copy / "model.json").unlink()
    older = patchnets.load(copy)
    assert "has no model.json; opening its data set" in capsys.readouterr().err
    assert older.spec == model.spec and np.array_equal(older.logits(held_out[0][:3]), model.logits(held_out[0][:3]))


def test_images_of_every_kind_are_one_and_the_same(model, held_out, tmp_path):
    array = held_out[0][0]
    picture = Image.fromarray(array[..., 0])
    picture.save(tmp_path / "digit.png")
    expected = model.probabilities(array)
    for image in (array[..., 0], array[None], [array], picture, picture.convert("RGB"), tmp_path / "digit.png"):
        assert np.array_equal(model.probabilities(image), expected)
    assert np.array_equal(model.probabilities([str(tmp_path / "digit.png"), array]), np.repeat(expected, 2, axis=0))


def test_another_size_is_cropped_and_resized_as_pillow_does(model):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 20, 3), np.uint8))
    square = image.convert("L").resize((8, 8), Image.Resampling.BICUBIC, box=(0, 5.5, 20, 25.5))
    mean, std = model.spec.mean[0], model.spec.std[0]
    expected = (np.asarray(square, np.float32)[None, ..., None] - mean) / std
    np.testing.assert_allclose(model.preprocess(image), expected, atol=1e-5)


@pytest.mark.slow
def test_neither_the_batch_size_nor_the_neighbors_change_a_prediction(model, held_out):
    images = held_out[0][:70]
    expected = model.logits(images)
    assert expected.shape == (70, 10)
    for batch_size in (1, 3, 16, 128):
        np.testing.assert_allclose(model.logits(images, batch_size=batch_size), expected, atol=1e-5)


def test_batches_of_any_length_are_padded_to_a_few_sizes(model):
    sizes = set()

    def identity_of_size(size):
        sizes.add(size)
        return lambda images: images

    for count in (1, 2, 5, 8, 9, 30, 63, 64):
        images = np.arange(count * 64, dtype=np.uint8).reshape(count, 8, 8, 1)
        assert np.array_equal(model.apply_padded(identity_of_size, images, BATCH_SIZE), images)
    assert sizes == {*SMALL_BATCHES, BATCH_SIZE}


def test_no_images_give_no_rows(model):
    assert model.predict([]) == [] and model.probabilities([]).shape == (0, 10)


def test_probabilities_of_the_sigmoid_loss_are_of_each_class_alone(model):
    logits = np.array([[0.0, 3.0, -200.0]], np.float32)
    softmax = model.to_probabilities(logits)
    np.testing.assert_allclose(softmax, [[1 / (1 + np.e**3), np.e**3 / (1 + np.e**3), 0]], rtol=1e-6)
    sigmoid = patchnets.Model(ModelSpec(**vars(model.spec) | {"loss": "sigmoid"}), model.variables)
    np.testing.assert_allclose(sigmoid.to_probabilities(logits), [[0.5, 1 / (1 + np.e**-3), 0]], rtol=1e-5)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_classes_rank_by_logits_where_probabilities_are_equal(model, monkeypatch, loss):
    other = patchnets.Model(ModelSpec(**vars(model.spec) | {"loss": loss}), model.variables)
    for logits in ([18, 25, 18.5], [-30, -20, -25], [0, -200, -150]):
        row = np.array([logits + [-1000.0] * 7], np.float32)
        monkeypatch.setattr(other, "logits", lambda images, batch_size, row=row: row)
        expected = [str(i) for i in np.argsort([-value for value in logits])]
        assert [name for name, _ in other.predict([], topk=3)[0]] == expected


def test_small_probabilities_of_the_sigmoid_loss_are_not_rounded_to_nothing(model):
    other = patchnets.Model(ModelSpec(**vars(model.spec) | {"loss": "sigmoid"}), model.variables)
    logits = np.array([[-60.0, -17.0, 0.0, 17.0, 60.0, -1e4, 1e4]], np.float32)
    with np.errstate(over="raise", invalid="raise"):
        actual = other.to_probabilities(logits)
    np.testing.assert_allclose(actual[0, :5], 1 / (1 + np.exp(-logits[0, :5].astype(float))), rtol=1e-6)
    assert actual[0, 5] == 0 and actual[0, 6] == 1


def test_a_model_that_is_no_longer_used_goes(workdir, held_out):
    gone = patchnets.load(workdir)
    gone.logits(held_out[0][:1])
    reference = weakref.ref(gone)
    del gone
    gc.collect()
    assert reference() is None


def test_the_class_to_explain_may_be_a_number_of_numpy(model, held_out):
    image = held_out[0][0]
    assert np.array_equal(model.explain(image, np.int64(3)), model.explain(image, 3))


def test_the_weights_of_a_mixing_are_no_features_of_images(model, held_out):
    with pytest.raises(UserError, match="no features called 'block_0/mixing'"):
        model.features(held_out[0][:8], layer="block_0/mixing")


def test_features_are_the_input_of_the_head_or_of_another_layer(model, held_out):
    images = held_out[0][:5]
    features = model.features(images)
    head = model.variables["params"]["head"]
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"], model.logits(images), atol=1e-5)
    assert model.features(images, layer="block_0").shape == (5, 4, 16)
    with pytest.raises(UserError, match="no features called 'nothing'; it has stem, block_0, pre_logits, logits"):
        model.features(images, layer="nothing")


def test_the_checkpoint_is_the_best_the_latest_or_that_of_a_step(workdir, model):
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    best = json.loads((workdir / "summary.json").read_text())["best_step"]
    latest = checkpoints.latest_step()
    checkpoints.close()
    kernel = lambda which: patchnets.load(workdir, which).variables["params"]["head"]["kernel"]
    assert np.array_equal(kernel(best), model.variables["params"]["head"]["kernel"])
    assert np.array_equal(kernel("latest"), kernel(latest))
    assert not np.array_equal(kernel(11), kernel("latest"))
    with pytest.raises(UserError, match=r"no checkpoint of step 5 .*kept are those of 11, 22, 33"):
        patchnets.load(workdir, 5)


@pytest.fixture
def deleting(workdir, tmp_path, monkeypatch):
    """A copy of the run, and a list of steps whose checkpoints are deleted while they are read."""
    copy, condemned, threads = shutil.copytree(workdir, tmp_path / "run"), [], []
    restore = ocp.CheckpointManager.restore

    def restore_while_deleted(manager, step, **options):
        folder = copy / "checkpoints" / str(step)
        if step in condemned:  # orbax unlinks the files first, and the folders at the end
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                file.unlink()
            threads.append(threading.Timer(0.2, shutil.rmtree, [folder]))
            threads[-1].start()
        return restore(manager, step, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", restore_while_deleted)
    yield copy, condemned
    for thread in threads:
        thread.join()


def test_a_checkpoint_that_a_run_deletes_while_it_is_read_makes_way_for_the_next(workdir, deleting):
    copy, condemned = deleting
    best, steps = patchnets.load(workdir).step, kept_steps(workdir)
    latest = max(steps)
    condemned[:] = [latest]
    assert patchnets.load(copy, "latest").step == max(steps - {latest})
    if best in steps - {latest}:
        condemned[:] = [best]
    assert patchnets.load(copy).step in steps - {best, latest}
    assert kept_steps(copy) == steps - {best, latest}


def test_a_checkpoint_that_is_deleted_and_the_only_one_or_asked_for_by_its_step_is_one_line(deleting):
    copy, condemned = deleting
    steps = sorted(kept_steps(copy))
    condemned += steps
    with pytest.raises(UserError, match=rf"there is no checkpoint of step {steps[0]} .*; kept are those of"):
        patchnets.load(copy, steps[0])
    with pytest.raises(RunError, match=r"there is no checkpoint in .* yet"):
        patchnets.load(copy)


def test_a_broken_checkpoint_that_nobody_deletes_is_named_and_no_other_is_taken(workdir, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "run")
    best = patchnets.load(copy).step
    for file in (copy / "checkpoints" / str(best) / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"broken")
    with pytest.raises(RunError, match=rf"checkpoint .*checkpoints/{best} cannot be read"):
        patchnets.load(copy)


def test_a_network_with_a_running_mean_is_used_by_it(workdir, model):
    best = json.loads((workdir / "summary.json").read_text())["best_step"]
    with ocp.PyTreeCheckpointer() as checkpointer:
        stored = checkpointer.restore((workdir / "checkpoints" / str(best) / "state").absolute())
    head = model.variables["params"]["head"]["kernel"]
    assert np.array_equal(head, stored["ema"]["params"]["head"]["kernel"])
    assert not np.array_equal(head, stored["params"]["head"]["kernel"])


def test_the_spec_survives_its_file(workdir, model):
    assert read_model_spec(workdir) == model.spec
    assert ModelSpec.from_json(json.loads(json.dumps(model.spec.to_json())), "model.json") == model.spec
    assert model.classes == tuple("0123456789") and model.spec.dataset["name"] == "digits"


def test_a_model_json_of_before_a_key_means_what_was_done_then(workdir, model, tmp_path):
    """Images were taken as they are stored, and transparency dropped."""
    content = model.spec.to_json()
    assert (content.pop("exif_orientation"), content.pop("background")) == (True, "white")
    spec = ModelSpec.from_json(content, "model.json")
    assert (spec.exif_orientation, spec.background) == (False, "none")
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 2), np.uint8)
    Image.fromarray(pixels, "LA").save(tmp_path / "image.png", exif=exif)
    older = patchnets.Model(spec, model.variables)
    np.testing.assert_array_equal(older.logits(tmp_path / "image.png"), older.logits(pixels[..., :1]))
    assert not np.array_equal(model.logits(tmp_path / "image.png"), older.logits(tmp_path / "image.png"))
    copy = shutil.copytree(workdir, tmp_path / "run")
    (copy / "model.json").write_text(json.dumps(content))
    assert patchnets.load(copy).spec == spec


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(format=2), "is of format 2; this version of patchnets reads format 1"),
        (dict(colour=1), "does not have the keys of this version of patchnets: colour"),
        (dict(classes=None), "classes=None cannot be used; expected different names"),
        (dict(classes=["a", "a"]), "classes=('a', 'a') cannot be used"),
        (dict(classes=[]), "classes=() cannot be used"),
        (dict(channels=0), "channels=0 cannot be used; expected a number of at least 1"),
        (dict(image_size=10**9), "image_size=1000000000 cannot be used"),
        (dict(decoded_size="8"), "decoded_size='8' cannot be used"),
        (dict(crop_pct=0), "crop_pct=0 cannot be used"),
        (dict(mean=[1.0, 2.0]), "cannot be used; expected a number for each channel"),
        (dict(std=[0.0]), "cannot be used; expected a number above 0 for each channel"),
        (dict(loss="hinge"), "loss='hinge' cannot be used; expected softmax or sigmoid"),
    ],
)
def test_a_model_json_that_cannot_be_used_is_one_line(model, change, words):
    with pytest.raises(UserError) as error:
        ModelSpec.from_json(json.loads(json.dumps(model.spec.to_json() | change)), "there/model.json")
    assert str(error.value).startswith("there/model.json") and words in str(error.value)


@pytest.mark.parametrize("fields", [dict(depth=-1), dict(hidden_dim="wide"), dict(colour=1), dict(depth=10**9)])
def test_fields_that_make_no_network_are_one_line(workdir, fields, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    content = json.loads((copy / "model.json").read_text())
    content["fields"] |= fields
    (copy / "model.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=next(iter(fields))):
        patchnets.load(copy)


@pytest.mark.parametrize("content", ["", "[]", "{", '"text"', "null", "\x00\xff"])
def test_a_torn_model_json_is_one_line(tmp_path, content):
    (tmp_path / "model.json").write_text(content, encoding="latin1")
    with pytest.raises(UserError, match=r"model\.json (cannot be read|is of format None)"):
        patchnets.load(tmp_path)


def test_what_is_no_work_directory_is_one_line(tmp_path, workdir):
    with pytest.raises(UserError, match=r"has no model\.safetensors; expected a work directory"):
        patchnets.load(tmp_path)
    with pytest.raises(UserError, match=r"there is no .*nothing; expected a work directory"):
        patchnets.load(tmp_path / "nothing")
    shutil.copy(workdir / "model.json", tmp_path)
    with pytest.raises(RunError, match="has no checkpoints"):
        patchnets.load(tmp_path)


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.float32), np.zeros((2, 8, 8, 3, 1), np.uint8), 5])
def test_what_is_no_image_is_refused(model, image):
    with pytest.raises((ValueError, TypeError), match=r"expected|give a path|not iterable|is a int"):
        model.predict([image])


def test_a_broken_file_is_named(model, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    with pytest.raises(RunError, match=r"broken\.jpg cannot be decoded"):
        model.predict(tmp_path / "broken.jpg")
    with pytest.raises(RunError, match="image 0 cannot be decoded"):
        model.predict(b"bytes")


def test_an_encoded_image_is_read_as_its_file(model, tmp_path):
    Image.fromarray(np.arange(144, dtype=np.uint8).reshape(12, 12)).save(tmp_path / "image.png")
    encoded = (tmp_path / "image.png").read_bytes()
    assert model.predict(encoded) == model.predict([encoded]) == model.predict(tmp_path / "image.png")


def test_the_interface_imports_nothing_until_it_is_used():
    assert patchnets.__version__ and {"load", "Model"} <= set(patchnets.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = patchnets.nothing
