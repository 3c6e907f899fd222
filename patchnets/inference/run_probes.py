"""Probes of the network that a run trains, on the run's own splits."""

import dataclasses
from collections.abc import Callable
from typing import Any

from patchnets.errors import UserError
from patchnets.experiment import Experiment
from patchnets.inference.probes import LabeledFeatures, ProbeResult, ProbeSettings, run_probes
from patchnets.run.features import FeatureExtractor, SplitFeatures
from patchnets.run.frozen_features import FrozenFeatures


class RunProbes:
    """The probes of `config.probes`, fitted to features of the training split.

    Attributes:
      every: validations from one probe to the next while the run trains; None for none.
      role: the split on which they are tested at the end: test, or val if there is no test split.
    """

    def __init__(self, experiment: Experiment):
        """Raise UserError if a split is missing, or the training images cannot be had as in evaluation."""
        config, data = experiment.config, experiment.data
        options = config.probes.to_dict()
        self.every: int | None = options.pop("every_validations")
        self._settings = ProbeSettings(seed=config.seed, **options)
        self._experiment, self._extractor = experiment, FeatureExtractor(experiment)
        self._reuses_train = config.crop_pct == 1  # else training does not take the center of images
        self.role = "test" if data.test else "val"
        names = self._settings.names
        if data.val is None and (data.test is None or self.every or "linear" in names):
            key = f"every_validations={self.every}" if self.every else f"names={','.join(names)}"
            raise UserError(f"config.probes.{key} needs a validation split; set config.dataset.val_split")
        if data.num_classes < 2 and "linear" in names:
            raise UserError(
                "config.probes.names=linear needs two classes at least, and the data have one; leave it out"
            )
        if data.test is None and "linear" in names:
            raise UserError("config.probes.names=linear needs a test split; set config.dataset.test_split")
        if data.loader == "streaming" and (config.augment.crop_scale_min < 1 or config.crop_pct < 1):
            raise UserError(
                "config.probes.names needs training images as in evaluation, and these are cropped while streaming; "
                "use python -m patchnets.evaluate --probe after the run, or config.dataset.loader=on_device"
            )

    def at_end(
        self, variables: Any, frozen: FrozenFeatures | None, after_batch: Callable[[], None]
    ) -> tuple[list[ProbeResult], list[str]]:
        """Return the results on `role`, and lines on what was left out.

        Args:
          variables: {"params", "batch_stats"} of the network.
          frozen: features that the run keeps, if it does.
          after_batch: called after every batch; it may raise to stop.
        """
        return self._run(self._settings, variables, self.role, frozen, after_batch)

    def at_validation(
        self, number: int, variables: Any, frozen: FrozenFeatures | None, after_batch: Callable[[], None]
    ) -> list[ProbeResult]:
        """Return the results on validation of knn and fewshot; none unless they are due at validation `number`."""
        if self.every is None or number % self.every:
            return []
        names = [name for name in self._settings.names if name != "linear"]  # its choice is made on validation
        settings = dataclasses.replace(self._settings, names=names)
        return self._run(settings, variables, "val", frozen, after_batch)[0]

    def _run(
        self,
        settings: ProbeSettings,
        variables: Any,
        role: str,
        frozen: FrozenFeatures | None,
        after_batch: Callable[[], None],
    ) -> tuple[list[ProbeResult], list[str]]:
        def labeled(role: str) -> LabeledFeatures:
            split = self._split(variables, role, frozen, after_batch)
            return LabeledFeatures(split.features[split.valid], split.labels[split.valid])

        val = labeled("val") if "linear" in settings.names else None
        return run_probes(settings, labeled("train"), labeled(role), val)

    def _split(
        self, variables: Any, role: str, frozen: FrozenFeatures | None, after_batch: Callable[[], None]
    ) -> SplitFeatures:
        if frozen is not None and (role != "train" or self._reuses_train):
            return frozen.split(role)
        return self._extractor.compute(variables, role, after_batch=after_batch)
