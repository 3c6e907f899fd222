"""Start a run from trained weights, as `config.init` says."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from patchnets import config as config_lib
from patchnets.augment.preprocess import Preprocess
from patchnets.config.schema import KEYS
from patchnets.errors import RunError, UserError
from patchnets.experiment import Experiment
from patchnets.inference.load import load
from patchnets.inference.model import Model
from patchnets.run.model_spec import FILE_NAME, ModelSpec, read_model_spec
from patchnets.run.workdir import read_json
from patchnets.weights.initialize import FILE_NAME as INIT_FILE
from patchnets.weights.initialize import Initialization, digest, initialize
from patchnets.weights.pretrained import read_pretrained


def fields_of_weights(flat: Mapping[str, Any], workdir: pathlib.Path | None = None) -> dict[str, Any]:
    """Return {"model.depth": 12} of the network that a configuration leaves to its `init.weights`; empty for others.

    Args:
      flat: the configuration, as of `config.flatten`.
      workdir: of the run; if it has started there, its own network counts.

    Raises:
      UserError: the source cannot be used, or is of another network than model.name.
      RunError: the source cannot be read.
    """
    if not config_lib.network_of_weights(flat):
        return {}
    started = workdir if workdir is not None and (workdir / FILE_NAME).exists() else None
    spec = read_model_spec(started) if started else read_pretrained(flat["init.weights"]).spec
    if flat["model.name"] not in (KEYS["model.name"].default, spec.network):
        raise UserError(
            f"config.model.name={flat['model.name']}, and config.init.weights holds a {spec.network}; set the same, or "
            "leave it out"
        )
    fields = {f"model.{name}": value for name, value in spec.fields.items() if value is not None}
    return {"model.name": spec.network} | fields


def warm_start(experiment: Experiment, workdir: pathlib.Path) -> Initialization | None:
    """Return the variables with which a run starts, of `config.init.weights`.

    A run that has a checkpoint does not need the source; None if it is gone. If it is there, it must be the one that
    the run started from.

    Raises:
      UserError: the source cannot be used, does not fit the network, or has changed since the run started.
      RunError: the source cannot be read.
    """
    config = experiment.config
    stored = read_json(workdir / INIT_FILE) if (workdir / INIT_FILE).exists() else None
    try:
        trained = load(config.init.weights)
    except (UserError, RunError):
        if stored is not None and _has_checkpoint(workdir):
            return None
        raise
    sha = digest(trained.variables)
    if stored is not None and stored.get("sha256") != sha:
        raise UserError(
            f"config.init.weights={config.init.weights} has changed since {workdir} was started from it; give another "
            "--workdir, restore the weights, or, to resume without them, move them away"
        )
    if config.init.head == "keep":
        _check_same_classes(trained, experiment.data.class_names)
    return initialize(
        trained.spec.network,
        trained.spec.fields,
        trained.variables,
        experiment.model,
        old_size=trained.spec.image_size,
        image_size=config.image_size,
        channels=experiment.data.channels,
        head=config.init.head,
        resize=config.init.resize,
        skip=config.init.skip,
        source=config.init.weights,
        sha256=sha,
        notes=[*trained.notes, *_compare_preprocessing(trained.spec, experiment.data.preprocess)],
    )


def _compare_preprocessing(spec: ModelSpec, preprocess: Preprocess) -> list[str]:
    """Return a line if the network is to get inputs of another mean or deviation than it was trained with."""
    before, now = (tuple(zip(x.mean, x.std)) for x in (spec, preprocess))
    if len(before) != len(now) or np.allclose(before, now, rtol=1e-3, atol=0.1):
        return []
    mean, std = ("(" + ", ".join(f"{value / 255:.3f}" for value in values) + ")" for values in (spec.mean, spec.std))
    return [f"note: the weights were trained on inputs of mean {mean} and deviation {std}; config.normalize is another"]


def _has_checkpoint(workdir: pathlib.Path) -> bool:
    """Return whether a run has saved its state: without opening it, for this process may be alone in doing so."""
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("[0-9]*"))


def _check_same_classes(trained: Model, classes: tuple[str, ...]) -> None:
    """Raise UserError unless the head's outputs stand for the classes of the data, in their order."""
    for theirs, ours in zip((*trained.classes, "none"), (*classes, "none")):
        if theirs != ours:
            raise UserError(
                f"config.init.head=keep: the weights have the class {theirs!r} where the data have {ours!r}; new or "
                "zeros takes any classes"
            )
