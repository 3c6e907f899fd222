"""The worker process that __main__.py starts: python -m experiments.benchmark.worker SPEC."""

import importlib
import json
import os
import sys

from experiments.benchmark.ipc import Exchange, Message, answering


def module_of(competitor: str) -> str:
    """Return the module that runs a competitor."""
    family = competitor.split("-")[0]
    return {"keras": "bench_keras", "timm": "bench_timm", "matmul": "matmul"}.get(family, "bench_patchnets")


def run(spec: Message, exchange: Exchange) -> Message:
    """Run the module of the competitor; return its last message."""
    if spec["competitor"].startswith("keras-"):  # read when Keras is imported
        os.environ["KERAS_BACKEND"] = spec["competitor"].removeprefix("keras-")
    module = importlib.import_module(f"experiments.benchmark.{module_of(spec['competitor'])}")
    return module.run(spec, exchange)


if __name__ == "__main__":
    sys.exit(answering(run, json.loads(sys.argv[1])))
