"""A trained network as a program that runs without patchnets: by jax.export, or as ONNX.

Programs hold the weights, compute in float32, and take any number of images.
"""

import contextlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxtyping import Array, Float

from patchnets.errors import RunError, UserError, first_line
from patchnets.models.blocks import unstack_blocks
from patchnets.parallel.backend import target_backend
from patchnets.run.model_spec import ModelSpec
from patchnets.runtime.format import format_bytes

PLATFORMS = ("cpu", "cuda", "tpu")
MAX_BYTES = 2**31 - 2**20  # of one file: both formats count bytes with 31 bits
OPSET = 21
INSTALL_ONNX = (
    "pip install --no-deps --target=DIR jax2onnx onnx onnx-ir onnxruntime sympy mpmath, and PYTHONPATH=DIR (make onnx "
    "installs the tested versions to .venv/onnx)"
)


def input_shape(spec: ModelSpec, inputs: str) -> tuple[int, int, int]:
    """Return (height, width, channels) of one image as a program takes it.

    Args:
      inputs: "float", normalized inputs of the network; or the type of decoded images (`ModelSpec.rules`).
    """
    side = spec.image_size if inputs == "float" else spec.decoded_size
    return side, side, spec.channels


def make_function(
    spec: ModelSpec, variables: Any, inputs: str, outputs: str, **fields: Any
) -> Callable[[Array], Float[Array, "batch classes"]]:
    """Return the function (batch, height, width, channels) -> logits or probabilities that a program computes.

    Args:
      inputs, outputs: among INPUTS and OUTPUTS of patchnets.weights.
      fields: of the network, in place of its own.
    """
    plain: dict[str, Any] = dict(dtype=jnp.float32, remat=False, depthwise_impl="conv", attention_impl="plain") | fields
    any_network: Any = spec.create_model()
    network = any_network.clone(**{name: value for name, value in plain.items() if hasattr(any_network, name)})

    def function(images: Array) -> Float[Array, "batch classes"]:
        x = images if inputs == "float" else spec.preprocess(images)
        logits = network.apply(variables, x, train=False).astype(jnp.float32)
        if outputs == "logits":
            return logits
        return jax.nn.sigmoid(logits) if spec.loss == "sigmoid" else jax.nn.softmax(logits)

    return function


def check_size(variables: Any) -> None:
    """Raise UserError for weights that one file cannot hold."""
    total = sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))
    if total > MAX_BYTES:
        raise UserError(
            f"the weights take {format_bytes(total)}, and such a file holds at most 2 GiB; use --to=timm or --to=npz"
        )


def to_jax_export(spec: ModelSpec, variables: Any, inputs: str, outputs: str) -> bytes:
    """Return the program as jax.export serializes it, for CPU, CUDA and TPU."""
    function = make_function(spec, variables, inputs, outputs, fourier_impl="fft")
    (batch,) = jax_export.symbolic_shape("batch")
    kind = jnp.dtype("float32" if inputs == "float" else inputs)
    images = jax.ShapeDtypeStruct((batch, *input_shape(spec, inputs)), kind)
    with target_backend("tpu"):  # without what is done for a CPU's caches or by a GPU's own library
        exported = jax_export.export(jax.jit(function), platforms=PLATFORMS)(images)
    return bytes(exported.serialize())


def to_onnx(spec: ModelSpec, variables: Any, inputs: str, outputs: str, metadata: Mapping[str, Any]) -> bytes:
    """Return the program as an ONNX model.

    Args:
      metadata: kept in the model's metadata_props, every value as JSON.

    Raises:
      UserError: jax2onnx is not installed.
      RunError: jax2onnx cannot convert this network.
    """
    try:
        import jax2onnx
        import onnx
    except ImportError as error:
        raise UserError(f"--to=onnx needs jax2onnx, and {error.name} is not installed; {INSTALL_ONNX}") from error
    apart = jax.tree.map(np.asarray, unstack_blocks(variables))
    function = make_function(spec, apart, inputs, outputs, fourier_impl="matrix", scan=False)
    kind = jnp.dtype("float32" if inputs == "float" else inputs)
    images: Any = jax.ShapeDtypeStruct(("batch", *input_shape(spec, inputs)), kind)
    try:
        with target_backend("tpu"), _errors_only("jax2onnx", "onnx_ir"):
            model: Any = jax2onnx.to_onnx(
                function,
                inputs=[images],
                model_name=f"patchnets_{spec.network}",
                opset=OPSET,
                input_names=["images"],
                output_names=[outputs],
            )
        onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in metadata.items()})
        onnx.checker.check_model(model)
        return model.SerializeToString()
    except Exception as error:  # jax2onnx raises whatever goes wrong inside it
        reason = f"{type(error).__name__}: {first_line(error, 200)}"
        raise RunError(f"jax2onnx cannot convert {spec.network} ({reason}); use --to=stablehlo") from error


@contextlib.contextmanager
def _errors_only(*loggers: str) -> Iterator[None]:
    """Silence warnings: jax2onnx logs a traceback for every library that it knows and that is not installed."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
