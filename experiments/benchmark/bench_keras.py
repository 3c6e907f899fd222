"""Measure a Keras example: `fit` or `evaluate` from memory, or preprocessing alone. Runs in a worker process."""

import contextlib
import time
from typing import Any

import keras
import numpy as np

from experiments.benchmark import keras_tutorials
from experiments.benchmark.ipc import Exchange, Message, peak_memory_mib
from experiments.benchmark.workloads import WORKLOADS, examples

PREPARED = 8  # batches that a pipeline may have prefetched; discarded before each turn


class Finished(Exception):
    """Raised after the last turn: `evaluate` cannot be stopped otherwise."""


class Turns(keras.callbacks.Callback):
    """Callback that pauses `fit` and `evaluate` between turns; time between epochs is not counted."""

    def __init__(self, exchange: Exchange, spec: Message):
        super().__init__()
        self.exchange, self.spec = exchange, spec
        self.steps: int | None = None  # of this turn; None until the first step has been reported
        self.until = self.spent = self.began = 0.0
        self.ended = self.cold = False

    def epoch_begins(self) -> None:
        self.began = time.perf_counter()

    def epoch_ends(self) -> None:
        self.spent += time.perf_counter() - self.began

    def batch_ends(self, logs: Any) -> None:
        if self.cold:  # the first step of a turn is not counted
            for value in (logs or {}).values():
                float(value)
            self.cold, self.steps, self.spent, self.began = False, 0, 0.0, time.perf_counter()
            return
        if self.steps is not None:
            self.steps += 1
            if self.spent + time.perf_counter() - self.began < self.until:
                return
        for value in (logs or {}).values():
            float(value)  # waits for the device
        if self.steps is None:
            self.exchange.tell(
                ready=time.time() - self.spec["spawned"],
                params=count(self.model.trainable_variables),
                versions=versions(),
            )
        else:
            self.exchange.tell(steps=self.steps, seconds=self.spent + time.perf_counter() - self.began)
        seconds = self.exchange.turn()
        self.ended = seconds is None
        self.model.stop_training = self.ended
        self.cold = not self.ended
        self.steps, self.until, self.spent, self.began = 0, seconds or 0.0, 0.0, time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch_begins()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epoch_ends()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batch_ends(logs)

    def on_test_begin(self, logs: Any = None) -> None:
        self.epoch_begins()

    def on_test_end(self, logs: Any = None) -> None:
        self.epoch_ends()

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batch_ends(logs)
        if self.ended:
            raise Finished


def count(variables: Any) -> int:
    return sum(int(np.prod(variable.shape)) for variable in variables)


def versions() -> dict[str, str]:
    backend = keras.backend.backend()
    return {"keras": keras.__version__, backend: __import__(backend).__version__}


def batches(name: str, images: np.ndarray, labels: np.ndarray, batch: int, augmented: bool) -> Any:
    """Return a tf.data pipeline like that of the ConvMixer example."""
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((images, labels))
    if augmented:
        data = data.shuffle(batch * 10)
    data = data.batch(batch)
    if augmented:
        layers = keras_tutorials.preprocessing(name, images)

        def prepared(x: Any, y: Any) -> tuple[Any, Any]:
            for layer in layers:
                x = layer(x, training=True)
            return x, y

        data = data.map(prepared, num_parallel_calls=tf.data.AUTOTUNE)
    return data.prefetch(tf.data.AUTOTUNE)


def prepare(name: str, images: np.ndarray, labels: np.ndarray, spec: Message, exchange: Exchange) -> None:
    """Measure only the preprocessing layers, in tf.data."""
    source = iter(batches(name, images, labels, spec["batch"], augmented=True).repeat())
    next(source)
    exchange.tell(ready=time.time() - spec["spawned"], versions=versions())

    def discard() -> None:
        for _ in range(PREPARED):
            next(source)

    def run_for(seconds: float) -> int:
        steps, until = 0, time.perf_counter() + seconds
        while not steps or time.perf_counter() < until:
            next(source)
            steps += 1
        return steps

    exchange.serve(run_for, before=discard)


def run(spec: Message, exchange: Exchange) -> Message:
    """Build, run the first step, and serve turns; return the last message."""
    name, batch, task = spec["model"], spec["batch"], spec["work"]
    workload = WORKLOADS[name]
    if spec["dtype"] == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    generator, side = np.random.default_rng(0), workload.stored
    total = examples(spec["images"], batch)
    images = generator.integers(0, 256, (total, side, side, 3), np.uint8)
    labels = generator.integers(0, workload.classes, (total, 1))
    if task == "input":
        prepare(name, images, labels, spec, exchange)
        return {"peak_memory_mib": peak_memory_mib()}
    model = keras_tutorials.compiled(name, keras_tutorials.build(name, images), workload.learning_rate)
    turns = Turns(exchange, spec)
    settings: dict[str, Any] = dict(callbacks=[turns], verbose=0)
    if name == "convmixer":
        data: tuple[Any, ...] = (batches(name, images, labels, batch, augmented=task == "train"),)
    else:
        data, settings = (images, labels), settings | dict(batch_size=batch)
    if task == "train":
        model.fit(*data, epochs=2**31 - 1, **settings)
    else:
        with contextlib.suppress(Finished):
            while True:
                model.evaluate(*data, **settings)
    return {"peak_memory_mib": device_mib() or peak_memory_mib()}


def device_mib() -> float:
    """Return the peak memory of the accelerator in MiB; 0 without one."""
    if keras.backend.backend() == "jax":
        import jax

        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**20
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        return 0.0
    return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20
