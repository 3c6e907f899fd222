"""Plots of a run: those of each family, their contents, and errors."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from patchnets import config as config_lib
from patchnets import train
from patchnets.config import common
from patchnets.experiment import build_experiment
from patchnets.plots import __main__ as program
from patchnets.plots import predictions, run

pytestmark = pytest.mark.slow  # each needs a finished run
ALWAYS = {"learning_curves", "patch_filters", "patches", "token_mixing", "confusion", "class_accuracy", "calibration"}
SMALL = {
    "mlp_mixer": dict(patch_size=2, depth=2, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=16),
    "vit": dict(patch_size=4, depth=2, hidden_dim=16, mlp_dim=16, num_heads=2),
    "convmixer": dict(patch_size=2, depth=2, hidden_dim=8, kernel_size=3),
    "gmlp": dict(patch_size=2, depth=2, hidden_dim=16, ffn_dim=32),
    "fnet": dict(patch_size=2, depth=2, hidden_dim=16, mlp_dim=16),
}


def config_of(name, cache, **values):
    return common.base(
        dataset=dict(name="digits", cache_dir=str(cache)),
        image_size=8,
        model=dict(name=name, **SMALL[name]),
        batch_size=64,
        total_steps=2,
        tensorboard=False,
        **values,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the Mixer, which drew its pictures at its end; read it, and do not change it."""
    path = tmp_path_factory.mktemp("run") / "mixer"
    train.train(config_of("mlp_mixer", path.parent), path)
    return path


def names(folder):
    return {path.stem for path in (folder / "plots").glob("*.png")}


def test_a_run_draws_its_pictures_at_its_end(trained):
    assert names(trained) == ALWAYS | {"mistakes"}
    for path in (trained / "plots").iterdir():
        with Image.open(path) as picture:
            assert picture.format == "PNG" and min(picture.size) > 150
            assert len(picture.convert("L").getcolors()) > 8, path.name


def test_the_program_draws_them_again_where_they_are_gone(trained, tmp_path, capsys):
    path = tmp_path / "copy"
    shutil.copytree(trained, path)
    shutil.rmtree(path / "plots")
    assert program.main(["plots", str(path)]) == 0
    assert names(path) == names(trained)
    printed = capsys.readouterr()
    assert printed.err == "" and printed.out.count(".png\n") == len(names(path))


def test_predictions_are_those_that_the_summary_counts(trained):
    experiment, state = run.load_run(trained)
    try:
        observed = run.predict(experiment, state, experiment.data.test)
    finally:
        experiment.data.close()
    summary = json.loads((trained / "summary.json").read_text())
    assert len(observed.labels) == experiment.data.test.num_examples
    assert observed.accuracy == pytest.approx(summary["test_accuracy"], abs=1e-6)
    wrong = np.flatnonzero(observed.labels != observed.predicted)
    assert set(observed.mistaken) <= set(wrong) and len(observed.mistaken) == run.MISTAKES
    worst = np.sort(observed.confidence[wrong])[::-1][: run.MISTAKES]
    np.testing.assert_allclose(observed.confidence[observed.mistaken], worst)
    assert observed.images.shape == (run.MISTAKES, 8, 8, 1)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "mlp_mixer"])
def test_every_family_has_its_pictures(name, tmp_path):
    experiment = build_experiment(config_of(name, tmp_path))
    state = experiment.init_state()
    made = dict(run.pictures(experiment, state))
    expected = ALWAYS - {"learning_curves"} | {"mistakes"}
    expected |= (
        {"depthwise_kernels"} if name == "convmixer" else {"position_similarity"} if name in ("vit", "fnet") else set()
    )
    assert set(made) == expected
    figure = made["token_mixing"]()
    assert name in figure.get_suptitle() and len(figure.axes) == 4
    for what in expected & {"depthwise_kernels", "position_similarity"}:
        assert made[what]() is not None


@pytest.mark.parametrize("position", ["sincos2d", "none"])
def test_fixed_positions_are_shown_as_learned_ones_are(position, tmp_path):
    config = config_of("vit", tmp_path)
    config.model.posemb = position
    experiment = build_experiment(config)
    made = dict(run.pictures(experiment, experiment.init_state()))
    assert ("position_similarity" in made) == (position == "sincos2d")
    if position == "sincos2d":
        figure = made["position_similarity"]()
        assert figure.get_suptitle().startswith("Fixed position embeddings of 2 x 2 patches")
        assert figure.axes[0].get_images()[0].get_array()[0, 0] == pytest.approx(1.0)


def test_what_fails_to_be_drawn_is_told_and_the_rest_is_drawn(trained, tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise ValueError("no ink")

    monkeypatch.setattr(predictions, "calibration", broken)
    path = tmp_path / "copy"
    shutil.copytree(trained, path)
    shutil.rmtree(path / "plots")
    assert program.main(["plots", str(path)]) == 0
    assert names(path) == names(trained) - {"calibration"}
    assert capsys.readouterr().err == "patchnets.plots: plots/calibration.png could not be drawn: no ink\n"


def test_pictures_can_be_turned_off(tmp_path):
    train.train(config_of("mlp_mixer", tmp_path, plots=False), tmp_path / "run")
    assert not (tmp_path / "run" / "plots").exists()


def test_networks_are_shown_side_by_side(trained, tmp_path, capsys):
    out = tmp_path / "mixing.png"
    assert program.main(["plots", "mixing", str(trained), str(trained), f"--out={out}"]) == 0
    assert capsys.readouterr().out.endswith(f"{out}\n")
    with Image.open(out) as picture:
        assert picture.width > 500


def test_a_saved_configuration_is_read_back_as_it_was(tmp_path):
    config = config_of("convmixer", tmp_path, augment=dict(translate=0.1))
    stored = json.loads(config.to_json_best_effort())
    assert config_lib.flatten(config_lib.from_saved(stored)) == config_lib.flatten(config)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mixing"], "the following arguments are required: workdirs"),
        (["mixing", "--out=x.gif", "there"], "--out: expected the name of a .png file, got 'x.gif'"),
        (["mixing", "nowhere"], "nowhere is not a work directory"),
        (["nowhere", "--config.batch_size=3"], "--config.batch_size=3"),
    ],
)
def test_mistakes_cost_one_line(arguments, words, capsys):
    assert program.main(["plots", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and words in printed.err


def test_where_the_checkpoints_are_gone_the_curves_are_drawn_and_one_line_says_the_rest(trained, tmp_path, capsys):
    path = tmp_path / "copy"
    shutil.copytree(trained, path)
    shutil.rmtree(path / "checkpoints")
    shutil.rmtree(path / "plots")
    assert program.main(["plots", str(path)]) == 1
    printed = capsys.readouterr()
    assert names(path) == {"learning_curves"} and "the other plots could not be drawn" in printed.err
    assert printed.err.count("\n") == 1
