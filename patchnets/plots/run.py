"""Compute what the plots of a run need; the other modules draw them."""

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
    """What the network says of every example of a split. Raises RunError where `stopped` says so meanwhile."""
    task, kept = experiment.task, min(MISTAKES, loader.batch_size)

    @jax.jit
    def of_batch(variables: Any, inputs: Any, step: jax.Array) -> tuple[jax.Array, ...]:
        batch = loader.batch(inputs, step)
        logits = jnp.asarray(task.model.apply(variables, task.preprocess(batch["image"]), train=False))
        probabilities = jax.nn.sigmoid(logits) if experiment.config.loss == "sigmoid" else jax.nn.softmax(logits)
        found, confidence = probabilities.argmax(axis=-1), probabilities.max(axis=-1)
        wrong = (found != batch["label"]) & (batch["mask"] > 0)
        worst = jax.lax.top_k(jnp.where(wrong, confidence, -1.0), kept)[1]
        return batch["label"], found, confidence, batch["mask"] > 0, worst, batch["image"][worst]

    columns: list[list[np.ndarray]] = [[], [], []]
    mistaken: list[tuple[float, int, np.ndarray]] = []
    done = 0
    for step in range(loader.steps_per_epoch):
        if stopped():
            raise RunError("a signal came")
        inputs, _ = loader.step_inputs(step)
        label, found, confidence, counts, worst, images = map(np.asarray, of_batch(state.eval_variables, inputs, step))
        row_of = np.cumsum(counts) - 1  # among the examples that count
        mistaken += [
            (float(confidence[i]), done + int(row_of[i]), image)
            for i, image in zip(worst, images)
            if counts[i] and found[i] != label[i]
        ]
        mistaken = sorted(mistaken, key=lambda one: -one[0])[:MISTAKES]
        for column, values in zip(columns, (label, found, confidence)):
            column.append(values[counts])
        done += int(counts.sum())
    label, found, confidence = (np.concatenate(column) for column in columns)
    shape = (0, experiment.data.stored_size, experiment.data.stored_size, experiment.data.channels)
    shown = np.stack([image for *_, image in mistaken]) if mistaken else np.zeros(shape, np.uint8)
    split = "test" if loader is experiment.data.test else "validation"
    return Predictions(label, found, confidence, np.array([i for _, i, _ in mistaken], int), shown, split)


