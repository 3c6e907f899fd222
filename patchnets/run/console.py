"""Terminal output of a run: header, progress, metrics, summary."""

import dataclasses
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from tqdm import tqdm

from patchnets import __version__, models
from patchnets import config as config_lib
from patchnets.augment.preprocess import Augment
from patchnets.config import published
from patchnets.experiment import Experiment
from patchnets.optim.plateau import EarlyStopping, ReduceLROnPlateau
from patchnets.run.step_timer import StepTimer
from patchnets.runtime.format import format_duration

SETTLED_SECONDS = 1.0  # of training, before its speed is printed


def epochs(count: float) -> str:
    """Format a number of epochs: 1.0 -> "1 epoch", 2.5 -> "2.5 epochs"."""
    return f"{count:.4g} epoch" + ("" if count == 1 else "s")


def device_name() -> str:
    """Return the kind of JAX's devices: "NVIDIA H200 (gpu)", or "cpu"."""
    device = jax.devices()[0]
    return device.platform if device.device_kind == device.platform else f"{device.device_kind} ({device.platform})"


def devices(count: int) -> str:
    """Return "8 x NVIDIA H200 (gpu)", followed by " in N processes" if there are several."""
    processes = jax.process_count()
    return f"{count} x {device_name()}" + (f" in {processes} processes" if processes > 1 else "")


def describe_cpu(devices: int, batch_size: int, num_microbatches: int) -> str | None:
    """Return how a CPU splits a training batch: "2 devices, microbatches of 16"; None on an accelerator."""
    if jax.default_backend() != "cpu":
        return None
    microbatches = f"microbatches of {batch_size // num_microbatches}"
    text = f"{devices} device" + ("" if devices == 1 else "s")
    return f"{text}, {microbatches if num_microbatches > 1 else 'the whole batch at once'}"


def describe_plateau(reduce_lr: ReduceLROnPlateau, early_stopping: EarlyStopping) -> str:
    """Return the actions on a plateau of the validation loss, to be appended to `describe_optimizer`."""
    text = ""
    if reduce_lr.patience:
        text += f"; learning rate x {reduce_lr.factor:g} after {validations(reduce_lr.patience)} without lower loss"
    if early_stopping.patience:
        text += f"; stops after {validations(early_stopping.patience)} without lower loss"
    return text


def validations(count: int) -> str:
    return f"{count} validation" + ("" if count == 1 else "s")


def describe_optimizer(experiment: Experiment) -> str:
    """Return optimizer, learning rate, schedule and weight decay in a line, such as "adamw, learning rate 0.001 cosine
    after a warm-up of 5 epochs, decay 0.1 of all"."""
    optimizer, schedule = experiment.config.optimizer, experiment.config.schedule
    text = f"{optimizer.name}, learning rate {optimizer.learning_rate:g} {schedule.name}"
    for name, words in (("warmup", "after a warm-up of"), ("cooldown", "with a cooldown of")):
        if steps := schedule[f"{name}_steps"]:
            text += f" {words} {steps:,} steps"
        elif count := schedule[f"{name}_epochs"]:
            text += f" {words} {epochs(count)}"
    decaying = "by rules" if optimizer.wd_mults else {"all": "of all", "kernels": "of kernels"}[optimizer.wd_mask]
    return text + (f", decay {optimizer.weight_decay:g} {decaying}" if optimizer.weight_decay else ", no decay")


def describe_extras(experiment: Experiment) -> str:
    """Return the loss and the regularization that differ from the defaults, in one line; empty if none do."""
    config = experiment.config
    texts = {
        f"{config.loss} loss": config.loss != "softmax",
        f"head bias initialized to {config.init_head_bias:g}": config.init_head_bias,
        "learning rates by rules": config.optimizer.lr_mults,
        f"learning rates x {config.optimizer.layer_decay} from layer to layer down": config.optimizer.layer_decay,
        "some parameters frozen": config.optimizer.frozen,
        f"label smoothing {config.label_smoothing:g}": config.label_smoothing,
        f"gradients clipped to norm {config.optimizer.grad_clip_norm or 0:g}": config.optimizer.grad_clip_norm,
        f"SAM radius {config.optimizer.sam_rho or 0:g}": config.optimizer.sam_rho,
        f"gradients accumulated over {config.grad_accum_steps} microbatches": config.grad_accum_steps > 1,
        f"evaluated with an EMA of decay {config.ema_decay or 0:g}": config.ema_decay,
    }
    return ", ".join(text for text, enabled in texts.items() if enabled)


