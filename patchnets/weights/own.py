"""Weights of patchnets itself: work directories and exported folders."""

import functools
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from patchnets import config as config_lib
from patchnets.errors import RunError, UserError
from patchnets.experiment import build_experiment
from patchnets.models.blocks import unstack_blocks
from patchnets.run.checkpoints import Checkpoints
from patchnets.run.model_spec import FILE_NAME, ModelSpec, read_model_spec
from patchnets.step.train_state import init_variables
from patchnets.weights import files, folders
from patchnets.weights.layout import Pretrained, Variables


def is_own(directory: pathlib.Path) -> bool:
    """Return whether a folder is a work directory or an exported folder."""
    return (directory / FILE_NAME).is_file() or (directory / "checkpoints").is_dir()


def read(directory: pathlib.Path, checkpoint: str | int = "best") -> Pretrained:
    """Return the weights in a work directory, or in an exported folder.

    Args:
      directory: an absolute path.
      checkpoint: "best" by validation, "latest", or the step of one that was kept.

    Raises:
      UserError: it is no such folder, or an exported program; or an export, and `checkpoint` is not "best".
      RunError: there are no checkpoints, or the header of the file of weights is broken.
    """
    try:
        spec = read_model_spec(directory)
    except FileNotFoundError:
        spec = _spec_of_older_run(directory)
    common: dict[str, Any] = dict(spec=spec, source=str(directory), path=directory)
    if folders.is_export(directory):
        if checkpoint != "best":
            raise UserError(f"{directory} holds one set of weights; leave out checkpoint={checkpoint}")
        file = folders.weights_file(directory)
        header = files.read_header(file)
        folders.check_sizes(file, header, spec)
        return Pretrained(
            layout="patchnets (export)",
            file=file,
            header=header,
            load=lambda: _export(directory, spec),
            **common,
        )
    if not (directory / "checkpoints").is_dir():
        raise RunError(f"{directory} has no checkpoints")
    tree = traverse_util.flatten_dict(unstack_blocks(_abstract(spec)), sep="/")
    header = {name: (leaf.shape, leaf.dtype.name) for name, leaf in tree.items()}
    return Pretrained(
        layout="patchnets (work directory)",
        file=None,
        header=header,
        load=lambda: _restore(directory, spec, checkpoint),
        **common,
    )


def _export(directory: pathlib.Path, spec: ModelSpec) -> tuple[Variables, int | None]:
    variables = folders.read_variables(directory, spec)
    return _unstacked(variables), folders.read_step(directory)


def _unstacked(variables: Any) -> Variables:
    return {"batch_stats": {}} | jax.tree.map(np.asarray, unstack_blocks(jax.device_get(variables)))


def _abstract(spec: ModelSpec) -> Any:
    """Return shapes and types of a network's variables."""
    network = spec.create_model()
    init = functools.partial(init_variables, network, image_size=spec.image_size, channels=spec.channels)
    return jax.eval_shape(init, jax.random.key(0))


def _restore(directory: pathlib.Path, spec: ModelSpec, checkpoint: str | int) -> tuple[Variables, int]:
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one_device), _abstract(spec))
    checkpoints = Checkpoints(directory / "checkpoints", best_metric=spec.best_metric, read_only=True)
    try:
        step, variables = checkpoints.restore_variables(like, checkpoint, ema=spec.ema)
        return _unstacked(variables), step
    finally:
        checkpoints.close()


def _spec_of_older_run(directory: pathlib.Path) -> ModelSpec:
    """Return the spec of a run from before model.json, for which its data have to be opened."""
    try:
        config = config_lib.from_saved(json.loads((directory / "config.json").read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{directory} is no work directory: there is neither {FILE_NAME} nor a config.json in it that can be read"
        ) from error
    print(f"{directory} has no {FILE_NAME}; opening its data set for classes and preprocessing", file=sys.stderr)
    config.mesh.data, config.mesh.fsdp = 1, 1  # whatever batches and devices the run had
    experiment = build_experiment(config)
    try:
        return ModelSpec.of_experiment(experiment)
    finally:
        experiment.data.close()
