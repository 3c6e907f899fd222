"""The measured workloads: networks with size, batch and number of classes, and possible competitors.

The interpreter of every competitor imports this module, so it needs only Python.
"""

import dataclasses
from typing import Any, NamedTuple

from patchnets.errors import UserError


class Workload(NamedTuple):
    """One network and its input.

    Attributes:
      config: the file of configs/ with model, recipe and augmentation; "" for a paper's network on prepared batches.
      model: (name, variant) of patchnets.
      image_size: side in pixels of the network's input.
      batch: images per step; `GPU_BATCH` for a paper's network on a GPU.
      stored: side in pixels of a tutorial's stored uint8 images.
      learning_rate: learning rate of AdamW.
      timm: the network's key in timm_networks.BUILT or its name in timm; "" if timm does not have it.
      note: a remark on the comparison with timm.
    """

    config: str
    model: tuple[str, str]
    image_size: int
    batch: int
    classes: int
    stored: int = 32
    channels: int = 3
    learning_rate: float = 1e-3
    timm: str = ""
    note: str = ""


NORMS = "timm: the paper's blocks at the tutorial's sizes (a LayerNorm for each half, and a last one)"
TUTORIALS = {
    "mixer": Workload(
        "mixer_cifar100", ("keras_mixer", "cifar100"), 64, 128, 100, learning_rate=5e-3, timm="mixer", note=NORMS
    ),
    "fnet": Workload("fnet_cifar100", ("keras_fnet", "cifar100"), 64, 128, 100),
    "gmlp": Workload(
        "gmlp_cifar100",
        ("keras_gmlp", "cifar100"),
        64,
        128,
        100,
        learning_rate=3e-3,
        timm="gmlp",
        note="timm: the paper's block at the tutorial's sizes (skip connection around the LayerNorm, and a last one)",
    ),
    "vit": Workload(
        "vit_cifar100",
        ("keras_vit", "cifar100"),
        72,
        256,
        100,
        timm="vit",
        note="timm: mean and linear head, without the tutorial's two dense layers of 2048 and 1024 units",
    ),
    "convmixer": Workload("convmixer_cifar10", ("keras_convmixer", "cifar10"), 32, 128, 10, timm="convmixer"),
}
PAPERS = {
    "mixer-S/16": Workload("", ("mlp_mixer", "S/16"), 224, 8, 1000, timm="mixer_s16_224"),
    "mixer-B/16": Workload("", ("mlp_mixer", "B/16"), 224, 8, 1000, timm="mixer_b16_224"),
    "vit-S/16": Workload("", ("vit", "S/16"), 224, 8, 1000, timm="vit_small_patch16_224"),
    "vit-B/16": Workload("", ("vit", "B/16"), 224, 8, 1000, timm="vit_base_patch16_224"),
    "gmlp-S/16": Workload("", ("gmlp", "S/16"), 224, 8, 1000, timm="gmlp_s16_224"),
    "convmixer-512/16": Workload("", ("convmixer", "512/16"), 224, 8, 1000, timm="convmixer_512_16"),
    "convmixer-768/32": Workload("", ("convmixer", "768/32"), 224, 8, 1000, timm="convmixer_768_32"),
    "convmixer-1536/20": Workload("", ("convmixer", "1536/20"), 224, 8, 1000, timm="convmixer_1536_20"),
}
# The shape of scikit-learn's digits: takes seconds, to test the program itself.
SMALL = {"digits": Workload("mixer_digits", ("keras_mixer", ""), 8, 64, 10, stored=8, channels=1)}
WORKLOADS = TUTORIALS | PAPERS | SMALL
GPU_BATCH = 256
IMAGES, EPOCH = 10_000, 45_000  # images in memory, approximately; images in a tutorial's epoch

KERAS = ("keras-jax", "keras-tensorflow")
TIMM = ("timm", "timm-channels-last", "timm-compiled")
COMPETITORS = (*KERAS, *TIMM)
WORKS = ("train", "eval", "input", "devices")
DTYPES = ("float32", "bfloat16")
DEVICES = (1, 2, 4, 8)  # simulated, for --work=devices


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison: a network, the kind of work, and the competitors."""

    model: str
    task: str
    against: tuple[str, ...]


def possible(model: str, task: str, against: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of `against` that have this network and this kind of work.

    Keras has the tutorials. timm has no FNet, and its augmentation runs on the host, which is not compared; the memory
    format only matters for convolutional networks.
    """
    names = []
    for name in against:
        keras = name in KERAS and model in TUTORIALS and (task != "input" or name == "keras-tensorflow")
        timm = name in TIMM and WORKLOADS[model].timm != "" and task in ("train", "eval")
        if timm and name == "timm-channels-last":
            timm = "convmixer" in model
        if keras or timm:
            names.append(name)
    return tuple(names)


def suite(name: str) -> list[Row]:
    """Return all comparisons for a kind of machine, "cpu" or "gpu"."""
    eager, compiled = TIMM[:2], TIMM
    if name == "gpu":
        papers = ("mixer-B/16", "vit-B/16", "gmlp-S/16", "convmixer-768/32")
        return [Row(model, "train", ("timm-compiled",)) for model in (*TUTORIALS, *papers)]
    rows = [Row(model, "train", (*KERAS, *compiled)) for model in TUTORIALS]
    rows += [Row(model, "train", eager) for model in PAPERS if model != "convmixer-768/32"]
    rows += [Row(model, "eval", (*KERAS, *eager)) for model in TUTORIALS]
    rows += [Row(model, "input", ("keras-tensorflow",)) for model in ("mixer", "vit", "convmixer")]
    return rows + [Row("mixer", "devices", ())]


def chosen(models: tuple[str, ...], task: str, against: tuple[str, ...]) -> list[Row]:
    """Return comparisons by name; raise UserError for an unknown name, or work that a network does not support."""
    for option, values, known in (("--model", models, tuple(WORKLOADS)), ("--against", against, COMPETITORS)):
        if unknown := [value for value in values if value not in known]:
            raise UserError(f"{option}: there is no {unknown[0]!r}; known: {', '.join(known)}")
    if task not in WORKS:
        raise UserError(f"--work={task} is unknown; expected one of {', '.join(WORKS)}")
    if task in ("input", "devices") and (ready := [model for model in models if model in PAPERS]):
        raise UserError(f"--work={task} needs stored images, but {ready[0]} is measured on prepared batches")
    return [Row(model, task, () if task == "devices" else against) for model in models]


def spec(row: Row, competitor: str, **settings: Any) -> dict[str, Any]:
    """Return the spec of a worker, as JSON types."""
    return dict(model=row.model, work=row.task, competitor=competitor, **settings)


def examples(held: int, batch: int) -> int:
    """Round `held` down to whole batches (at least one), so that no batch is padded and only one size compiles."""
    return max(1, held // batch) * batch