def describe_augmentation(augment: Augment) -> str:
    """Return the settings that differ from their defaults: "flip, zoom 0.2"."""
    defaults = dataclasses.asdict(Augment())
    changed = {name: value for name, value in dataclasses.asdict(augment).items() if value != defaults[name]}
    return ", ".join(name if value is True else f"{name} {value}" for name, value in changed.items())


def print_initialization(source: str, lines: Sequence[str]) -> None:
    """Print what a run takes of trained weights."""
    print(f"  weights  {source}: {lines[0]}")
    for line in lines[1:]:
        print(f"           {line}")


def print_header(experiment: Experiment, workdir: os.PathLike[str], params: int, overview: str) -> None:
    """Print devices, data, model and recipe. `params` is the number of parameters, `overview` the table of them."""
    config, data = experiment.config, experiment.data
    loaders = {"train": data.train, "val": data.val, "test": data.test}
    counts = ", ".join(
        f"{role} {loader.num_examples:,} ({data.split_specs[role]})" for role, loader in loaders.items() if loader
    )
    size, stored = config.image_size, data.stored_size
    shown = f"{size} px" if size == stored else f"{stored} px, resized to {size} px"
    shown += ", read while training" if data.loader == "streaming" else ""
    variant = f" {config.model.variant}" if config.model.variant else ""
    fields = ", ".join(f"{k} {v}" for k, v in models.resolve_fields(**config.model).items())
    per_epoch = data.train.steps_per_epoch
    print(overview)
    print(f"patchnets {__version__} on JAX {jax.__version__}, {devices(experiment.mesh.size)}")
    print(f"  data     {data.name}: {counts}; {len(data.class_names)} classes; {shown}, {data.channels} channel(s)")
    print(f"  model    {config.model.name}{variant}: {params:,} parameters; {fields}")
    total = experiment.total_steps
    print(
        f"  run      {total:,} steps of {config.batch_size} images ({epochs(total / per_epoch)} of "
        f"{per_epoch:,}); validated and saved every {experiment.eval_every:,} steps"
    )
    if cpu := describe_cpu(experiment.mesh.size, config.batch_size, experiment.num_microbatches):
        print(f"  cpu      {cpu}")
    plateau = describe_plateau(experiment.reduce_on_plateau, experiment.early_stopping)
    print(f"  recipe   {describe_optimizer(experiment)}{plateau}")
    if more := describe_extras(experiment):
        print(f"           {more}")
    if augmented := describe_augmentation(data.preprocess.augment):
        print(f"  augment  {augmented}")
    if target := published.describe(experiment.published):
        print(f"  target   {target}")
    print(f"  config   {config_lib.config_hash(config_lib.flatten(config))}")
    print(f"  workdir  {workdir}", flush=True)


def print_growth(former: str, experiment: Experiment) -> None:
    """Print that a run became longer than `former`, and what that means for its schedule."""
    schedule = experiment.config.schedule
    print(f"the run grows from {former} to {experiment.total_steps:,} steps", flush=True)
    if schedule.name not in ("constant", "step") or schedule.cooldown_epochs or schedule.cooldown_steps:
        print(
            f"  the {schedule.name} schedule is that of the longer run from here on; the steps before followed the "
            "shorter one, so the figures are not those of a run that was as long from the start",
            flush=True,
        )


