"""Models from work directories, exported folders, and weights of other projects."""

import os
import sys
from typing import Any

from patchnets.inference.model import Model
from patchnets.models.blocks import stack_blocks
from patchnets.runtime.files import refuse_url
from patchnets.runtime.format import printable
from patchnets.weights.pretrained import read_pretrained


def load(source: str | os.PathLike[str], checkpoint: str | int = "best", network: str | None = None) -> Model:
    """Return a trained model: a run's, an export of one, or weights that others trained. What the source does not say,
    and was assumed, is printed on stderr.

    Args:
      source: a work directory; an exported folder; a folder, a file or an id of the hub as `read_pretrained` takes them
        (docs/weights.md). Of a work directory with model.json, neither data set nor configuration file is needed.
      checkpoint: of a work directory: "best" by validation, "latest", or the step of one that was kept.
      network: timm's name of the architecture, or ours of the family, for a file that does not say it.

    Raises:
      UserError: there are no such weights, there is no such checkpoint, or no network of ours fits them.
      RunError: no checkpoint can be read, or the file of weights is broken.
    """
    refuse_url(source)
    pretrained = read_pretrained(source, network, checkpoint)
    variables: Any = pretrained.variables
    variables = stack_blocks(variables) if pretrained.fields.get("scan") else variables
    for note in pretrained.notes:
        print(f"{source}: {printable(note)}", file=sys.stderr)
    return Model(pretrained.spec, variables, str(pretrained.path), pretrained.step, pretrained.notes)