def sample(experiment: Experiment, loader: Loader, count: int = EXAMPLES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first examples of a split: as the network gets them, the same in levels from 0 to 1, and their labels."""
    preprocess = experiment.data.preprocess

    @jax.jit
    def first(inputs: Any) -> tuple[jax.Array, ...]:
        batch = loader.batch(inputs, jnp.int32(0))
        return preprocess(batch["image"][:count]), batch["label"][:count]

    images, labels = map(np.asarray, first(loader.step_inputs(0)[0]))
    levels = images * np.asarray(preprocess.std, np.float32) + np.asarray(preprocess.mean, np.float32)
    return images, (levels / 255.0).clip(0.0, 1.0), labels


def mixing_of(experiment: Experiment, state: TrainState, images: np.ndarray) -> list[Any]:
    """Return the token mixing of each block as host arrays (see `capture_intermediates`)."""
    seen = jax.jit(lambda variables, images: capture_intermediates(experiment.model, variables, images))(
        state.eval_variables, images
    )
    found = {name: jax.device_get(value) for name, value in seen.items() if name.endswith("/mixing")}
    return [found[f"block_{i}/mixing"] for i in range(len(found))]


def grid_of(experiment: Experiment, params: Any) -> tuple[int, int]:
    """Rows and columns of patches."""
    height, width, *_ = params["stem"]["kernel"].shape
    return experiment.config.image_size // height, experiment.config.image_size // width


def positions_of(experiment: Experiment, params: Any) -> tuple[np.ndarray, str] | None:
    """The position embeddings, (patches, channels), a class token's left out, and what they are called; None where
    there are none."""
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
    """(name of the file, what makes the figure, or None for none) of every picture but the learning curves."""
    params, names = jax.device_get(state.eval_variables["params"]), experiment.data.class_names
    loader = experiment.data.test or experiment.data.val
    grid, family = grid_of(experiment, params), experiment.config.model.name
    kernel = np.asarray(params["stem"]["kernel"], np.float32)
    yield "patch_filters", lambda: weights.patch_filters(kernel)
    if positions := positions_of(experiment, params):
        yield "position_similarity", lambda: weights.position_similarity(positions[0], grid, positions[1])
    if loader is None:
        return
    seen: dict[str, Any] = {}

    def once(what: str, make: Callable[[], Any]) -> Any:
        if what not in seen:
            try:
                seen[what] = make()
            except Exception as error:  # what several pictures need is tried once
                seen[what] = error
        if isinstance(seen[what], Exception):
            raise seen[what]
        return seen[what]

    def examples() -> Any:
        return once("sample", lambda: sample(experiment, loader))

    def mixing() -> Any:
        return once("mixing", lambda: mixing_of(experiment, state, examples()[0]))

    def said() -> Predictions:
        return once("predictions", lambda: predict(experiment, state, loader, stopped))

    yield (
        "patches",
        lambda: patches.image_and_patches(examples()[1][0], kernel.shape[:2], names[int(examples()[2][0])]),
    )
    yield "token_mixing", lambda: weights.token_mixing(mixing(), grid, family)
    if "convmixer" in family:
        yield "depthwise_kernels", lambda: weights.depthwise_kernels(mixing())
    yield "confusion", lambda: predictions.confusion(said(), names)
    yield "class_accuracy", lambda: predictions.per_class(said(), names)
    yield "mistakes", lambda: predictions.mistakes(said(), names)
    yield "calibration", lambda: predictions.calibration(said())


def draw(
    experiment: Experiment,
    state: TrainState,
    place: pathlib.Path,
    say: Callable[[str], None],
    stopped: Callable[[], bool] = lambda: False,
) -> list[pathlib.Path]:
    """Draws all pictures of a run into `place`/plots; what cannot be drawn is told, and the others are."""
    drawn = []

    def attempt(name: str, make: Callable[[], pathlib.Path | None]) -> None:
        try:
            if (path := make()) is not None:
                drawn.append(path)
        except Exception as error:
            say(f"plots/{name}.png could not be drawn: {first_line(error)}")

    def into_file(name: str, figure: Callable[[], Any]) -> pathlib.Path | None:
        made = figure()
        return None if made is None else figures.save(made, place / "plots" / f"{name}.png")

    attempt("learning_curves", lambda: curves.draw(place))
    for name, figure in pictures(experiment, state, stopped):
        if stopped():
            say("a signal came: the other pictures are left to python -m patchnets.plots")
            break
        attempt(name, lambda: into_file(name, figure))  # noqa: B023, for it is called at once
    return drawn


def load_run(place: pathlib.Path, changes: dict[str, Any] | None = None) -> tuple[Experiment, TrainState]:
    """The plan of a work directory's run, and the state of its best checkpoint; `changes` are keys such as
    dataset.data_dir, for data that lie elsewhere now.

    Raises:
      UserError: it is no work directory, or its data cannot be had.
      RunError: it has no checkpoint that can be read.
    """
    try:
        config = config_lib.from_saved(json.loads((place / "config.json").read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{place} is not a work directory: there is no config.json in it that can be read") from error
    config.update_from_flattened_dict(changes or {})
    config_lib.validate(config)
    use_cpu_cores(config)
    experiment = build_experiment(config)
    stored = workdir.read_json(place / "data.json")
    if changed := [
        name for name in experiment.data.fingerprint if stored.get(name) != experiment.data.fingerprint[name]
    ]:
        experiment.data.close()
        raise UserError(f"these are not the data of {place} ({', '.join(changed)} differ from its data.json)")
    if not (place / "checkpoints").is_dir():
        experiment.data.close()
        raise RunError(f"{place} has no checkpoints")
    checkpoints = Checkpoints(place / "checkpoints", best_metric=config.checkpoint.best_metric, read_only=True)
    try:
        return experiment, checkpoints.restore_best(experiment.abstract_state())[1]
    finally:
        checkpoints.close()


def draw_saved(place: pathlib.Path, say: Callable[[str], None], changes: dict[str, Any]) -> list[pathlib.Path]:
    """Draws all pictures of a work directory; what it raises, `load_run` does."""
    experiment, state = load_run(place, changes)
    try:
        return draw(experiment, state, place, say)
    finally:
        experiment.data.close()


def draw_side_by_side(places: list[pathlib.Path], out: pathlib.Path) -> pathlib.Path:
    """Plot the token mixing of several runs in one figure, and return its path."""
    found: dict[str, Any] = {}
    for place in places:
        experiment, state = load_run(place)
        try:
            loader = experiment.data.test or experiment.data.val or experiment.data.train
            blocks = mixing_of(experiment, state, sample(experiment, loader)[0])
            name = (
                f"{experiment.config.model.name}, "
                f"{console.epochs(float(state.step / experiment.data.train.steps_per_epoch))}"
            )
            again = sum(other.startswith(name) for other in found)
            found[f"{name} ({again + 1})" if again else name] = blocks, grid_of(experiment, state.params)
        finally:
            experiment.data.close()
    return figures.save(weights.side_by_side(found), out)
