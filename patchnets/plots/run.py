"""Compute the data of the plots of a run; the other modules draw them."""

import json
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from patchnets import config as config_lib
from patchnets.data.loader import Loader
from patchnets.errors import RunError, UserError, first_line
from patchnets.experiment import Experiment, build_experiment, use_cpu_cores
from patchnets.models import vit
from patchnets.models.intermediates import capture_intermediates
from patchnets.plots import curves, figures, patches, predictions, weights
from patchnets.plots.predictions import Predictions
from patchnets.run import console, workdir
from patchnets.run.checkpoints import Checkpoints
from patchnets.step.train_state import TrainState

EXAMPLES = 16  # test images over which attention is averaged
MISTAKES = 24


def predict(
    experiment: Experiment, state: TrainState, loader: Loader, stopped: Callable[[], bool] = lambda: False
) -> Predictions:
    """Return the predictions for every example of a split. Raises RunError once `stopped()` is true."""
    task, mistakes_per_batch = experiment.task, min(MISTAKES, loader.batch_size)

    @jax.jit
    def predict_batch(variables: Any, inputs: Any, step: jax.Array) -> tuple[jax.Array, ...]:
        batch = loader.batch(inputs, step)
        logits = jnp.asarray(task.model.apply(variables, task.preprocess(batch["image"]), train=False))
        probabilities = jax.nn.sigmoid(logits) if experiment.config.loss == "sigmoid" else jax.nn.softmax(logits)
        predicted, confidence = probabilities.argmax(axis=-1), probabilities.max(axis=-1)
        wrong = (predicted != batch["label"]) & (batch["mask"] > 0)
        worst = jax.lax.top_k(jnp.where(wrong, confidence, -1.0), mistakes_per_batch)[1]
        return batch["label"], predicted, confidence, batch["mask"] > 0, worst, batch["image"][worst]

    columns: list[list[np.ndarray]] = [[], [], []]
    mistaken: list[tuple[float, int, np.ndarray]] = []
    done = 0
    for step in range(loader.steps_per_epoch):
        if stopped():
            raise RunError("stopped by a signal")
        inputs, _ = loader.step_inputs(step)
        label, predicted, confidence, valid, worst, images = map(
            np.asarray, predict_batch(state.eval_variables, inputs, step)
        )
        row_of = np.cumsum(valid) - 1  # index among the valid examples
        mistaken += [
            (float(confidence[i]), done + int(row_of[i]), image)
            for i, image in zip(worst, images)
            if valid[i] and predicted[i] != label[i]
        ]
        mistaken = sorted(mistaken, key=lambda mistake: -mistake[0])[:MISTAKES]
        for column, values in zip(columns, (label, predicted, confidence)):
            column.append(values[valid])
        done += int(valid.sum())
    label, predicted, confidence = (np.concatenate(column) for column in columns)
    shape = (0, experiment.data.stored_size, experiment.data.stored_size, experiment.data.channels)
    shown = np.stack([image for *_, image in mistaken]) if mistaken else np.zeros(shape, np.uint8)
    split = "test" if loader is experiment.data.test else "validation"
    return Predictions(label, predicted, confidence, np.array([i for _, i, _ in mistaken], int), shown, split)


