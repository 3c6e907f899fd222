"""Exported files, loaded as others load them, give the logits of patchnets."""

import dataclasses
import functools
import importlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax import export as jax_export
from jaxtyping import Float32, UInt

from patchnets import config as config_lib
from patchnets.data import splits
from patchnets.errors import RunError, UserError, first_line
from patchnets.experiment import data_options
from patchnets.inference import images as images_lib
from patchnets.run.model_spec import ModelSpec
from patchnets.weights import folders
from patchnets.weights.timm import TimmNetwork

TOLERANCE = 1e-4  # of float32 logits: absolute, or relative to the largest if that is above 1
LEAST = {"logits": 1.0, "probabilities": 1e-6}  # to which the tolerance is relative if no output is larger
SMALL_SPLIT, SAMPLE, RANDOM_IMAGES, BATCH_SIZE = 1000, 256, 32, 64

Decoded = UInt[np.ndarray, "images size size channels"]
Outputs = Float32[np.ndarray, "images classes"]
Run = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Outputs of an exported file beside those of the model it was made of.

    Attributes:
      by: the library that loaded the file.
      images: which images were compared, in words.
      count: how many.
      difference: the largest between two outputs.
      limit: the largest that is accepted.
      agree: images whose most probable class is the same.
      outputs: logits or probabilities.
      logits: of the same program, if its outputs are probabilities.
    """

    by: str
    images: str
    count: int
    difference: float
    limit: float
    agree: int
    outputs: str = "logits"
    logits: "Comparison | None" = None

    @property
    def holds(self) -> bool:
        return self.difference <= self.limit  # false for nan

    def __str__(self) -> str:
        logits = f", its {self.logits.distance}" if self.logits else ""
        return (
            f"{self.by}, on {self.images}: {self.distance}{logits}, and the top class agrees on {self.agree} of "
            f"{self.count}"
        )

    @property
    def distance(self) -> str:
        return f"{self.outputs} differ by at most {self.difference:.1e} (limit {self.limit:.1e})"


def compare(expected: Outputs, actual: np.ndarray, by: str, images: str, outputs: str = "logits") -> Comparison:
    """Return how far two arrays of outputs, (images, classes), are apart.

    Args:
      outputs: logits or probabilities.
    """
    if actual.shape != expected.shape:
        raise RunError(f"{by} returned outputs of shape {actual.shape}; expected {expected.shape}")
    return Comparison(
        by=by,
        images=images,
        count=len(expected),
        difference=float(np.abs(expected - actual).max()),
        limit=TOLERANCE * max(LEAST[outputs], float(np.abs(expected).max())),
        agree=int((expected.argmax(axis=1) == actual.argmax(axis=1)).sum()),
        outputs=outputs,
    )


def verification_images(source: str, spec: ModelSpec) -> tuple[Decoded, str]:
    """Return images to compare outputs on, decoded, and what they are.

    They are the test split's of a run (the validation split's without one): all of a small split, evenly spaced ones of
    a large one, but for those that cannot be read. Random images take their place where the data cannot be opened.

    Args:
      source: the work directory.
    """
    try:
        if not source:
            raise UserError("the model is of no work directory")
        return _split_images(pathlib.Path(source).expanduser().absolute(), spec)
    except (UserError, RunError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = "there is no config.json" if isinstance(error, FileNotFoundError) else first_line(error, 120)
        shape = (RANDOM_IMAGES, spec.decoded_size, spec.decoded_size, spec.channels)
        noise = np.random.default_rng(0).integers(0, 2**spec.level_bits, shape, spec.rules.dtype)
        return noise, f"{RANDOM_IMAGES} random images, for the data cannot be opened ({reason})"


def _split_images(directory: pathlib.Path, spec: ModelSpec) -> tuple[Decoded, str]:
    config = config_lib.from_saved(json.loads((directory / "config.json").read_text()))
    options = data_options(config)
    if options.name not in ("digits", "folder"):
        from patchnets.data.sources import tfds

        if not tfds.is_prepared(options.name, options.data_dir):
            raise UserError(f"{options.name} is not prepared on this machine")
    data = options.open_source()
    chosen = options.choose_splits(data.sizes)
    role = "test" if chosen["test"] else "val"
    split = chosen[role]
    if not split:
        raise UserError(f"{data.name} has neither a test nor a validation split")
    parts = splits.parse_split(split, data.sizes)
    total = splits.examples(parts)
    count = total if total <= SMALL_SPLIT else SAMPLE
    positions = [(name, i) for name, low, high in parts for i in range(low, high)]
    picked = [positions[round(i)] for i in np.linspace(0, total - 1, count)]
    images: list[images_lib.Decoded] = []
    errors: list[RunError] = []
    for name, position in picked:
        try:
            records = data.records(name)
            image: Any = records.stored(position) if data.encoded else records.examples([position])[0][0]
            images.append(images_lib.decode_one(image, spec, records.name_of(position)))
        except RunError as error:
            errors.append(error)
    if not images:
        raise errors[0]
    which = f"the {total:,}" if len(images) == total else f"{len(images)} of the {total:,}"
    left_out = f" ({len(errors)} more cannot be read)" if errors else ""
    return np.stack(images), f"{which} images of {data.name} {split}{left_out}"


def in_batches(run: Run, images: np.ndarray) -> np.ndarray:
    """Apply a function to images, a batch at a time."""
    return np.concatenate([np.asarray(run(images[i : i + BATCH_SIZE])) for i in range(0, len(images), BATCH_SIZE)])


def run_timm(directory: pathlib.Path, network: TimmNetwork) -> tuple[Run, str]:
    """Return the network in a folder as timm loads it, (batch, height, width, channels) -> logits, and timm's version.

    Raises:
      ImportError: timm, PyTorch or torchvision are not installed.
    """
    import timm
    import torch
    from safetensors.torch import load_file

    if network.entry_point:
        module = timm.create_model(f"local-dir:{directory}", pretrained=True)
    else:
        code = {name: _resolve(dotted) for name, dotted in network.class_code.items()}
        module = getattr(timm.models, network.class_name)(**network.class_args, **code)
        module.load_state_dict(load_file(directory / folders.SAFETENSORS))
    module.eval()

    def run(inputs: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(np.ascontiguousarray(inputs.transpose(0, 3, 1, 2)))).numpy()

    return run, f"timm {timm.__version__}"


def _resolve(dotted: str) -> Any:
    """Return the object of a dotted name, as torch.nn.ReLU."""
    root, *names = dotted.split(".")
    return functools.reduce(getattr, names, importlib.import_module(root))


def run_onnx(path: pathlib.Path) -> tuple[Run, str]:
    """Return an ONNX model as onnxruntime runs it, or onnx's reference in NumPy, and which of them."""
    try:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        by = f"onnxruntime {onnxruntime.__version__}"
    except ImportError:
        import onnx.reference

        session, by = onnx.reference.ReferenceEvaluator(str(path)), f"onnx {onnx.__version__} (its NumPy reference)"
    return lambda images: session.run(None, {"images": images})[0], by


def run_jax_export(path: pathlib.Path) -> tuple[Run, str]:
    """Return a program as jax.export loads it, on the CPU if there is one, and JAX's version."""
    program = jax_export.deserialize(bytearray(path.read_bytes()))
    device = next(_cpu_devices(), jax.local_devices()[0])

    def run(images: np.ndarray) -> np.ndarray:
        with jax.default_device(device):
            return np.asarray(program.call(images))

    return run, f"jax.export of JAX {jax.__version__}"


def _cpu_devices() -> Iterator[jax.Device]:
    """Yield the CPU's devices: none if JAX is configured without."""
    try:
        yield from jax.local_devices(backend="cpu")
    except RuntimeError:
        return


def same_variables(first: Any, second: Any) -> bool:
    """Return whether two trees of variables hold the same arrays, to the last bit."""
    first, second = (traverse_util.flatten_dict(tree, sep="/") for tree in (first, second))
    if first.keys() != second.keys():
        return False
    pairs = [(np.asarray(first[path]), np.asarray(second[path])) for path in first]
    return all(a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)
