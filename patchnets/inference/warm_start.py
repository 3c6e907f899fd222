"""Start a run from trained weights, as `config.init` says."""

import functools
import pathlib
from typing import Any

from patchnets.errors import RunError, UserError
from patchnets.experiment import Experiment
from patchnets.inference.load import load
from patchnets.inference.model import Model
from patchnets.run.checkpoints import Checkpoints
from patchnets.run.model_spec import FILE_NAME, read_model_spec
from patchnets.run.workdir import read_json
from patchnets.weights.initialize import FILE_NAME as INIT_FILE
from patchnets.weights.initialize import Initialization, digest, initialize

_load = functools.lru_cache(maxsize=1)(load)  # for the network first, then for its weights


def network_of_weights(source: str, workdir: pathlib.Path) -> tuple[str, dict[str, Any]]:
    """Return name and fields of the network in `source`; in the work directory of a run that has started, its own.

    Raises:
      UserError, RunError: as `load`.
    """
    spec = read_model_spec(workdir) if (workdir / FILE_NAME).exists() else _load(source).spec
    fields = {name: value for name, value in spec.fields.items() if value is not None}
    return spec.network, fields


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
        trained = _load(config.init.weights)
    except (UserError, RunError):
        if stored is not None and _has_checkpoint(workdir):
            return None
        raise
    finally:
        _load.cache_clear()
    sha = digest(trained.variables)
    if stored is not None and stored.get("sha256") != sha:
        raise UserError(
            f"config.init.weights={config.init.weights} has changed since {workdir} was started from it; give another "
            "--workdir, or restore the weights"
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
    )


def _has_checkpoint(workdir: pathlib.Path) -> bool:
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    try:
        return checkpoints.latest_step() is not None
    finally:
        checkpoints.close()


def _check_same_classes(trained: Model, classes: tuple[str, ...]) -> None:
    """Raise UserError unless the head's outputs stand for the classes of the data, in their order."""
    for theirs, ours in zip((*trained.classes, "none"), (*classes, "none")):
        if theirs != ours:
            raise UserError(
                f"config.init.head=keep: the weights have the class {theirs!r} where the data have {ours!r}; new or "
                "zeros takes any classes"
            )
