"""The inputs of the head for all examples of a split."""

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float32, Int32
from tqdm import tqdm

from patchnets.data.loader import Loader
from patchnets.data.order import epoch_order
from patchnets.experiment import Experiment
from patchnets.parallel import cpu, sharding
from patchnets.parallel.mesh import BATCH_AXES
from patchnets.step.task import wrap_logits_fn


class SplitFeatures(NamedTuple):
    """Features of a split in the order in which it is stored; `valid` is False for examples that cannot be read."""

    features: Float32[np.ndarray, "examples width"]
    labels: Int32[np.ndarray, " examples"]
    valid: Bool[np.ndarray, " examples"]


class FeatureExtractor:
    """The network of a run without its head, in evaluation mode."""

    def __init__(self, experiment: Experiment):
        self._experiment = experiment
        self._backbone: Any = experiment.model.clone(num_classes=0)
        self._batch_fn = functools.cache(self._make_batch_fn)
        self._features_fn = functools.cache(self._make_features_fn)

    def loader(self, role: str) -> Loader:
        """Return the loader of the train, val or test split, which there must be."""
        loader = getattr(self._experiment.data, role)
        assert loader is not None
        return loader

    def width(self, variables: Any) -> int:
        """Return the number of features."""
        config, channels = self._experiment.config, self._experiment.data.channels
        image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, channels), np.float32)
        return jax.eval_shape(lambda v, x: self._backbone.apply(v, x, train=False), variables, image).shape[-1]

    def compute(
        self,
        variables: Any,
        role: str,
        *,
        as_in_training: bool = False,
        after_batch: Callable[[], None] = lambda: None,
    ) -> SplitFeatures:
        """Return the features of the train, val or test split.

        Args:
          variables: {"params", "batch_stats"} of the network.
          as_in_training: preprocess images as a training step without augmentation does: without a center crop.
          after_batch: called after every batch; it may raise to stop.
        """
        loader = self.loader(role)
        batch_fn = self._batch_fn(role)
        as_in_training = as_in_training and self._experiment.config.crop_pct < 1  # else both are the same program
        features_fn = self._features_fn(loader.batch_size, as_in_training)
        rows: list[tuple[np.ndarray, ...]] = []
        steps = tqdm(range(loader.steps_per_epoch), f"features of {role}", disable=None, leave=False, file=sys.stderr)
        for step in steps:
            batch = batch_fn(loader.step_inputs(step)[0], step)
            columns = features_fn(variables, batch["image"]), batch["label"], batch["mask"]
            rows.append(tuple(map(np.asarray, columns)))
            after_batch()
        loader.close()
        features, labels, mask = (np.concatenate(column)[: loader.num_examples] for column in zip(*rows))
        if role != "train":
            return SplitFeatures(features, labels, mask > 0)
        stored = np.argsort(epoch_order(self._experiment.config.seed, 0, loader.num_examples))
        return SplitFeatures(features[stored], labels[stored], mask[stored] > 0)

    def _make_batch_fn(self, role: str) -> Any:
        """Return the compiled function (inputs of the loader, step) -> batch, its images split over the devices."""
        mesh = self._experiment.mesh
        replicated = sharding.replicated(mesh)
        layout = {"image": NamedSharding(mesh, PartitionSpec(BATCH_AXES)), "label": replicated, "mask": replicated}
        return jax.jit(self.loader(role).batch, out_shardings=layout)

    def _make_features_fn(self, batch_size: int, as_in_training: bool) -> Any:
        """Return the compiled function (variables, stored images of a batch) -> features."""
        experiment, mesh = self._experiment, self._experiment.mesh
        key = jax.random.key(0) if as_in_training else None

        def features_fn(variables: Any, images: Array) -> Array:
            return self._backbone.apply(variables, experiment.task.preprocess(images, key), train=False)

        count = cpu.num_microbatches(
            experiment.model, experiment.params, experiment.config.image_size, batch_size, mesh.size, train=False
        )
        wrapped = wrap_logits_fn(features_fn, mesh=mesh, num_microbatches=count)
        return jax.jit(wrapped, out_shardings=sharding.replicated(mesh))
