"""Accuracy over labeled images a class: classifiers on the features of trained weights, and training from scratch.

    python -m experiments.few_labels PROBES.json OUT --dataset=cifar10 [--train_split=SPLIT --test_split=SPLIT]

PROBES.json is of `python -m patchnets.evaluate MODEL --probe=fewshot,linear` on the same splits. For each number of its
shots a small MLP-Mixer (patches of 4 of 32 x 32 pixels, 4 blocks, width 64) trains from scratch on the
first of the draws that the classifiers were fitted to, for --steps steps of up to 64 images with flips and
translations, and is tested on the test split. OUT gets images and runs, few_labels.json, and the picture
few_labels.png. Runs that are finished are not repeated.
"""

import io
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from patchnets import runtime
from patchnets.errors import Preempted, UserError, report_error
from patchnets.runtime.cli import ArgumentParser, count, out_folder, path, run_cli
from patchnets.runtime.files import write_atomically

MIXER = dict(
    name="mlp_mixer", patch_size=4, depth=4, hidden_dim=64, tokens_mlp_dim=32, channels_mlp_dim=256, gelu="tanh"
)
BATCH = 64


def write_folders(source: Any, train_split: str, test_split: str, shots: Sequence[int], out: pathlib.Path) -> None:
    """Write OUT/images/N/train/CLASS/*.png of N images a class, and test/ beside it, as far as they are not there."""
    from PIL import Image

    from patchnets.inference import labeled, probes

    def write(folder: pathlib.Path, examples: Sequence[Any]) -> None:
        partial = folder.with_name(f".{folder.name}")
        for i, (_, image, label) in enumerate(examples):
            if isinstance(image, Exception):
                raise image
            opened = Image.open(io.BytesIO(image)) if isinstance(image, bytes) else Image.fromarray(np.squeeze(image))
            (partial / label).mkdir(parents=True, exist_ok=True)
            opened.save(partial / label / f"{i:05}.png")
        partial.rename(folder)

    train, test = (list(labeled.from_source(source, split, split).examples()) for split in (train_split, test_split))
    labels = np.array([source.class_names.index(example.label) for example in train])
    for number in shots:
        folder = out / "images" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "train").exists():
            write(folder / "train", [train[i] for i in probes.draw_shots(labels, number, draw=0)])
    first = out / "images" / str(shots[0])
    if not (first / "test").exists():
        write(first / "test", test)
    for number in shots[1:]:
        link = out / "images" / str(number) / "test"
        if not link.exists():
            link.symlink_to((first / "test").resolve(), target_is_directory=True)


def from_scratch(images: pathlib.Path, workdir: pathlib.Path, steps: int) -> dict[str, Any]:
    """Train the Mixer on a folder's train/, and return the run's summary, with the accuracy on test/."""
    from patchnets import train
    from patchnets.config import default_config

    train_images = sum(1 for _ in (images / "train").glob("*/*.png"))
    config = default_config(
        dataset=dict(name="folder", path=str(images), val_split="none", cache_dir=str(workdir.parent / "cache")),
        image_size=32,
        normalize="imagenet",
        augment=dict(flip=True, translate=0.1),
        model=MIXER,
        batch_size=min(BATCH, train_images),
        total_steps=steps,
        eval_every_steps=steps,  # at the end only: there are no validation images
        optimizer=dict(learning_rate=1e-3, weight_decay=0.05, grad_clip_norm=1.0),
        schedule=dict(name="cosine", warmup_steps=steps // 10),
        mesh=dict(data=1),
        tensorboard=False,
        plots=False,
    )
    return train.train(config, workdir)


def draw(results: dict[str, Any], file: pathlib.Path) -> None:
    """Draw accuracy over images a class."""
    from patchnets.plots import figures

    figure, axis = figures.pyplot().subplots(figsize=(6.4, 4.2), layout="constrained")
    probe, scratch = results["probe"], results["from_scratch"]
    axis.errorbar(
        [row["shots"] for row in probe],
        [100 * row["accuracy"] for row in probe],
        yerr=[100 * row["interval"] for row in probe],
        marker="o",
        capsize=3,
        label=f"{results['features']}: least squares on its features",
    )
    axis.plot(
        [row["shots"] for row in scratch],
        [100 * row["accuracy"] for row in scratch],
        marker="s",
        label=f"a small MLP-Mixer from scratch, {results['steps']:,} steps",
    )
    if full := results.get("linear"):
        axis.axhline(100 * full["accuracy"], color="gray", linestyle="--", linewidth=1)
        axis.annotate(
            f"logistic regression on all {full['images']:,} training images: {full['accuracy']:.1%}",
            (probe[0]["shots"], 100 * full["accuracy"]),
            xytext=(0, 4),
            textcoords="offset points",
            color="gray",
        )
    ticks = [row["shots"] for row in probe]
    axis.set(xscale="log", ylim=(0, 100), xlabel="labeled images a class", ylabel="test accuracy, %")
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_title(results["title"])
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize="small")
    figures.save(figure, file)


