"""Runs that train the head alone, on features that are computed once."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from patchnets import runtime
from patchnets.data.on_device import OnDeviceLoader
from patchnets.errors import UserError, first_line
from patchnets.experiment import Experiment, data_options
from patchnets.optim.optimizers import frozen_params
from patchnets.param_rules import name_of
from patchnets.run import console
from patchnets.run.features import FeatureExtractor, SplitFeatures
from patchnets.run.model_spec import ModelSpec
from patchnets.runtime.files import atomic_path
from patchnets.runtime.format import format_bytes
from patchnets.step.head_steps import HEAD, head_task
from patchnets.step.task import wrap_grad_fn, wrap_logits_fn

RULES = '(("head/.*", False), (".*", True))'
DROPS = ("dropout_rate", "attention_dropout_rate", "drop_path_rate", "head_dropout_rate")


def keeps_features(experiment: Experiment) -> bool:
    """Return whether a run computes the inputs of its head once, and print why not if all but the head is frozen.

    Raises:
      UserError: config.frozen_features=once, and they would change.
    """
    choice = experiment.config.frozen_features
    if choice == "never":
        return False
    if not trains_head_only(experiment):
        if choice == "once":
            raise UserError(f"config.frozen_features=once needs config.optimizer.frozen={RULES}")
        return False
    reason = _why_not(experiment, choice)
    if reason is None:
        return True
    if choice == "once":
        raise UserError(f"config.frozen_features=once: {reason}")
    print(f"features of the frozen layers are computed in every step: {reason}", flush=True)
    return False


def trains_head_only(experiment: Experiment) -> bool:
    """Return whether exactly the parameters below the head are frozen."""
    frozen = frozen_params(experiment.config.optimizer.frozen, experiment.params)
    return all(
        freeze != name_of(path).startswith(f"{HEAD}/") for path, freeze in jax.tree_util.tree_leaves_with_path(frozen)
    )


def _why_not(experiment: Experiment, choice: str) -> str | None:
    """Return why the features of an image change in the run, or do not fit into memory; None if neither is so."""
    model = experiment.model
    augmented = console.describe_augmentation(experiment.data.preprocess.augment)
    if experiment.data.preprocess.augment or experiment.task.mix or experiment.task.erase:
        return f"augmentation changes the images ({augmented})"
    if choice == "auto" and (training_only := _differs_in_training(model)):
        return f"{training_only}; config.frozen_features=once takes them as in evaluation"
    variables = experiment.abstract_state
    width = FeatureExtractor(experiment).width({"params": variables.params, "batch_stats": variables.batch_stats})
    needed = 4 * width * sum(loader.num_examples for loader in experiment.data.loaders)
    allowed = data_options(experiment.config).allowed_bytes(experiment.mesh.size)
    if needed > allowed:
        return f"they take {format_bytes(needed)}, and config.dataset.max_on_device_gib allows {format_bytes(allowed)}"
    return None


def _differs_in_training(model: Any) -> str | None:
    """Return what a network does in training alone; None if nothing."""
    if rates := [name for name in DROPS if getattr(model, name, 0)]:
        return f"with config.model.{rates[0]}={getattr(model, rates[0]):g} they are random"
    if getattr(model, "survival_probability", 1) < 1:
        return f"with config.model.survival_probability={model.survival_probability:g} they are random"
    return "BatchNorm normalizes them by the batch" if hasattr(model, "batch_norm_momentum") else None


class FrozenFeatures:
    """Features of the splits of a run whose layers below the head are frozen: computed when first needed, and kept."""

    def __init__(self, experiment: Experiment, variables: Any, after_batch: Callable[[], None]):
        """`variables` are those of the network; the head does not matter. `after_batch` as for `FeatureExtractor`."""
        self._experiment, self._after_batch = experiment, after_batch
        self._variables = {
            "params": {name: tree for name, tree in variables["params"].items() if name != HEAD},
            "batch_stats": variables["batch_stats"],
        }
        self._extractor = FeatureExtractor(experiment)
        self.split = functools.cache(self._load_or_compute)

    @functools.cached_property
    def experiment(self) -> Experiment:
        """The run as one of the head on features; without a test split."""
        experiment = self._experiment
        config, mesh = experiment.config, experiment.mesh
        task = head_task(
            experiment.task,
            functools.partial(
                wrap_grad_fn,
                mesh=mesh,
                grad_accum_steps=config.grad_accum_steps,
                sam_rho=config.optimizer.sam_rho,
            ),
            functools.partial(wrap_logits_fn, mesh=mesh, num_microbatches=1),
        )
        data = experiment.data
        val = self.loader("val") if data.val else None
        data = dataclasses.replace(data, train=self.loader("train"), val=val, test=None)
        return dataclasses.replace(experiment, task=task, data=data)

    def loader(self, role: str) -> OnDeviceLoader:
        """Return a loader of features in the order in which the split's own has the images."""
        original: Any = self._extractor.loader(role)
        features, labels, valid = self.split(role)
        loader = OnDeviceLoader(
            features,
            labels,
            batch_size=original.batch_size,
            mesh=self._experiment.mesh,
            shuffle_seed=self._experiment.config.seed if role == "train" else None,
            sharded=getattr(original, "sharded", False),
            unreadable={int(i): "" for i in np.flatnonzero(~valid)},
        )
        loader.unreadable = frozenset(original.unreadable)
        return loader

    def _load_or_compute(self, role: str) -> SplitFeatures:
        """Return the features of a split: from the cache folder if they are there, else computed and written to it."""
        path = self._cache_path(role) if jax.process_count() == 1 else None
        if path and (cached := _read(path)):
            print(f"features of {role}: {len(cached.labels):,} from {path.parent}", flush=True)
            return cached
        began = time.monotonic()
        split = self._extractor.compute(
            self._variables, role, as_in_training=role == "train", after_batch=self._after_batch
        )
        seconds = time.monotonic() - began
        print(
            f"features of {role}: {split.features.shape[1]} of each of {len(split.labels):,} images in {seconds:.1f} s"
        )
        if path and split.valid.all():  # what cannot be read may be repaired
            _write(path, split)
        return split

    def _cache_path(self, role: str) -> pathlib.Path:
        """Return the file of a split's features; its name stands for everything that they depend on."""
        spec = ModelSpec.of_experiment(self._experiment).to_json()
        spec |= {"role": role, "backend": jax.default_backend(), "version": self._experiment.data.version}
        sha = hashlib.sha256(json.dumps(spec, sort_keys=True).encode())
        for name, value in jax.tree_util.tree_leaves_with_path(jax.device_get(self._variables)):
            sha.update(f"{name_of(name)} {value.shape}".encode())
            sha.update(np.ascontiguousarray(value).data)
        root = runtime.cache_root(self._experiment.config.dataset.cache_dir)
        return root / "features" / f"{sha.hexdigest()[:32]}.npz"


def _read(path: pathlib.Path) -> SplitFeatures | None:
    """Return features that were written; None if there are none, or they are damaged (a .npz has checksums)."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return SplitFeatures(*(arrays[name] for name in SplitFeatures._fields))
    except FileNotFoundError:
        return None
    except Exception:  # zipfile's and NumPy's, of which there are many
        print(f"{path} is damaged; computing the features again", file=sys.stderr)
        return None


def _write(path: pathlib.Path, split: SplitFeatures) -> None:
    """Write features atomically; if there is no room for them, say so and go on without."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial:
            np.savez(partial, **split._asdict())
    except OSError as error:
        print(f"{path.parent}: features are not kept on the disk ({first_line(error)})", file=sys.stderr)
