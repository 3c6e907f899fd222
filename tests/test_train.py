"""Complete runs in one process: outputs, resuming and failures."""

import concurrent.futures
import dataclasses
import json
import resource

import jax
import ml_collections
import numpy as np
import pytest
from PIL import Image

from patchnets import config as config_lib
from patchnets import train
from patchnets.augment.preprocess import Augment
from patchnets.config import published
from patchnets.data import sources
from patchnets.errors import RunError, UserError
from patchnets.experiment import build_schedule, data_options, optimizer_options
from patchnets.optim import plateau
from patchnets.optim.optimizers import make_optimizer
from patchnets.run import evaluator
from patchnets.run.checkpoints import Checkpoints
from patchnets.step import multi_step, train_step
from patchnets.step.metrics import EvalMetrics

SUMMARY_KEYS = {
    "test_accuracy", "test_top5_accuracy", "test_loss", "val_accuracy", "val_top5_accuracy", "val_loss", "best_step",
    "steps", "epochs", "params", "images_per_second", "wall_seconds", "device", "versions", "config_hash", "dataset",
    "splits",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: (work directory, configuration, summary)."""
    from patchnets.config import common

    config = common.base(
        dataset=dict(name="digits"),
        image_size=8,
        model=dict(name="mlp_mixer", patch_size=4, depth=2, hidden_dim=32, tokens_mlp_dim=8, channels_mlp_dim=64),
        batch_size=64,
        total_epochs=12.0,
        eval_every_epochs=2.0,
        log_every_steps=21,
        mesh=dict(data=1),
        optimizer=dict(learning_rate=1e-2),
        checkpoint=dict(max_to_keep=1),
    )
    path = tmp_path_factory.mktemp("finished") / "run"
    return path, config, train.train(config, path)


def test_a_run_learns_and_leaves_a_complete_work_directory(finished):
    path, config, summary = finished
    assert summary["test_accuracy"] > 0.85
    assert summary.keys() >= SUMMARY_KEYS
    assert json.loads((path / "summary.json").read_text())["test_accuracy"] == summary["test_accuracy"]
    stored = json.loads((path / "config.json").read_text())
    assert config_lib.flatten(stored) == config_lib.flatten(config)
    assert "Total: " in (path / "parameters.txt").read_text()
    assert (path / "plots" / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert list(path.glob("events.out.tfevents.*"))


def test_metrics_are_written_when_due_with_train_every_epoch_and_validation_every_second(finished):
    path, _, summary = finished
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows[:-1]] == list(range(21, 12 * 21 + 1, 21))
    assert [row["step"] for row in rows if "val_loss" in row] == list(range(42, 12 * 21 + 1, 42))
    for row in rows[:-1]:
        assert {"train_loss", "train_accuracy", "learning_rate", "grad_norm", "param_norm"} <= row.keys()
        # 1,294 examples were counted: the accuracy is a whole number of them.
        assert row["train_accuracy"] * 1294 == pytest.approx(round(row["train_accuracy"] * 1294), abs=1e-3)
    assert rows[-1]["test_loss"] == summary["test_loss"]
    assert rows[0]["train_loss"] > rows[-2]["train_loss"]


@pytest.mark.slow
def test_tensorboard_events_hold_the_same_figures(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path, _, summary = finished
    events = EventAccumulator(str(path), size_guidance={"scalars": 0})
    events.Reload()
    assert {"train_loss", "val_accuracy", "learning_rate", "test_accuracy"} <= set(events.Tags()["scalars"])
    (event,) = events.Scalars("test_accuracy")
    assert (event.step, event.value) == (summary["steps"], pytest.approx(summary["test_accuracy"], rel=1e-6))
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    losses = [(row["step"], row["train_loss"]) for row in rows if "train_loss" in row]
    assert [(event.step, event.value) for event in events.Scalars("train_loss")] == [
        (step, pytest.approx(loss, rel=1e-6)) for step, loss in losses
    ]


@pytest.mark.slow
def test_the_test_figures_are_those_of_the_best_checkpoint(finished):
    path, config, summary = finished
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    validated = [(row["val_accuracy"], row["step"]) for row in rows if "val_loss" in row]
    assert (summary["val_accuracy"], summary["best_step"]) == max(validated)
    experiment = train.build_experiment(config)
    like = _like(experiment.init_state())
    step, state, _ = Checkpoints(path / "checkpoints", max_to_keep=1).restore_best(like)
    assert step == summary["best_step"]
    # Every example of the test split, one by one, without the code that batches them.
    records = sources.open_source(config.dataset.name).records("test")
    images, labels = (np.stack(part) for part in zip(*records.examples(range(len(records)))))
    logits = experiment.model.apply({"params": state.params}, experiment.data.preprocess(images), train=False)
    assert np.mean(np.argmax(logits, -1) == labels) == pytest.approx(summary["test_accuracy"], abs=1e-6)


@pytest.mark.slow
def test_each_program_is_compiled_once_however_the_run_is_cut(tiny_config, tmp_path, monkeypatch):
    traced = []

    def counting(compile_steps):
        def wrapped(task, batch_fn, *arguments):
            def counted(inputs, step):
                traced.append(compile_steps.__name__)
                return batch_fn(inputs, step)

            return compile_steps(task, counted, *arguments)

        return wrapped

    for module, name in ((train, "compile_train_steps"), (evaluator, "compile_eval_steps")):
        monkeypatch.setattr(module, name, counting(getattr(module, name)))
    train.train(tiny_config, tmp_path / "run")
    # Training, validation, test: a program is traced anew whenever it is compiled anew.
    assert traced == ["compile_train_steps", "compile_eval_steps", "compile_eval_steps"]


def test_a_finished_run_says_so_and_trains_nothing(finished, capsys, monkeypatch):
    path, config, summary = finished
    monkeypatch.setattr(train, "build_experiment", lambda config: pytest.fail("nothing should be built"))
    assert train.train(config, path) == summary
    assert "finished" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_without_progress_lowers_the_learning_rate_and_ends_early_also_when_it_was_cut(tiny_config, tmp_path):
    """With a learning rate of 0 no validation is better than the first."""
    tiny_config.optimizer.learning_rate, tiny_config.schedule.name = 0.0, "constant"
    (
        tiny_config.reduce_on_plateau.factor,
        tiny_config.reduce_on_plateau.patience,
        tiny_config.early_stopping.patience,
    ) = 0.5, 1, 2
    tiny_config.checkpoint.best_metric = "loss"
    summary = train.train(tiny_config, tmp_path / "run")
    assert (summary["steps"], summary["epochs"]) == (33, 3)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [11, 22, 33, 33]
    (tmp_path / "run" / "summary.json").unlink()  # as if it had been killed before the test
    again = train.train(tiny_config, tmp_path / "run")
    assert {k: again[k] for k in ("steps", "test_loss", "best_step")} == {
        k: summary[k] for k in ("steps", "test_loss", "best_step")
    }


@pytest.mark.slow
def test_the_lowered_learning_rate_is_the_one_that_is_written(tiny_config, tmp_path, monkeypatch):
    """No gain is enough here: from the second validation on, each one halves the rate."""
    tiny_config.schedule.name, tiny_config.optimizer.learning_rate = "constant", 1e-7
    tiny_config.reduce_on_plateau.factor, tiny_config.reduce_on_plateau.patience = 0.5, 1
    monkeypatch.setattr(plateau.ReduceLROnPlateau, "min_delta", 1e6)
    train.train(tiny_config, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("learning_rate") for row in rows[:4]] == [1e-7, 1e-7, 5e-8, 2.5e-8]
    assert Checkpoints(tmp_path / "run" / "checkpoints").latest_step() == 44


def test_patience_without_a_validation_split_is_refused(tiny_config, tmp_path):
    tiny_config.dataset.val_split, tiny_config.early_stopping.patience = "none", 3
    with pytest.raises(UserError, match=r"config\.early_stopping\.patience watches the validation loss"):
        train.train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_configuration_is_refused_and_the_differing_keys_are_named(finished):
    path, config, _ = finished
    other = ml_collections.ConfigDict(config).copy_and_resolve_references()
    other.seed, other.optimizer.learning_rate = 7, 0.5
    with pytest.raises(UserError, match=r"optimizer.learning_rate: 0.01 there, 0.5 here; seed: 0 there, 7 here"):
        train.train(other, path)


@pytest.mark.slow
def test_one_and_eight_devices_give_the_same_metrics(tiny_config, tmp_path):
    tiny_config.model.dropout_rate = 0.1
    tiny_config.total_epochs = 1.0
    first = train.train(tiny_config, tmp_path / "one")
    tiny_config.mesh.data = 8
    eight = train.train(tiny_config, tmp_path / "eight")
    rows = [
        [json.loads(x) for x in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in ("one", "eight")
    ]
    assert rows[0][0]["train_loss"] == pytest.approx(rows[1][0]["train_loss"], abs=1e-4)  # the first epoch
    assert rows[0][0]["val_loss"] == pytest.approx(rows[1][0]["val_loss"], abs=1e-4)
    assert first["device"].startswith("1 x") and eight["device"].startswith("8 x")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_the_step_and_leaves_the_last_checkpoint(tiny_config, tmp_path, monkeypatch):
    tiny_config.checkpoint.save_interval_steps = 5
    healthy_step = train_step.train_step

    def failing_step(task, state, batch, lr_scale):
        batch = dict(batch, mask=batch["mask"] * jax.numpy.where(state.step == 17, np.nan, 1.0))
        return healthy_step(task, state, batch, lr_scale)

    monkeypatch.setattr(multi_step, "train_step", failing_step)
    with pytest.raises(
        RunError, match=r"at step 18 the loss.* stopped being finite; the checkpoint of step 15 is untouched"
    ):
        train.train(tiny_config, tmp_path / "run")
    assert Checkpoints(tmp_path / "run" / "checkpoints").latest_step() == 15
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
def test_a_disk_that_takes_no_more_ends_the_run_in_one_line(tiny_config, tmp_path):
    train.build_experiment(tiny_config)  # decoded images are cached by now
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises((RunError, OSError)) as caught:
            train.train(tiny_config, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    train.train(tiny_config, tmp_path / "run")  # with room again, the same command goes through
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
def test_a_run_in_another_thread_is_the_same(tiny_config, tmp_path):
    """Python lets only the main thread handle signals."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        summary = pool.submit(train.train, tiny_config, tmp_path / "thread").result()
    assert summary["test_loss"] == train.train(tiny_config, tmp_path / "main")["test_loss"]


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_read_is_named_kept_and_passed_over(tiny_config, tmp_path, capsys):
    straight = train.train(tiny_config, tmp_path / "straight")
    path = tmp_path / "run"
    train.train(tiny_config, path)
    (path / "summary.json").unlink()
    latest = path / "checkpoints" / "44"
    broken = [file for file in latest.rglob("*") if file.is_file() and file.stat().st_size > 500]
    for file in broken:
        file.write_bytes(file.read_bytes()[:100])
    again = train.train(tiny_config, path)
    message = capsys.readouterr().err
    assert f"checkpoint {latest} cannot be read" in message and "skipped and moved to" in message
    assert "Traceback" not in message
    assert (path / "checkpoints" / "unreadable" / "44").is_dir()
    assert again["test_loss"] == straight["test_loss"]


@pytest.mark.slow
def test_a_best_checkpoint_that_cannot_be_read_makes_way_for_the_next_best(tiny_config, tmp_path, capsys):
    path = tmp_path / "run"
    tiny_config.checkpoint.max_to_keep = 4
    best = train.train(tiny_config, path)["best_step"]
    (path / "summary.json").unlink()
    for file in (path / "checkpoints" / str(best) / "state").rglob("*"):
        if file.is_file() and file.stat().st_size > 500:
            file.write_bytes(file.read_bytes()[:100])
    again = train.train(tiny_config, path)
    assert f"{best} cannot be read" in capsys.readouterr().err
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    ranked = sorted((row["val_accuracy"], row["step"]) for row in rows if "val_loss" in row)
    # The latest is trained anew where it was the broken one, and is the best again; else the second best is taken.
    assert again["best_step"] == (ranked[-1][1] if best == 44 else ranked[-2][1])


@pytest.mark.slow
def test_a_run_does_not_continue_on_other_data(tiny_config, tmp_path):
    for label in ("a", "b"):
        for split, count in (("train", 20), ("test", 4)):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for i in range(count):
                picture = Image.new("L", (8, 8), 100 * (label == "b") + i)
                picture.save(tmp_path / "data" / split / label / f"{i}.png")
    tiny_config.dataset = config_lib.default_config(dataset=dict(name="folder", path=str(tmp_path / "data"))).dataset
    train.train(tiny_config, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "data" / "train" / "a" / "3.png").unlink()
    with pytest.raises(UserError, match=r"data have changed .*examples"):
        train.train(tiny_config, tmp_path / "run")


@pytest.mark.slow
def test_with_no_readable_checkpoint_nothing_is_started_over(tiny_config, tmp_path):
    path = tmp_path / "run"
    train.train(tiny_config, path)
    (path / "summary.json").unlink()
    files = sorted(file for file in (path / "checkpoints").rglob("*") if file.is_file())
    for file in files:
        file.write_bytes(b"")
    with pytest.raises(RunError, match=r"no checkpoint in .* can be read"):
        train.train(tiny_config, path)
    assert sorted(file for file in (path / "checkpoints").rglob("*") if file.is_file()) == files


@pytest.mark.slow
def test_without_validation_or_test_the_last_state_is_kept(tiny_config, tmp_path):
    tiny_config.dataset.val_split = tiny_config.dataset.test_split = "none"
    summary = train.train(tiny_config, tmp_path / "run")
    assert summary["best_step"] == summary["steps"] == 44
    assert not [key for key in summary if key.startswith(("val_", "test_"))]


@pytest.mark.slow
def test_every_known_key_is_read_by_a_run(tiny_config, tmp_path, monkeypatch):
    observed: set[str] = set()
    recording_now = [True]
    names = {id(tiny_config): ""} | {
        id(node): f"{key}." for key, node in tiny_config.items() if isinstance(node, ml_collections.ConfigDict)
    }
    full = {id(tiny_config.augment), id(tiny_config.model)}  # handed over to constructors that take no other key

    def recording(method):
        def wrapped(self, key, *rest):
            if recording_now[0] and id(self) in names:
                observed.add(names[id(self)] + str(key))
            return method(self, key, *rest)

        return wrapped

    for name in ("__getattr__", "__getitem__", "get"):
        monkeypatch.setattr(ml_collections.ConfigDict, name, recording(getattr(ml_collections.ConfigDict, name)))
    whole_config = config_lib.flatten

    def flatten_without_reading(config, prefix=""):  # to write, hash or compare it is not to act on it
        recording_now[0] = False
        try:
            return whole_config(config, prefix)
        finally:
            recording_now[0] = prefix == ""

    monkeypatch.setattr(config_lib, "flatten", flatten_without_reading)
    tiny_config.probes.names = ("knn",)
    train.train(tiny_config, tmp_path / "run")
    tiny_config.init.weights = str(tmp_path / "run")  # and what only a run from trained weights looks at
    train.train(tiny_config, tmp_path / "warm")
    for name in ("folder", "no_such_dataset"):  # what only other data sets look at
        tiny_config.dataset.name = name
        with pytest.raises(UserError):
            data_options(tiny_config).open_source()
    handed_over = {names[i] for i in full}
    tiny_config.published.accuracy = 0.9  # and what only claims, other schedules and optimizers look at
    published.compare(published.Published(**tiny_config.published), {"test_accuracy": 0.8})
    for tiny_config.schedule.name in ("step", "rsqrt"):
        tiny_config.schedule.step_every_epochs = 1.0 if tiny_config.schedule.name == "step" else None
        build_schedule(tiny_config, 10, 2)
    tiny_config.optimizer.name = "sgd"
    make_optimizer(**optimizer_options(tiny_config.optimizer), learning_rate=0.1, params={"kernel": np.zeros(1)})
    expected = {key for key in config_lib.known_keys() if not key.startswith(tuple(handed_over))}
    expected -= {"dataset.num_workers", "dataset.on_corrupt"}  # of streaming feeds: tests/data/test_data.py
    expected -= {"cpu.devices"}  # looked at before JAX finds its devices: tests/parallel/test_cpu.py
    assert expected - observed == set()
    assert {f"augment.{field.name}" for field in dataclasses.fields(Augment)} == {
        key for key in config_lib.known_keys() if key.startswith("augment.")
    }


@pytest.mark.slow
def test_metrics_of_the_same_split_do_not_depend_on_the_batch_size(tiny_config):
    actual = []
    for batch_size in (7, 64, 130):
        tiny_config.eval_batch_size = batch_size
        experiment = train.build_experiment(tiny_config)
        run = multi_step.compile_eval_steps(experiment.task, experiment.data.test.batch, experiment.mesh)
        inputs, count = experiment.data.test.step_inputs(0)
        metrics = run(experiment.init_state(), jax.tree.map(np.asarray, EvalMetrics.empty()), inputs, 0, count)
        assert int(metrics.loss.count) == 130
        actual.append({name: float(value) for name, value in metrics.compute().items()})
    assert actual[0] == pytest.approx(actual[1], abs=1e-5) == actual[2]


def _like(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


@pytest.mark.slow
@pytest.mark.parametrize("finished_first", [True, False])
def test_a_run_grows_and_with_a_constant_rate_is_one_that_was_as_long_from_the_start(
    tiny_config, tmp_path, capsys, monkeypatch, finished_first
):
    tiny_config.schedule.name = "constant"
    train.train(tiny_config, tmp_path / "straight")
    short = tiny_config.copy_and_resolve_references()
    short.total_epochs = 2.0
    train.train(short, tmp_path / "grown")
    if not finished_first:
        (tmp_path / "grown" / "summary.json").unlink()
    capsys.readouterr()
    train.train(tiny_config, tmp_path / "grown")
    out = capsys.readouterr().out
    assert "the run grows from 2 epochs to 44 steps" in out and "schedule is that of the longer run" not in out
    rows = [
        [{k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in path.open()]
        for path in (tmp_path / "grown" / "metrics.jsonl", tmp_path / "straight" / "metrics.jsonl")
    ]
    assert rows[0] == rows[1]
    assert (tmp_path / "grown" / "summary-1.json").exists() == finished_first
    assert json.loads((tmp_path / "grown" / "config.json").read_text())["total_epochs"] == 4.0
    with pytest.raises(UserError, match=r"total_epochs: 4\.0 there, 2\.0 here.*and only grow"):
        train.train(short, tmp_path / "grown")


@pytest.mark.slow
def test_growth_with_a_schedule_that_depends_on_the_length_says_so(tiny_config, tmp_path, capsys):
    tiny_config.schedule.name, tiny_config.total_epochs, tiny_config.total_steps = "cosine", None, 4
    train.train(tiny_config, tmp_path / "run")
    tiny_config.total_steps = 6
    train.train(tiny_config, tmp_path / "run")
    out = capsys.readouterr().out
    assert "the run grows from 4 steps to 6 steps" in out and "the cosine schedule is that of the longer run" in out
    assert "resuming from the checkpoint of step 4" in out
    tiny_config.seed = 9
    tiny_config.total_steps = 8
    with pytest.raises(UserError, match=r"seed: 0 there, 9 here"):
        train.train(tiny_config, tmp_path / "run")
