"""Families at equal cost: the choice of networks, their training, and the report."""

import json
import math
import re
import shlex
import statistics

import jax
import pytest

from experiments.compare import __main__ as compare
from experiments.compare import match_cost, report
from experiments.compare.match_cost import FAMILIES, Shape, matched
from experiments.runner import jobs
from patchnets import models
from patchnets.config import common, flags
from patchnets.errors import UserError
from patchnets.step.train_state import abstract_params


def parameters(shape):
    """By the arrays that the network is initialized with."""
    config = common.base(model={**shape.fields, "patch_size": 1})
    model = models.create_model(**config.model, num_classes=10)
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model, 8, 1)))


def start(path, *options):
    return compare.main(["compare", "--dataset=digits", f"--workdir={path}", *options])


def networks(path):
    return {actual["id"]: actual for actual in json.loads((path / "compare.json").read_text())["networks"]}


@pytest.mark.slow
@pytest.mark.parametrize("target", [100_000, 300_000])
def test_any_two_families_have_parameters_within_five_per_cent(target, capsys, tmp_path):
    assert start(tmp_path, "--match=params", f"--target={target}", "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    counts = []
    for line, family in zip(lines, FAMILIES, strict=True):
        name, width, depth = line.split()[0].rsplit("-", 2)
        assert name == family and int(depth) >= 5
        counts.append(parameters(Shape(family, int(depth), int(width))))
        assert f" {counts[-1]:,} parameters" in line
    assert max(counts) / min(counts) < 1.05 and 0.97 * target < min(counts)


@pytest.mark.parametrize("target, actual", [(8 * 128**2, "128/8"), (8 * 128**2 * 1.03, "140/7"), (8 * 400**2, "400/8")])
def test_the_usual_depth_is_kept_where_it_can_be(target, actual):
    requested = []

    def cost(shape):
        requested.append(shape)
        return shape.depth * shape.width**2

    assert str(matched("fnet", target, 0.02, cost)) == actual
    assert len(requested) == len(set(requested)) < 10


def test_no_network_costs_so_little():
    with pytest.raises(
        UserError, match=r"vit has no network that costs 10 to within 0.02 of it; the nearest, 16/2 \(width/d"
    ):
        matched("vit", 10.0, 0.02, lambda shape: shape.depth * shape.width**2)


@pytest.mark.parametrize("width, heads", [(64, 2), (112, 4), (52, 2), (16, 1), (768, 24)])
def test_heads_are_about_as_wide_as_each_other(width, heads):
    assert match_cost.heads(width) == heads


def test_the_interval_is_students():
    # Of three values, the 97.5 % quantile of two degrees of freedom is 4.3027 (any table of it).
    assert report.interval([1.0, 2.0, 3.0]) == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert report.interval([1.0]) is None


@pytest.mark.slow
def test_families_are_trained_alike_and_shown_with_what_they_cost(fake, tmp_path, capsys):
    path = tmp_path / "out"
    options = ("--models=fnet,gmlp", "--target=50k,100k", "--seeds=2", "--epochs=5")
    assert start(path, *options, "--config.batch_size=64") == 0
    arguments = [settings for settings, *_ in fake()]
    assert [settings["config.seed"] for settings in arguments] == ["0"] * 4 + ["1"] * 4  # seed after seed
    assert [settings["config.model.name"] for settings in arguments] == ["fnet", "gmlp"] * 4
    same = {
        tuple(v for k, v in sorted(settings.items()) if "model" not in k and k != "workdir")
        for settings in arguments[:4]
    }
    assert len(same) == 1
    first = arguments[0]
    assert (first["config.total_epochs"], first["config.schedule.warmup_epochs"]) == ("5.0", "0.5")
    assert (first["config"], first["config.batch_size"]) == ("configs/compare.py:digits", "64")
    actual = networks(path)
    assert len(actual) == 4 and {each["family"] for each in actual.values()} == {"fnet", "gmlp"}
    for name, each in actual.items():
        assert name == f"{each['family']}-{each['width']}-{each['depth']}"
        assert each["params"] == parameters(Shape(each["family"], each["depth"], each["width"]))
        assert each["measured"]["accuracy"]["mean"] == pytest.approx(statistics.fmean([0.10, 0.12]))
        # 12.7062 is the 97.5 % quantile of Student's distribution with one degree of freedom.
        assert each["measured"]["accuracy"]["interval"] == pytest.approx(12.7062 * 0.02 / 2, rel=1e-4)
        assert each["training_seconds"] == pytest.approx(250 * 64 / 500)
    assert [each["targets"] for each in actual.values()] == [[50e3], [50e3], [100e3], [100e3]]
    folders = {shlex.split(command)[-1] for each in actual.values() for command in each["commands"]}
    assert len(folders) == 8 and all(folder.startswith("--workdir=runs/out/") for folder in folders)
    written = (path / "compare.md").read_text()
    assert written.count("% apart.") == 2 and "40% apart" not in written
    assert written.count("|11.00 ± 12.71|32.00 ± 0.00|32.0 s|500|") == 4
    assert (
        written.startswith("# digits: families at equal parameters") and written.count("patchnets.main --config=") == 8
    )
    for name in ("compare.png", "curves.png"):
        assert (path / name).read_bytes().startswith(b"\x89PNG")
    assert "11.00 ± 12.71" in capsys.readouterr().out
    assert start(path, *options, "--config.batch_size=64") == 0 and len(fake()) == 8  # nothing is done again
    assert start(path, *options, "--config.batch_size=64", "--report") == 0
    assert json.loads((path / "compare.json").read_text())["command"] in written  # as if it had been without --report


def test_how_far_apart_they_are_is_told_in_whole_parameters():
    networks = [{"params": 194_604.0, "targets": [199e3]}, {"params": 202_332.0, "targets": [199e3]}]
    assert list(report.apart(networks, "params")) == ["parameters: from 194,604 to 202,332, 4.0% apart"]
    assert not report.unequal(networks, "params")


def test_how_far_apart_they_are_is_told_for_each_target():
    sizes = {100e3: (99e3, 101e3), 300e3: (290e3, 310e3)}
    networks = [{"params": size, "targets": [target]} for target, pair in sizes.items() for size in pair]
    first, second = report.apart(networks, "params")
    assert first == "parameters at --target=100,000: from 99,000 to 101,000, 2.0% apart"
    assert second.startswith("parameters at --target=300,000: from 290,000 to 310,000, 6.9% apart, at most 5%")
    assert report.unequal(networks, "params") == [second]
    both = [
        {"params": 1.0, "targets": [1.0, 1.01]},
        {"params": 1.02, "targets": [1.0]},
        {"params": 1.03, "targets": [1.01]},
    ]
    assert [round(share, 3) for share in report.apart(both, "params").values()] == [0.02, 0.03]


def test_families_of_equal_time_are_as_close_as_any_others(monkeypatch):
    """Whatever the two networks of a target are, both lie within the tolerance, on either side."""
    assert (1 + compare.TOLERANCE) / (1 - compare.TOLERANCE) < 1 + report.WITHIN
    observed = []

    def noting(family, target, tolerance, cost_of):
        observed.append(tolerance)
        return Shape(family)

    monkeypatch.setattr(compare, "matched", noting)
    compare.chosen(compare.parse_args(["--dataset=digits", "--match=time", "--target=3"]), None)
    assert observed == [compare.TOLERANCE] * 5


@pytest.mark.slow
def test_times_that_turned_out_unequal_are_told(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "step_milliseconds", lambda job: {"gmlp": 10.0, "fnet": 12.0}[job.row.id.split("-")[0]])
    assert start(tmp_path / "out", "--models=gmlp,fnet", "--match=time", "--seeds=1") == 0
    out, error = capsys.readouterr()
    options = "illiseconds of a training step: from 10 to 12, 20.0% apart, at most 5% allowed"
    assert options in out and f"patchnets: --match=time does not hold: m{options}" in error
    assert options in (tmp_path / "out/compare.md").read_text()
    written = json.loads((tmp_path / "out/compare.json").read_text())
    assert written["equal"] is False and len(written["apart"]) == 1


def test_bars_are_drawn_where_there_are_intervals():
    assert report.bars([0.0, 0.1]) == [0.0, 10.0]
    known, missing = report.bars([0.2, None])
    assert known == 20.0 and math.isnan(missing)
    assert report.bars([None, None]) is None


@pytest.mark.parametrize(
    "dataset, config", [("svhn_cropped", "configs/compare.py"), ("digits", "configs/compare.py:digits")]
)
def test_a_data_set_without_a_recipe_of_its_own_takes_that_of_cifar100(dataset, config, tmp_path):
    requested = compare.parse_args([f"--dataset={dataset}"])
    job = jobs.job(compare.row(requested, Shape("fnet")), 0, tmp_path, requested.other_data, ())
    trained, *_ = flags.parse_flags(["main", *job.arguments])
    assert job.arguments[0] == f"--config={config}"
    assert (trained.dataset.name, trained.model.name) == (dataset, "fnet")


@pytest.mark.slow
def test_what_is_missing_is_not_final(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FAIL", "1")
    assert start(tmp_path / "out", "--models=fnet", "--target=50k", "--seeds=2") == 1
    assert "1 of 2, not final" in (tmp_path / "out/compare.md").read_text()
    assert ": seed 1 failed, status 1: no images" in capsys.readouterr().out


@pytest.mark.slow
def test_minutes_are_as_many_steps_as_short_runs_show_to_fit(fake, tmp_path, capsys):
    path, options = tmp_path / "out", ("--models=gmlp", "--target=20k", "--seeds=1", "--minutes=2")
    more = ("--config.early_stopping.patience=3", "--config.schedule.warmup_epochs=1")
    assert start(path, *options, "--report") == 2
    assert "was not measured" in capsys.readouterr().err and not path.exists()
    assert start(path, *options, *more) == 0
    *pilots, run = (settings for settings, *_ in fake())
    assert [pilot["config.seed"] for pilot in pilots] == ["0", "1", "2"]
    for pilot in pilots:
        assert (pilot["config.total_steps"], pilot["config.dataset.test_split"]) == ("50", "none")
        assert "config.early_stopping.patience" not in pilot and pilot["config.schedule.warmup_epochs"] == "None"
    assert int(run["config.total_steps"]) == round(2 * 60 * 500 / 128)  # at the speed that the stand-in claims
    assert (run["config.schedule.warmup_epochs"], run.get("config.schedule.warmup_steps")) == ("1", None)
    assert start(path, *options, *more) == 0
    assert len(fake()) == 4  # the speed is remembered
    assert re.search(r"measured gmlp-\d+-\d+ \(family-width-depth\): 256.0 ms a step", capsys.readouterr().out)


@pytest.mark.slow
def test_equal_time_is_measured(fake, tmp_path):
    assert start(tmp_path, "--models=gmlp,fnet", "--match=time", "--list") == 0
    # Three times each; at once the one is as fast as the other.
    assert [settings["config.model.name"] for settings, *_ in fake()] == ["gmlp"] * 3 + ["fnet"] * 3


@pytest.mark.slow
def test_another_comparison_wants_another_folder(fake, tmp_path, monkeypatch, capsys):
    path, options = tmp_path / "out", ("--models=gmlp", "--target=20k", "--seeds=1")
    assert start(path, *options) == 0
    before = (path / "compare.md").read_text()
    config = next(path.glob("gmlp-*/seed-0")) / "config.json"
    config.write_text(common.base(total_epochs=1.0, model=dict(name="gmlp", variant="S/16")).to_json())
    monkeypatch.setattr(jobs.config_lib, "config_hash", lambda config: f"{config.model.variant}")
    assert start(path, *options) == 2
    assert "was run there with another configuration (S/16, not None)" in capsys.readouterr().err
    assert (path / "compare.md").read_text() == before


@pytest.mark.slow
def test_nothing_finished_is_nothing_to_report(fake, tmp_path, capsys):
    assert start(tmp_path / "out", "--models=gmlp", "--target=20k", "--report") == 2
    assert "none of these runs has finished there" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_report_without_its_picture_is_one(fake, tmp_path, monkeypatch, capsys):
    directory, options = tmp_path / "out", ("--models=gmlp", "--target=20k", "--seeds=1")
    assert start(directory, *options) == 0 and (directory / "compare.png").exists()
    monkeypatch.setattr(report.figures, "save", lambda figure, path: 1 / 0)
    assert start(directory, *options) == 0
    assert "compare.png could not be drawn: " in capsys.readouterr().err
    assert not (directory / "compare.png").exists() and "compare.png" not in (directory / "compare.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, message",
    [
        (["--models=mixer"], "--models: there is no family 'mixer'; known: mlp_mixer, fnet, gmlp, convmixer, vit"),
        (["--match=memory"], "--match: invalid choice: 'memory' (choose from "),
        (
            ["--target=-3"],
            "and at most 1,000,000,000,000,000, got '-3'",
        ),
        (["--target=30k", "--dataset=folder:nowhere"], "--dataset=folder:nowhere: expected folder:PATH"),
        (["--dataset=digits:x"], "--dataset=digits:x: expected the name of a data set, or folder:PATH"),
        (["--dataset=cifar1000"], "--dataset=cifar1000: config.dataset.name='cifar1000' is no data set"),
        (["--epochs=2", "--minutes=2"], "--minutes: not allowed with argument --epochs"),
        (["--config.total_steps=2"], "--config.total_steps=2: use --models, --target, --dataset, --epochs or"),
        (["--config.model.hidden_dim=32"], "--config.model.hidden_dim=32: use --models, --target"),
        (["--config.dataset.name=cifar10"], "--config.dataset.name=cifar10: use --models, --target, --dataset"),
        (
            ["--minutes=9999G"],
            "--minutes: expected a number above 0, such as 20, 300k or 1.5M, and at most 1,000,000, got '9999G'",
        ),
        (["--seeds=10000"], "--seeds: expected a whole number above 0, and at most 9,999, got '10000'"),
        (["--config.seed=2", "--target=30k"], "--config.seed=2: each row runs with seeds 0 to N - 1"),
        (["--seed=2"], "unrecognized arguments: --seed=2"),
        (["--target=3"], "has no network that costs 3 to within 0.024 of it"),
    ],
)
def test_a_mistake_costs_one_line_and_writes_nothing(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert compare.main(["compare", "--dataset=digits", *options]) == 2
    out, error = capsys.readouterr()
    assert message in error and error.count("\n") == 1 and not out
    assert not list(tmp_path.iterdir())
