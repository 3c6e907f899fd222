"""Measure the accuracy of a Keras example: its network and `fit`, on the images that patchnets trains on.

    python -m experiments.micro.keras_accuracy --model=mixer --seeds=2 [--epochs=1] [--config.dataset.data_dir=DIR]

Data set and splits are those of configs/MODEL_*.py; overrides are limited to --config.dataset.*. Prints the validation
accuracy after every epoch, and the test accuracy after the last. The extra `bench` installs Keras and its backend;
KERAS_BACKEND selects another than TensorFlow. experiments/tables/keras_examples.py uses the results as references.
"""

import importlib
import os
import sys
import time

import ml_collections
import numpy as np

from experiments.benchmark.workloads import TUTORIALS
from patchnets import runtime
from patchnets.config import flags
from patchnets.data import decoded_cache, open_dataset
from patchnets.data.splits import Part
from patchnets.errors import UserError
from patchnets.experiment import data_options
from patchnets.runtime.cli import ArgumentParser, count, run_cli

Arrays = tuple[np.ndarray, np.ndarray]  # uint8 images (examples, 32, 32, 3), labels (examples,)


def arrays(config: ml_collections.ConfigDict) -> dict[str, Arrays]:
    """Return {"train", "val", "test"} of the configured data set, as stored.

    Raises:
      UserError: the data set is not available.
    """
    opened = open_dataset(data_options(config), 1)
    root, most = runtime.cache_root(config.dataset.cache_dir), config.dataset.max_on_device_gib * 2**30
    decoded: dict[str, Arrays] = {}
    for name in dict.fromkeys(name for parts in opened.parts.values() for name, _, _ in parts):
        decoded[name] = decoded_cache.load_or_decode(opened.source, name, config.image_size, root, most, 0, True)[:2]

    def gather(parts: list[Part]) -> Arrays:
        images, labels = zip(*((decoded[name][0][low:high], decoded[name][1][low:high]) for name, low, high in parts))
        return np.concatenate(images), np.concatenate(labels)

    return {role: gather(parts) for role, parts in opened.parts.items()}


def execute(arguments: list[str]) -> int:
    """Train and print the accuracies; return the exit status."""
    parser = ArgumentParser("python -m experiments.micro.keras_accuracy", description=__doc__)
    parser.add_argument(
        "--model",
        required=True,
        choices=list(TUTORIALS),
        help="mixer, fnet, gmlp, vit (CIFAR-100) or convmixer (CIFAR-10): the scripts that experiments.benchmark times",
    )
    parser.add_argument("--seeds", type=count, default=1, help="runs, with seeds 0 to N - 1 (default: 1)")
    parser.add_argument(
        "--epochs",
        type=count,
        default=1,
        help="epochs per run (default: 1), without the examples' callbacks, which have no effect before the sixth",
    )
    values, overrides = parser.parse_with_overrides(arguments)
    if other := [argument for argument in overrides if not argument.startswith("--config.dataset.")]:
        raise UserError(f"{other[0]}: only --config.dataset.* can be set; the recipe is the example's")
    name, seeds, epochs = values.model, values.seeds, values.epochs
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    try:
        keras = importlib.import_module("keras")
    except ImportError as error:
        raise UserError(f"Keras cannot be imported ({error}); pip install -e '.[bench]'") from error
    from experiments.benchmark import bench_keras, keras_tutorials

    workload = TUTORIALS[name]
    config, _ = flags.parse_flags(["keras_accuracy", f"--config=configs/{workload.config}.py", *overrides])
    data = arrays(config)
    print(f"{name}: Keras {keras.__version__}, {keras.backend.backend()}; {config.dataset.name}, {epochs} epoch(s)")
    for seed in range(seeds):
        began = time.monotonic()
        keras.utils.set_random_seed(seed)
        model = keras_tutorials.build(name, data["train"][0])
        model = keras_tutorials.compiled(name, model, workload.learning_rate)

        def inputs(role: str) -> dict:
            """Return a split as in the examples: a pipeline for ConvMixer, else arrays."""
            if name == "convmixer":
                return {"x": bench_keras.batches(name, *data[role], config.batch_size, augmented=role == "train")}
            return {"x": data[role][0], "y": data[role][1], "batch_size": config.batch_size}

        for epoch in range(epochs):
            model.fit(**inputs("train"), verbose=0)
            metrics = model.evaluate(**inputs("val"), verbose=0, return_dict=True)
            print(f"seed {seed}, epoch {epoch + 1}: validation {format_metrics(metrics)}", flush=True)
        metrics = model.evaluate(**inputs("test"), verbose=0, return_dict=True)
        print(f"seed {seed}: test {format_metrics(metrics)}; {time.monotonic() - began:.0f} s", flush=True)
    return 0


def format_metrics(metrics: dict[str, float]) -> str:
    names = {"accuracy": "top-1", "top5-accuracy": "top-5"}
    return ", ".join(f"{text} {metrics[name]:.2%}" for name, text in names.items() if name in metrics)


def main(argv: list[str]) -> int:
    """Run a command line and return the exit status."""
    return run_cli(argv, execute)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
