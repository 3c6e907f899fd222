"""Source for any image classification data set of TensorFlow Datasets, by its TFDS name.

Preparing it once, as array_record files, needs TensorFlow; reading it by position through TFDS does not.
"""

import contextlib
import difflib
import functools
import hashlib
import importlib.util
import logging
import pathlib
import socket
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from patchnets.data import decode
from patchnets.data.bit_depth import ValueRanges
from patchnets.data.pixel_rules import DEFAULT_RULES, PixelRules
from patchnets.data.sources.base import Example
from patchnets.errors import RunError, UserError, first_line

CONNECT_SECONDS = 10.0


class TfdsRecords:
    """Examples of one split of a prepared data set; images are decoded when they are read.

    Reading needs TFDS and array_record but not TensorFlow, so that workers start quickly.
    """

    def __init__(self, builder: Any, split: str, channels: int, rules: PixelRules = DEFAULT_RULES):
        info = builder.info.splits[split]
        self.data_dir, self.split = str(builder.data_dir), split
        self.shard_lengths = [file.take for file in info.file_instructions]
        self.image_key, self.label_key = builder.info.supervised_keys
        self.name, self.channels = f"{builder.info.full_name} {split}", channels
        self.rules = rules
        feature = builder.info.features[self.image_key]
        self.shape, self.deep = feature.shape, np.dtype(feature.np_dtype) != np.uint8

    def __len__(self) -> int:
        return sum(self.shard_lengths)

    def fingerprint(self) -> int:
        return zlib.crc32(f"{self.name} {self.shard_lengths}".encode())

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_rows"}  # open files cannot be pickled

    @functools.cached_property
    def _rows(self) -> Any:
        """Records of the split by position: dictionaries with an encoded image."""
        import tensorflow_datasets as tfds

        allow_open_files(len(self.shard_lengths))
        builder = tfds.builder_from_directory(self.data_dir)
        decoders = {self.image_key: tfds.decode.SkipDecoding()}
        return builder.as_data_source(self.split, decoders=decoders, file_format="array_record")

    def _read(self, positions: Sequence[int]) -> list[tuple[bytes, int]]:
        from google.protobuf import message

        try:
            rows = [self._rows[positions[0]]] if len(positions) == 1 else self._rows.__getitems__(positions)
            return [self._pair(row) for row in rows]
        except (OSError, ValueError, IndexError, KeyError, RuntimeError, message.DecodeError) as error:
            first, last = positions[0], positions[-1]
            span = self.name_of(first) if first == last else f"records {first} to {last} of {self.name}"
            raise RunError(
                f"{span} cannot be read ({first_line(error)}); delete the prepared data set and prepare it again"
            ) from error

    def _pair(self, row: Mapping[str, Any]) -> tuple[bytes, int]:
        for key in (self.image_key, self.label_key):
            if row.get(key) is None:  # for TFDS, an empty record or one of another kind
                raise KeyError(f"it has no {key}")
        return row[self.image_key], int(row[self.label_key])

    def examples(self, positions: Sequence[int], size: int | None = None) -> list[Example]:
        if not positions:
            return []
        return [
            (decode.decode_image(data, self.name_of(i), self.channels, size, rules=self.rules), label)
            for i, (data, label) in zip(positions, self._read(positions))
        ]

    def native_size(self, position: int = 0) -> int | None:
        height, width = self.shape[:2]
        return height if height is not None and height == width else None

    def encoded(self, position: int) -> tuple[bytes, int]:
        return self._read([position])[0]

    def stored(self, position: int) -> bytes:
        return self.encoded(position)[0]

    def deep_candidates(self) -> Sequence[int]:
        return range(len(self)) if self.deep else ()

    def name_of(self, position: int) -> str:
        return f"record {position} of {self.name}"


