"""Models from work directories and exported folders."""

import functools
import json
import os
import pathlib
import sys
from typing import Any

import jax

from patchnets import config as config_lib
from patchnets.errors import RunError, UserError
from patchnets.experiment import build_experiment
from patchnets.inference.model import Model
from patchnets.run.checkpoints import Checkpoints
from patchnets.run.model_spec import FILE_NAME, ModelSpec, read_model_spec
from patchnets.runtime.files import refuse_url
from patchnets.step.train_state import init_variables
from patchnets.weights import folders


def load(source: str | os.PathLike[str], checkpoint: str | int = "best") -> Model:
    """Return the trained model in a work directory, or in an export of one for timm or as .npz.

    Args:
      source: a work directory, or an exported folder. Of one with model.json, neither data set nor configuration file
        is needed.
      checkpoint: "best" by validation, "latest", or the step of one that was kept.

    Raises:
      UserError: it is no such folder, or there is no such checkpoint.
      RunError: no checkpoint can be read, or the file of weights is broken.
    """
    refuse_url(source)
    directory = pathlib.Path(source).expanduser().absolute()
    try:
        spec = read_model_spec(directory)
    except FileNotFoundError:
        spec = _spec_of_older_run(directory)
    if folders.is_export(directory):
        if checkpoint != "best":
            raise UserError(f"{directory} holds one set of weights; leave out checkpoint={checkpoint}")
        return Model(spec, folders.read_variables(directory, spec), str(directory), folders.read_step(directory))
    step, variables = _restore_variables(directory, spec, checkpoint)
    return Model(spec, variables, str(directory), step)


def _restore_variables(directory: pathlib.Path, spec: ModelSpec, checkpoint: str | int) -> tuple[int, Any]:
    if not (directory / "checkpoints").is_dir():
        raise RunError(f"{directory} has no checkpoints")
    network = spec.create_model()
    init = functools.partial(init_variables, network, image_size=spec.image_size, channels=spec.channels)
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one_device), jax.eval_shape(init, jax.random.key(0))
    )
    checkpoints = Checkpoints(directory / "checkpoints", best_metric=spec.best_metric, read_only=True)
    try:
        return checkpoints.restore_variables(like, checkpoint, ema=spec.ema)
    finally:
        checkpoints.close()


def _spec_of_older_run(directory: pathlib.Path) -> ModelSpec:
    """Return the spec of a run from before model.json, for which its data have to be opened."""
    try:
        config = config_lib.from_saved(json.loads((directory / "config.json").read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
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
