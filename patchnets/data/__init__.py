"""From `config.dataset` to the three feeds of a run."""

import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
from jax.sharding import Mesh

from patchnets.data import cache, sources, splits
from patchnets.data.preprocess import Augment, Preprocess, normalisation
from patchnets.data.resident import ResidentFeed
from patchnets.errors import UserError
from patchnets.feeds import Feed

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run trains, validates and tests on. `val` and `test` are None where the data set has no such split."""

    name: str
    class_names: tuple[str, ...]
    channels: int
    stored_size: int  # side in pixels of the images as they are kept; the step resizes them
    train: Feed
    val: Feed | None
    test: Feed | None
    specs: dict[str, str | None]
    identity: dict[str, Any]  # what must be the same when a run continues
    preprocess: Preprocess


def choose_splits(config: ml_collections.ConfigDict, sizes: Mapping[str, int]) -> dict[str, str | None]:
    """The train, val and test splits in TFDS's syntax, with the defaults filled in; None for one that is not used.

    Without a word from the configuration a data set's own validation split is used, or else the last 10% of train.

    Raises:
      UserError: a split does not exist or is empty, or two of them share examples.
    """
    own = next((name for name in ("validation", "val") if name in sizes), None)
    val = config.val_split or own or "train[90%:]"
    train = config.train_split or _train_without(val, sizes)
    test = config.test_split or ("test" if "test" in sizes else "none")
    specs: dict[str, str | None] = {}
    for role, spec in zip(SPLITS, (train, val, test)):
        specs[role] = None if spec == "none" else spec
    if specs["train"] is None:
        raise UserError("config.dataset.train_split='none': there is nothing to train on")
    parsed = {role: splits.parse(spec, sizes) for role, spec in specs.items() if spec}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = splits.overlap(parsed.get(one, []), parsed.get(other, []))
        if shared:
            raise UserError(
                f"{one} split {specs[one]!r} and {other} split {specs[other]!r} share {shared:,} examples; "
                f"set config.dataset.{one}_split and config.dataset.{other}_split apart"
            )
    return specs


def _train_without(val: str, sizes: Mapping[str, int]) -> str:
    """train, less what the validation split takes of it."""
    if val == "train[90%:]":
        return "train[:90%]"
    taken = [part for part in splits.parse(val, sizes) if part[0] == "train"] if val != "none" else []
    if len(taken) != 1:
        return "train"
    _, low, high = taken[0]
    rest = ([f"train[:{low}]"] if low else []) + ([f"train[{high}:]"] if high < sizes["train"] else [])
    return "+".join(rest) or "train"


def load_data(config: ml_collections.ConfigDict, mesh: Mesh) -> Data:
    """Opens the data set, decodes it if that has not been done, and places it on the devices.

    Raises:
      UserError: the data set or a split cannot be had as configured.
      RunError: an image cannot be decoded.
    """
    source = sources.open_source(config.dataset)
    specs = choose_splits(config.dataset, source.sizes)
    parsed = {role: splits.parse(spec, source.sizes) for role, spec in specs.items() if spec}
    root = cache.cache_root(config.dataset.cache_dir)
    max_bytes = config.dataset.max_resident_gib * 2**30
    names = dict.fromkeys(name for parts in parsed.values() for name, _, _ in parts)

    def load_whole(keep_native: bool) -> dict[str, cache.Decoded]:
        found: dict[str, cache.Decoded] = {}
        for name in names:
            held = sum(images.nbytes for images, _ in found.values())
            found[name] = cache.load_split(source, name, config.image_size, root, max_bytes, held, keep_native)
        return found

    whole = load_whole(keep_native=True)
    if len({images.shape[1] for images, _ in whole.values()}) > 1:  # each split of one size, but not of the same
        whole = load_whole(keep_native=False)

    @functools.cache
    def gather(role: str) -> tuple[np.ndarray, np.ndarray]:
        parts = [(whole[name][0][low:high], whole[name][1][low:high]) for name, low, high in parsed[role]]
        images, labels = zip(*parts)
        return (np.concatenate(images), np.concatenate(labels)) if len(parts) > 1 else parts[0]

    def feed(role: str) -> Feed | None:
        if role not in parsed:
            return None
        batch_size = config.batch_size if role == "train" else config.eval_batch_size or config.batch_size
        return ResidentFeed(
            *gather(role), batch_size=batch_size, mesh=mesh, shuffle_seed=config.seed if role == "train" else None
        )

    for role, spec in specs.items():
        if spec and not 0 <= int(gather(role)[1].min()) <= int(gather(role)[1].max()) < len(source.class_names):
            raise UserError(
                f"the examples of {spec!r} have no labels, or some outside the {len(source.class_names)} classes; "
                f"choose another config.dataset.{role}_split, or none"
            )
    mean, std = normalisation(config.normalize, gather("train")[0])
    train = feed("train")
    assert train is not None
    return Data(
        name=source.name,
        class_names=source.class_names,
        channels=source.channels,
        stored_size=next(iter(whole.values()))[0].shape[1],
        train=train,
        val=feed("val"),
        test=feed("test"),
        specs=specs,
        identity={
            "name": source.name,
            "classes": list(source.class_names),
            "examples": {role: len(gather(role)[1]) for role in parsed},
            "labels_crc32": {role: zlib.crc32(gather(role)[1].tobytes()) for role in parsed},
        },
        preprocess=Preprocess(config.image_size, mean, std, Augment(**config.augment.to_dict())),
    )
