"""Measure prediction on new images beside timm's networks, which get the same decoded images.

    python -m experiments.micro.predict_speed [--images=10000] [--photos=1000] [--turns=3] [--batch_size=64]

Small images: an MLP-Mixer (8 blocks, width 256, patches of 4) on arrays of 32 x 32 pixels. Photographs: ViT-S/16 at
224 px on JPEG files of 500 x 375. Weights are random. `Model.probabilities` and a loop over timm's class take turns.
Both read through `patchnets.inference.images`; a turn begins with the first image and ends with the last probability.
"""

import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from experiments.micro.decoding import photographs
from patchnets import models, runtime
from patchnets.errors import UserError
from patchnets.inference import images as images_lib
from patchnets.inference.model import Model
from patchnets.parallel import cpu
from patchnets.run.model_spec import ModelSpec
from patchnets.runtime.cli import ArgumentParser, run_cli
from patchnets.step.train_state import init_variables

MIXER = dict(patch_size=4, depth=8, hidden_dim=256, tokens_mlp_dim=128, channels_mlp_dim=1024, gelu="exact")
CLASSES = tuple(f"class {i}" for i in range(100))


def make_model(network: str, size: int, **fields: Any) -> Model:
    """Return a network with random weights for RGB images of `size` pixels a side."""
    model = models.create_model(network, **fields, num_classes=len(CLASSES))
    spec = ModelSpec(
        network=network,
        fields=models.resolve_fields(network, **fields),
        classes=CLASSES,
        loss="softmax",
        channels=3,
        decoded_size=size,
        decoded_crop_pct=1.0,
        image_size=size,
        crop_pct=1.0,
        mean=(127.5,) * 3,
        std=(127.5,) * 3,
    )
    return Model(spec, init_variables(model, jax.random.key(0), size, 3))


def timm_networks() -> dict[str, Any]:
    """Return timm's networks of the same sizes. Raise UserError if timm is not installed."""
    try:
        from experiments.benchmark.timm_networks import timm
    except ImportError as error:
        raise UserError("timm and torch are not installed; run make parity first") from error
    mixer = timm.models.mlp_mixer.MlpMixer(
        num_classes=len(CLASSES), img_size=32, patch_size=4, num_blocks=8, embed_dim=256, mlp_ratio=(0.5, 4.0)
    )
    vit = timm.models.vision_transformer.VisionTransformer(
        num_classes=len(CLASSES), patch_size=16, embed_dim=384, depth=12, num_heads=6
    )
    return {"mlp_mixer": mixer.eval(), "vit": vit.eval()}


def timm_probabilities(network: Any, images: Any, spec: ModelSpec, batch_size: int) -> np.ndarray:
    """Return timm's probabilities, batch after batch."""
    import torch

    def batches() -> Iterator[np.ndarray]:
        pending = []
        for image in images_lib.decode_many(images_lib.as_list(images), spec):
            pending.append(image)
            if len(pending) == batch_size:
                yield np.stack(pending)  # type: ignore[arg-type]
                pending = []
        if pending:
            yield np.stack(pending)  # type: ignore[arg-type]

    rows = []
    with torch.inference_mode():
        for batch in batches():
            inputs = (torch.from_numpy(batch).permute(0, 3, 1, 2).float() - 127.5) / 127.5
            rows.append(network(inputs).softmax(-1).numpy())
    return np.concatenate(rows)


def rates(methods: dict[str, Callable[[], Any]], count: int, turns: int) -> dict[str, float]:
    """Return the median images/s of each method, after one turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(turns + 1):
        for name, method in methods.items():
            began = time.perf_counter()
            assert len(method()) == count
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: count / statistics.median(values) for name, values in seconds.items()}


def execute(arguments: list[str]) -> int:
    """Measure both kinds of images and print a table; return the exit status."""
    parser = ArgumentParser("python -m experiments.micro.predict_speed", description=__doc__)
    parser.add_argument("--images", type=int, default=10_000, help="number of small images (default: %(default)s)")
    parser.add_argument("--photos", type=int, default=1_000, help="number of photographs (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="counted turns of each (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=64, help="default: %(default)s")
    settings = parser.parse_args(arguments)
    if min(settings.images, settings.photos, settings.turns, settings.batch_size) < 1:
        raise UserError("expected at least 1 for --images, --photos, --turns and --batch_size")
    cpu.use_one_device_per_core({settings.batch_size})
    theirs, size = timm_networks(), settings.batch_size
    print("| images | network | patchnets, images/s | timm, images/s | ratio |\n|-|-|-|-|-|")
    small = np.random.default_rng(0).integers(0, 256, (settings.images, 32, 32, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        photos = []
        for i, data in enumerate(photographs(min(settings.photos, 100), 500, 375)):
            for j in range(i, settings.photos, 100):
                photos.append(pathlib.Path(folder) / f"{j}.jpg")
                photos[-1].write_bytes(data)
        for label, network, model, images in (
            ("32 px arrays", "mlp_mixer", make_model("mlp_mixer", 32, **MIXER), small),
            ("500 x 375 JPEGs", "vit", make_model("vit", 224, variant="S/16"), photos),
        ):
            run = {
                "patchnets": lambda: model.probabilities(images, batch_size=size),  # noqa: B023
                "timm": lambda: timm_probabilities(theirs[network], images, model.spec, size),  # noqa: B023
            }
            rate = rates(run, len(images), settings.turns)
            ratio = rate["patchnets"] / rate["timm"]
            count = f"{len(images):,} {label}"
            print(f"| {count} | {network} | {rate['patchnets']:,.0f} | {rate['timm']:,.0f} | {ratio:.2f} |", flush=True)
    return 0


def main(argv: list[str]) -> int:
    """Run a command line and return the exit status."""
    runtime.silence_logs()
    return run_cli(argv, execute, "experiments.micro.predict_speed")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
