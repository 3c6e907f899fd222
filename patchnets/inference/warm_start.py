"""Start a run from trained weights, as `config.init` says."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
import numpy as np

from patchnets import config as config_lib
from patchnets.augment.preprocess import Preprocess
from patchnets.config.schema import KEYS
from patchnets.errors import RunError, UserError
from patchnets.experiment import Experiment
from patchnets.inference.load import load
from patchnets.inference.model import Model
from patchnets.models.resize_weights import resize_network
from patchnets.parallel import multihost
from patchnets.run.model_spec import FILE_NAME, ModelSpec, read_model_spec
from patchnets.run.workdir import read_json
from patchnets.weights.initialize import FILE_NAME as INIT_FILE
from patchnets.weights.initialize import Initialization, digest, initialize
from patchnets.weights.pretrained import read_pretrained


class RunData(Protocol):
    """What the start of a run depends on of its data; `class_names` is None if the names are not known."""

    @property
    def class_names(self) -> tuple[str, ...] | None: ...
    @property
    def channels(self) -> int: ...


def fields_of_weights(flat: Mapping[str, Any], workdir: pathlib.Path | None = None) -> dict[str, Any]:
    """Return {"model.depth": 12} of the network that a configuration leaves to its `init.weights`; empty for others.

    Fields that the configuration sets (`models.TRAINING_FIELDS`) are its own. With `init.resize=block_diagonal` a Mixer
    gets as many hidden units of token mixing as its weights will have.

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
    spec = read_model_spec(started) if started else read_pretrained(flat["init.weights"], flat.get("init.network")).spec
    if flat["model.name"] not in (KEYS["model.name"].default, spec.network):
        raise UserError(
            f"config.model.name={flat['model.name']}, and config.init.weights holds a {spec.network}; set the same, or "
            "leave it out"
        )
    fields = dict(spec.fields)
    if not started and "tokens_mlp_dim" in fields:
        trained: Any = spec.create_model()
        resized: Any = resize_network(trained, spec.image_size, flat["image_size"], flat["init.resize"])
        fields["tokens_mlp_dim"] = resized.tokens_mlp_dim
    own = {name: value for name, value in flat.items() if name.startswith("model.") and name != "model.name"}
    of_weights = {f"model.{name}": value for name, value in fields.items() if value is not None}
    return {"model.name": spec.network} | of_weights | own


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
    trained = _load_on_all(config.init.weights, config.init.network, stored is not None and _has_checkpoint(workdir))
    if trained is None:
        return None
    sha = digest(trained.variables)
    with multihost.errors_on_all():
        if stored is not None and stored.get("sha256") != sha:
            raise UserError(
                f"config.init.weights={config.init.weights} has changed since {workdir} was started from it; give "
                "another --workdir, restore the weights, or, to resume without them, move them away"
            )
        return fit_to_run(
            trained.spec,
            trained.variables,
            experiment.model,
            experiment.data,
            preprocess=experiment.data.preprocess,
            image_size=config.image_size,
            head=config.init.head,
            resize=config.init.resize,
            skip=config.init.skip,
            source=config.init.weights,
            sha256=sha,
            notes=trained.notes,
        )


def _load_on_all(source: str, network: str | None, needless: bool) -> Model | None:
    """Return the trained model; None if it is `needless` and cannot be read by all processes."""

    def attempt(read: Callable[..., Any]) -> Any:
        try:
            return read(source, network=network)
        except (UserError, RunError):
            if not needless:
                raise
            return None

    with multihost.errors_on_all():  # headers first, for all processes load a work directory together
        pretrained = attempt(read_pretrained)
    if multihost.first_false(pretrained is not None) is not None:
        return None
    trained = attempt(load)
    return trained if multihost.first_false(trained is not None) is None else None


def fit_to_run(
    spec: ModelSpec,
    variables: Mapping[str, Any],
    model: nn.Module,
    data: RunData,
    *,
    preprocess: Preprocess | None,
    image_size: int,
    head: str,
    notes: Sequence[str] = (),
    **options: Any,
) -> Initialization:
    """Return the variables with which a run of `model` starts, and the account of every parameter.

    Args:
      spec, variables: of the trained network.
      model: the network of the run.
      data: its data.
      preprocess: its preprocessing, to be compared with that of the weights; None if it is not known.
      image_size: side in pixels of its inputs.
      head: as `config.init.head`, of which "keep" needs the same classes.
      notes: lines on the weights, kept in the result.
      options: as for `initialize`.

    Raises:
      UserError: the weights do not fit.
    """
    if head == "keep" and data.class_names is not None:
        _check_same_classes(spec.classes, data.class_names)
    if preprocess is not None:
        notes = [*notes, *_compare_preprocessing(spec, preprocess)]
    return initialize(
        spec.network,
        spec.fields,
        variables,
        model,
        old_size=spec.image_size,
        image_size=image_size,
        channels=data.channels,
        head=head,
        notes=notes,
        **options,
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


def _check_same_classes(trained: Sequence[str], classes: Sequence[str]) -> None:
    """Raise UserError unless the head's outputs stand for the classes of the data, in their order."""
    for theirs, ours in zip((*trained, "none"), (*classes, "none")):
        if theirs != ours:
            raise UserError(
                f"config.init.head=keep: the weights have the class {theirs!r} where the data have {ours!r}; new or "
                "zeros takes any classes"
            )