def execute(arguments: list[str]) -> int:
    """Carry out a command line; return the exit status."""
    parser = ArgumentParser("python -m experiments.few_labels", description=__doc__)
    parser.add_argument("probes", type=path, metavar="PROBES.json", help="results of patchnets.evaluate --probe")
    parser.add_argument("out", type=out_folder, metavar="OUT", help="a folder for images, runs, JSON and picture")
    parser.add_argument("--dataset", required=True, metavar="NAME", help="digits, or a name of TFDS")
    parser.add_argument("--data_dir", metavar="DIR", help="where TFDS's data sets are")
    parser.add_argument("--train_split", default="train", metavar="SPLIT", help="that of the probes")
    parser.add_argument("--test_split", default="test", metavar="SPLIT", help="that of the probes")
    parser.add_argument("--steps", type=count, default=300, metavar="N", help="of each run (default: %(default)s)")
    parser.add_argument("--name", default="trained ViT", help="what the legend calls the model of the features")
    options = parser.parse_args(arguments)
    try:
        content = json.loads(options.probes.read_text())
        probe = [row for row in content["probes"] if row["name"] == "fewshot"]
        shots = sorted(row["settings"]["shots"] for row in probe)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{options.probes} holds no results of patchnets.evaluate --probe ({error})") from error
    if not shots:
        raise UserError(f"{options.probes} has no results of fewshot; run patchnets.evaluate --probe=fewshot")
    runtime.silence_logs()
    runtime.enable_compilation_cache()
    from patchnets.evaluate.data import open_source

    source = open_source(options.dataset, None, options.data_dir)
    write_folders(source, options.train_split, options.test_split, shots, options.out)
    scratch = []
    for number in shots:
        summary = from_scratch(options.out / "images" / str(number), options.out / "runs" / str(number), options.steps)
        scratch.append({"shots": number, "accuracy": summary["test_accuracy"], "seconds": summary["wall_seconds"]})
        print(f"{number} images a class from scratch: {scratch[-1]['accuracy']:.2%}", flush=True)
    full = [row for row in content["probes"] if row["name"] == "linear"]
    results = {
        "title": f"{options.dataset}, {content['images']['test']:,} test images",
        "features": options.name,
        "probe": [{"shots": r["settings"]["shots"], **{k: r[k] for k in ("accuracy", "interval")}} for r in probe],
        "from_scratch": scratch,
        "steps": options.steps,
        "linear": {"accuracy": full[0]["accuracy"], "images": content["images"]["train"]} if full else None,
    }
    write_atomically(options.out / "few_labels.json", json.dumps(results, indent=2) + "\n")
    draw(results, options.out / "few_labels.png")
    print(f"{options.out}: few_labels.json, few_labels.png")
    return 0


def main(argv: list[str]) -> int:
    """Carry out a command line and return the exit status."""
    try:
        return run_cli(argv, execute, "experiments.few_labels")
    except Preempted as stopped:
        return report_error(stopped, "experiments.few_labels")


if __name__ == "__main__":
    runtime.start_program("experiments.few_labels")
    sys.exit(main(sys.argv))
