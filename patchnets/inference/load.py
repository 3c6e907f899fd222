"""Models from work directories, exported folders, and weights of other projects."""

import dataclasses
import math
import os
import sys
from typing import Any

from patchnets.errors import UserError
from patchnets.inference.model import Model
from patchnets.models.blocks import stack_blocks
from patchnets.models.resize_weights import RULES, resize_weights
from patchnets.run.model_spec import ModelSpec, plain_fields
from patchnets.runtime.files import refuse_url
from patchnets.runtime.format import printable
from patchnets.weights.pretrained import read_pretrained


def load(
    source: str | os.PathLike[str],
    checkpoint: str | int = "best",
    network: str | None = None,
    image_size: int | None = None,
    resize: str = "bilinear",
) -> Model:
    """Return a trained model: a run's, an export of one, or weights that others trained. What the source does not say,
    and was assumed, is printed on stderr.

    Args:
      source: a work directory; an exported folder; a folder, a file or an id of the hub as `read_pretrained` takes them
        (docs/weights.md). Of a work directory with model.json, neither data set nor configuration file is needed.
      checkpoint: of a work directory: "best" by validation, "latest", or the step of one that was kept.
      network: timm's name of the architecture, or ours of the family, for a file that does not say it.
      image_size: side in pixels of the inputs, if not that of the training.
      resize: how weights are adapted to it, a rule of `models.resize_weights`.

    Raises:
      UserError: there are no such weights, there is no such checkpoint, no network of ours fits them, or it cannot be
        adapted to `image_size`.
      RunError: no checkpoint can be read, or the file of weights is broken.
    """
    refuse_url(source)
    if resize not in RULES:
        raise UserError(f"resize={resize!r} is unknown; expected one of {', '.join(RULES)}")
    pretrained = read_pretrained(source, network, checkpoint)
    spec: ModelSpec = pretrained.spec
    variables: Any = pretrained.variables
    variables = stack_blocks(variables) if spec.fields.get("scan") else variables
    if image_size is not None and image_size != spec.image_size:
        spec, variables = _resize(spec, variables, image_size, resize)
    for note in pretrained.notes:
        print(f"{source}: {printable(note)}", file=sys.stderr)
    return Model(spec, variables, str(pretrained.path), pretrained.step, pretrained.notes)


def _resize(spec: ModelSpec, variables: Any, image_size: int, rule: str) -> tuple[ModelSpec, Any]:
    """Return the spec and the variables of a network for inputs of `image_size` pixels.

    Images that are decoded at the size of the inputs, or larger, grow or shrink with it; smaller ones stay as they are.
    """
    network, resized = resize_weights(spec.create_model(), variables, spec.image_size, image_size, rule)
    decoded_size = spec.decoded_size
    if decoded_size >= spec.image_size:
        decoded_size = round(decoded_size * image_size / spec.image_size)
    if spec.shorter_side is not None:  # timm's rule
        spec = dataclasses.replace(spec, shorter_side=math.floor(image_size / spec.decoded_crop_pct))
    fields = plain_fields(spec.network, network)
    return dataclasses.replace(spec, fields=fields, image_size=image_size, decoded_size=decoded_size), resized
