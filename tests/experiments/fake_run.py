"""Stand-in for patchnets.main: writes the files of a run, without the arrays.

What it is told goes to the file NOTES. The seed that FAIL names fails; with SLOW it waits to be stopped; WORK is how
many seconds it takes.
"""

import json
import os
import pathlib
import signal
import sys
import time

settings = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
path, seed = pathlib.Path(settings["workdir"]), int(settings["config.seed"])
with open(os.environ["NOTES"], "a") as file:
    file.write(json.dumps([settings, os.environ.get("CUDA_VISIBLE_DEVICES"), time.time()]) + "\n")
path.mkdir(parents=True, exist_ok=True)
if os.environ.get("SLOW"):
    signal.signal(signal.SIGTERM, lambda number, frame: ((path / "saved").touch(), sys.exit(143)))
    print("training", flush=True)
    time.sleep(60)
if os.environ.get("FAIL") == str(seed):
    sys.exit("patchnets: no images")
accuracy = 0.10 + 0.02 * seed
rows = [dict(step=9, epoch=1.0, train_loss=4.0, val_accuracy=accuracy, val_top5_accuracy=0.3, val_loss=4.1)]
(path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
summary = dict(
    config_hash="hash",
    test_accuracy=accuracy,
    test_top5_accuracy=0.32,
    steps=250,
    epochs=1.0,
    params=242788,
    wall_seconds=61.0,
    images_per_second=500.0,
    device="1 x fake",
    versions={"jax": "0"},
    dataset=settings.get("config.dataset.name", "own"),
)
(path / "summary.json").write_text(json.dumps(summary))
time.sleep(float(os.environ.get("WORK", 0)))
print(f"done {seed}")