def describe_probes(metrics: Mapping[str, Any], before: str) -> str:
    """Return the accuracies of probes among metrics, each after `before`: " | knn 93.20% | fewshot_5 80.10%"."""
    probes = {name: value for name, value in metrics.items() if re.fullmatch(r"knn|fewshot_\d+|linear", name)}
    return "".join(f"{before}{name} {value:.2%}" for name, value in probes.items())


class ProgressBar:
    """Progress bar on a terminal, plain lines elsewhere. `write` prints a line without breaking the bar."""

    def __init__(self, total_steps: int, initial_step: int, batch_size: int):
        self._total_steps, self._step, self._batch_size = total_steps, initial_step, batch_size
        self._bar: tqdm = tqdm(disable=True)
        self._announced = False

    def __enter__(self) -> "ProgressBar":
        self._bar = tqdm(
            total=self._total_steps,
            initial=self._step,
            unit="step",
            desc="training",
            disable=None,
            dynamic_ncols=True,
            smoothing=0.05,
            leave=False,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def advance(self, step: int, timer: StepTimer) -> None:
        """Move to `step`, and show the speed; once it has settled, print it with the time left."""
        self._bar.update(step - self._step)
        self._step, images_per_second = step, timer.images_per_second
        if images_per_second is None:
            return
        self._bar.set_postfix_str(f"{images_per_second:,.0f} images/s")
        if not self._announced and timer.seconds > SETTLED_SECONDS:
            self._announced = True
            left = (self._total_steps - step) * self._batch_size / images_per_second
            self.write(
                f"training at {images_per_second:,.0f} images/s: about {format_duration(left)} left, "
                "excluding evaluation"
            )

    def metrics(self, row: Mapping[str, float]) -> None:
        """Print one line of metrics."""
        text = f"epoch {row['epoch']:7.2f}  step {row['step']:>7,}"
        for role in ("train", "val"):
            if f"{role}_loss" in row:
                text += f" | {role} loss {row[f'{role}_loss']:.4f} top-1 {row[f'{role}_accuracy']:6.2%}"
        if "val_loss" in row:
            text += f" top-5 {row['val_top5_accuracy']:6.2%}"
        text += describe_probes({name.removeprefix("val_"): value for name, value in row.items()}, " | ")
        if "images_per_second" in row:
            text += f" | {row['images_per_second']:,.0f} images/s"
        self.write(text)

    def write(self, text: str) -> None:
        self._bar.clear()
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
        self._bar.refresh()


def print_summary(summary: Mapping[str, Any], workdir: os.PathLike[str]) -> None:
    """Print the results of a finished run."""
    best = f"checkpoint of step {summary['best_step']:,}"
    if "val_accuracy" in summary:
        best = f"best {best}: val top-1 {summary['val_accuracy']:.2%} top-5 {summary['val_top5_accuracy']:.2%}"
    print(f"  kept     {best}")
    if "test_accuracy" in summary:
        print(
            f"  test     top-1 {summary['test_accuracy']:.2%}  top-5 {summary['test_top5_accuracy']:.2%}  "
            f"loss {summary['test_loss']:.4f}"
        )
    else:
        print("  test     none: there is no test split")
    role = "test" if "test_accuracy" in summary else "val"
    if probes := describe_probes({name.removeprefix(f"{role}_"): value for name, value in summary.items()}, "  "):
        print(f"  probes {probes} of {role}")
    if "published" in summary:
        print(f"  target   {published.describe_comparison(summary['published'])}")
    if summary.get("skipped_records"):
        print(f"  skipped  {summary['skipped_records']:,} records that could not be read")
    rate = f", {summary['images_per_second']:,.0f} images/s" if summary.get("images_per_second") else ""
    length = f"{epochs(summary['epochs'])}, {summary['steps']:,} steps"
    print(f"  took     {format_duration(summary['wall_seconds'])} for {length}{rate}")
    plots = ", plots/" if os.path.isdir(os.path.join(workdir, "plots")) else ""
    print(f"  results  {workdir}/: summary.json, metrics.jsonl, checkpoints/{plots}")
    print(f"  use      python -m patchnets.predict {workdir} IMAGE ...", flush=True)