def sample(experiment: Experiment, loader: Loader, count: int = EXAMPLES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the first examples of a split: inputs of the network, the same images in [0, 1], and labels."""
    preprocess = experiment.data.preprocess

    @jax.jit
    def first_examples(inputs: Any) -> tuple[jax.Array, ...]:
        batch = loader.batch(inputs, jnp.int32(0))
        return preprocess(batch["image"][:count]), batch["label"][:count]

    images, labels = map(np.asarray, first_examples(loader.step_inputs(0)[0]))
    levels = images * np.asarray(preprocess.std, np.float32) + np.asarray(preprocess.mean, np.float32)
    return images, (levels / 255.0).clip(0.0, 1.0), labels


def mixing_of(experiment: Experiment, state: TrainState, images: np.ndarray) -> list[Any]:
    """Return the token mixing of each block as host arrays (see `capture_intermediates`)."""
    intermediates = jax.jit(lambda variables, images: capture_intermediates(experiment.model, variables, images))(
        state.eval_variables, images
    )
    mixing = {name: jax.device_get(value) for name, value in intermediates.items() if name.endswith("/mixing")}
    return [mixing[f"block_{i}/mixing"] for i in range(len(mixing))]


def grid_of(experiment: Experiment, params: Any) -> tuple[int, int]:
    """Return the number of rows and columns of patches."""
    height, width, *_ = params["stem"]["kernel"].shape
    return experiment.config.image_size // height, experiment.config.image_size // width


def positions_of(experiment: Experiment, params: Any) -> tuple[np.ndarray, str] | None:
    """Return the position embeddings, (patches, channels), without that of a class token, and their name for a title;
    None if there are none."""
    rows, columns = grid_of(experiment, params)
    if getattr(experiment.model, "posemb", None) == "sincos2d":
        return vit.sincos2d(rows, columns, params["stem"]["kernel"].shape[-1]), "Fixed position embeddings"
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        if re.search(r"pos(ition)?_embedding$", path):
            return np.asarray(leaf).reshape(-1, leaf.shape[-1])[-rows * columns :], "Learned position embeddings"
    return None


def pictures(
    experiment: Experiment, state: TrainState, stopped: Callable[[], bool] = lambda: False
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield (file name, function that returns the figure or None) of every plot but the learning curves."""
    params, names = jax.device_get(state.eval_variables["params"]), experiment.data.class_names
    loader = experiment.data.test or experiment.data.val
    grid, family = grid_of(experiment, params), experiment.config.model.name
    kernel = np.asarray(params["stem"]["kernel"], np.float32)
    yield "patch_filters", lambda: weights.patch_filters(kernel)
    if positions := positions_of(experiment, params):
        yield "position_similarity", lambda: weights.position_similarity(positions[0], grid, positions[1])
    if loader is None:
        return
    results: dict[str, Any] = {}

    def once(name: str, compute: Callable[[], Any]) -> Any:
        if name not in results:
            try:
                results[name] = compute()
            except Exception as error:  # several plots may need this; do not try again
                results[name] = error
        if isinstance(results[name], Exception):
            raise results[name]
        return results[name]

    def examples() -> Any:
        return once("sample", lambda: sample(experiment, loader))

    def mixing() -> Any:
        return once("mixing", lambda: mixing_of(experiment, state, examples()[0]))

    def predicted() -> Predictions:
        return once("predictions", lambda: predict(experiment, state, loader, stopped))

    yield (
        "patches",
        lambda: patches.image_and_patches(examples()[1][0], kernel.shape[:2], names[int(examples()[2][0])]),
    )
    yield "token_mixing", lambda: weights.token_mixing(mixing(), grid, family)
    if "convmixer" in family:
        yield "depthwise_kernels", lambda: weights.depthwise_kernels(mixing())
    yield "confusion", lambda: predictions.confusion(predicted(), names)
    yield "class_accuracy", lambda: predictions.per_class(predicted(), names)
    yield "mistakes", lambda: predictions.mistakes(predicted(), names)
    yield "calibration", lambda: predictions.calibration(predicted())


def draw(
    experiment: Experiment,
    state: TrainState,
    directory: pathlib.Path,
    say: Callable[[str], None],
    stopped: Callable[[], bool] = lambda: False,
) -> list[pathlib.Path]:
    """Draw all plots of a run into `directory`/plots and return their paths. Failures are passed to `say`."""
    drawn = []

    def attempt(name: str, make: Callable[[], pathlib.Path | None]) -> None:
        try:
            if (path := make()) is not None:
                drawn.append(path)
        except Exception as error:
            say(f"plots/{name}.png could not be drawn: {first_line(error)}")

    def draw_file(name: str, make_figure: Callable[[], Any]) -> pathlib.Path | None:
        figure = make_figure()
        return None if figure is None else figures.save(figure, directory / "plots" / f"{name}.png")

    attempt("learning_curves", lambda: curves.draw(directory))
    for name, make_figure in pictures(experiment, state, stopped):
        if stopped():
            say(f"stopped by a signal; draw the other plots with python -m patchnets.plots {directory}")
            break
        attempt(name, lambda: draw_file(name, make_figure))  # noqa: B023, because it is called at once
    return drawn


def load_run(directory: pathlib.Path, changes: dict[str, Any] | None = None) -> tuple[Experiment, TrainState]:
    """Return the experiment of a work directory and the state of its best checkpoint.

    Args:
      changes: configuration keys to override, such as dataset.data_dir if the data have moved.

    Raises:
      UserError: it is not a work directory, or its data are missing or have changed.
      RunError: it has no readable checkpoint.
    """
    try:
        config = config_lib.from_saved(json.loads((directory / "config.json").read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{directory} is not a work directory: it has no readable config.json") from error
    config.update_from_flattened_dict(changes or {})
    config_lib.validate(config)
    use_cpu_cores(config)
    experiment = build_experiment(config)
    stored = workdir.read_json(directory / "data.json")
    if changed := workdir.changed_data(stored, experiment.data.fingerprint):
        experiment.data.close()
        raise UserError(f"the data are not those of {directory} ({', '.join(changed)} differ from its data.json)")
    if not (directory / "checkpoints").is_dir():
        experiment.data.close()
        raise RunError(f"{directory} has no checkpoints")
    checkpoints = Checkpoints(directory / "checkpoints", best_metric=config.checkpoint.best_metric, read_only=True)
    try:
        return experiment, checkpoints.restore_best(experiment.abstract_state)[1]
    finally:
        checkpoints.close()


def draw_saved(directory: pathlib.Path, say: Callable[[str], None], changes: dict[str, Any]) -> list[pathlib.Path]:
    """Draw all plots of a work directory and return their paths. Raises as `load_run`."""
    experiment, state = load_run(directory, changes)
    try:
        return draw(experiment, state, directory, say)
    finally:
        experiment.data.close()


def draw_side_by_side(directories: list[pathlib.Path], out: pathlib.Path) -> pathlib.Path:
    """Plot the token mixing of several runs in one figure, and return its path."""
    networks: dict[str, Any] = {}
    for directory in directories:
        experiment, state = load_run(directory)
        try:
            loader = experiment.data.test or experiment.data.val or experiment.data.train
            blocks = mixing_of(experiment, state, sample(experiment, loader)[0])
            name = (
                f"{experiment.config.model.name}, "
                f"{console.epochs(float(state.step / experiment.data.train.steps_per_epoch))}"
            )
            repeats = sum(other.startswith(name) for other in networks)
            networks[f"{name} ({repeats + 1})" if repeats else name] = blocks, grid_of(experiment, state.params)
        finally:
            experiment.data.close()
    return figures.save(weights.side_by_side(networks), out)
