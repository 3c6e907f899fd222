"""What Keras itself makes of a tutorial: the example's network and `fit`, on the images that patchnets trains on.

    python -m experiments.micro.keras_accuracy --model=mixer --seeds=2 [--epochs=1] [--config.dataset.data_dir=DIR]

Data set and splits are those of configs/MODEL_*.py; other keys are --config.dataset.*. Prints the validation accuracy
after every epoch, and that of the test split after the last. Keras and its backend come with the extra `bench`;
KERAS_BACKEND chooses another than TensorFlow. These figures are the bars in experiments/tables/keras_examples.py.
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
    """{"train", "val", "test"} of the configured data set, as they are stored.

    Raises:
      UserError: it cannot be had.
    """
    opened = open_dataset(data_options(config), 1)
    root, most = runtime.cache_root(config.dataset.cache_dir), config.dataset.max_on_device_gib * 2**30
    decoded: dict[str, Arrays] = {}
    for name in dict.fromkeys(name for parts in opened.parts.values() for name, _, _ in parts):
        decoded[name] = decoded_cache.load_or_decode(opened.source, name, config.image_size, root, most, 0, True)

    def gather(parts: list[Part]) -> Arrays:
        images, labels = zip(*((decoded[name][0][low:high], decoded[name][1][low:high]) for name, low, high in parts))
        return np.concatenate(images), np.concatenate(labels)

    return {role: gather(parts) for role, parts in opened.parts.items()}


def execute(arguments: list[str]) -> int:
    """Trains, and says what came out; returns the exit status."""
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
        help="of each (default: 1); at a constant learning rate, without the examples' callbacks, which change nothing "
        "before the sixth",
    )
    values, overrides = parser.parse_with_overrides(arguments)
    if other := [argument for argument in overrides if not argument.startswith("--config.dataset.")]:
        raise UserError(f"{other[0]}: the recipe is the example's; only --config.dataset.* can be set")
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

        def fed(role: str) -> dict:
            """A split as the examples hand it over: ConvMixer's in a pipeline, the others' as arrays."""
            if name == "convmixer":
                return {"x": bench_keras.batches(name, *data[role], config.batch_size, augmented=role == "train")}
            return {"x": data[role][0], "y": data[role][1], "batch_size": config.batch_size}

        for epoch in range(epochs):
            model.fit(**fed("train"), verbose=0)
            metrics = model.evaluate(**fed("val"), verbose=0, return_dict=True)
            print(f"seed {seed}, epoch {epoch + 1}: validation {format_metrics(metrics)}", flush=True)
        metrics = model.evaluate(**fed("test"), verbose=0, return_dict=True)
        print(f"seed {seed}: test {format_metrics(metrics)}; {time.monotonic() - began:.0f} s", flush=True)
    return 0


def format_metrics(metrics: dict[str, float]) -> str:
    names = {"accuracy": "top-1", "top5-accuracy": "top-5"}
    return ", ".join(f"{text} {metrics[name]:.2%}" for name, text in names.items() if name in metrics)


def main(argv: list[str]) -> int:
    """Carries out a command line and returns the exit status."""
    return run_cli(argv, execute)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