def allow_open_files(count: int) -> None:
    """Raise the limit of open files, if allowed, to have room for `count` shards, which stay open once read."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


class TfdsSource:
    """A prepared TFDS data set as a source."""

    encoded = True
    notes = ()

    def __init__(self, builder: Any, rules: PixelRules = DEFAULT_RULES):
        self.builder, self.rules = builder, rules
        self.name = builder.info.full_name.rsplit("/", 1)[0].replace("/", "-")
        image_key, label_key = builder.info.supervised_keys
        self.class_names = tuple(builder.info.features[label_key].names)
        self.channels = builder.info.features[image_key].shape[-1] or 3
        self.sizes: Mapping[str, int] = {name: info.num_examples for name, info in builder.info.splits.items()}

    @property
    def version(self) -> str:
        directory_hash = hashlib.sha256(str(self.builder.data_dir).encode()).hexdigest()[:8]
        return f"{self.builder.info.version}-{directory_hash}-{self.rules.tag}"

    def with_ranges(self, ranges: ValueRanges) -> "TfdsSource":
        return TfdsSource(self.builder, self.rules.with_ranges(ranges))

    def records(self, split: str) -> TfdsRecords:
        return TfdsRecords(self.builder, split, self.channels, self.rules)


def open_tfds(name: str, data_dir: str | None, rules: PixelRules = DEFAULT_RULES) -> TfdsSource:
    """Open the data set `name`, preparing it first if necessary.

    Raises:
      UserError: TFDS has no such data set, it is not for image classification, or it cannot be downloaded.
    """
    builder = _builder(name, data_dir)
    _check_kind(builder, name)
    if not builder.info.splits:
        builder.info.set_file_format("array_record", override=True)
        _prepare(builder, name)
        _check_kind(builder, name)
    if "array_record" not in {form.value for form in builder.info.available_file_formats()}:
        raise UserError(
            f"{name} in {builder.data_dir} has {builder.info.file_format.value} files, and training reads "
            "array_record; choose another config.dataset.data_dir to prepare it there"
        )
    return TfdsSource(builder, rules)


def is_prepared(name: str, data_dir: str | None) -> bool:
    """Return whether the data set is already prepared. Raise UserError if TFDS has no such data set."""
    return bool(_builder(name, data_dir).info.splits)


def _builder(name: str, data_dir: str | None) -> Any:
    """Return TFDS's builder of a data set, prepared or not. Raise UserError if there is none."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"data set {name!r} needs tensorflow-datasets; pip install tensorflow-datasets array-record"
        ) from error
    logging.getLogger("absl").setLevel(logging.ERROR)  # hide TFDS's advice to its developers
    known = tfds.list_builders(with_community_datasets=False)  # community data sets would need the network
    if name.split(":")[0].split("/")[0] not in known:
        near = difflib.get_close_matches(name, ["digits", "folder", *known], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "expected digits, folder, or a TFDS name"
        raise UserError(f"config.dataset.name={name!r} is no data set that TFDS knows; {hint}")
    try:
        return tfds.builder(name, data_dir=data_dir)
    except (AssertionError, ValueError, RuntimeError, ImportError, OSError) as error:
        raise UserError(f"config.dataset.name={name!r} cannot be opened by TFDS: {first_line(error)}") from error


def _check_kind(builder: Any, name: str) -> None:
    import tensorflow_datasets as tfds

    keys, features = builder.info.supervised_keys, builder.info.features
    pair = [features[key] for key in keys] if keys and len(keys) == 2 and features else []
    if not pair or not isinstance(pair[0], tfds.features.Image) or not isinstance(pair[1], tfds.features.ClassLabel):
        raise UserError(
            f"config.dataset.name={name!r} is not for image classification: it has no pair of image and class"
        )
    if np.issubdtype(pair[0].np_dtype, np.floating):
        raise UserError(
            f"config.dataset.name={name!r} has float images, which TFDS stores in a form of its own; save them as .npy "
            "arrays in a folder for config.dataset.name=folder"
        )


def _prepare(builder: Any, name: str) -> None:
    """Download the data set and write array_record files. Raise UserError if that fails."""
    import tensorflow_datasets as tfds

    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"{name} is not prepared in {builder.data_dir}; preparing it, once, needs TensorFlow: "
            "pip install tensorflow-cpu"
        )
    downloads = pathlib.Path(builder.data_dir_root).expanduser() / "downloads"
    wanted = {url: info.filename for url, info in (builder.url_infos or {}).items() if info.filename}
    _check_reachable(name, wanted, downloads)
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # preparing data must not take an accelerator's memory
    try:
        with _quiet_retries():
            builder.download_and_prepare(download_dir=str(downloads))
    except tfds.download.download_manager.NonMatchingChecksumError as error:
        raise UserError(
            f"{name}: an archive is incomplete or not the one that TFDS expects; remove it: {first_line(error)}"
        ) from error
    except AssertionError as error:  # TFDS asks for an archive to be downloaded by hand
        raise UserError(f"{name} must be downloaded by hand, to {downloads / 'manual'}: {first_line(error)}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and not hasattr(error, "request"):
            raise  # a full disk or no permission, not the network
        raise _not_downloaded(name, wanted, downloads, first_line(error)) from error


def _check_reachable(name: str, wanted: dict[str, str], downloads: pathlib.Path) -> None:
    """Raise UserError if the server does not answer, because TFDS would retry for minutes."""
    if not wanted:
        return
    placed = [(downloads / "manual" / filename).exists() for filename in wanted.values()]
    fetched = any(downloads.rglob("*.INFO")) if downloads.is_dir() else False
    if all(placed) or fetched or urllib.request.getproxies():
        return
    url = next(url for url, there in zip(wanted, placed) if not there)
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https", "ftp") or not parts.hostname:
        return
    port = parts.port or {"http": 80, "https": 443, "ftp": 21}[parts.scheme]
    try:
        socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
    except OSError as error:
        raise _not_downloaded(name, wanted, downloads, f"{parts.hostname}: {error.strerror or error}") from error


def _not_downloaded(name: str, wanted: dict[str, str], downloads: pathlib.Path, reason: str) -> UserError:
    urls = ", ".join(list(wanted)[:3]) + (", ..." if len(wanted) > 3 else "")
    files = ", ".join(list(wanted.values())[:3]) + (", ..." if len(wanted) > 3 else "")
    return UserError(
        f"{name} could not be downloaded from {urls} ({reason}); put {files} into {downloads / 'manual'}, "
        "or train on a folder of images: --config.dataset.name=folder --config.dataset.path=..."
    )


@contextlib.contextmanager
def _quiet_retries() -> Iterator[None]:
    logger = logging.getLogger("urllib3.connectionpool")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
