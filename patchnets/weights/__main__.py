"""Print what is inside weights: network, preprocessing, classes, what was assumed, and every array.

    python -m patchnets.weights SOURCE [--network=NAME] [--checkpoint=best] [--norms=off]
    python -m patchnets.weights SOURCE --against=CONFIG [--config.KEY=VALUE ...] [--classes=K]

SOURCE is a work directory; an exported folder; a folder with config.json and model.safetensors, or a .safetensors file,
of timm or of transformers' ViT or DINOv2; an official .npz of MLP-Mixer or ViT; hf-hub:ORG/NAME[@REVISION] or
timm:NAME, from the local cache or, with huggingface_hub installed, from the network. --network is timm's name of the
architecture (vit_small_patch16_224), or the family (vit), where a file does not say it. --norms=off reads the header
only, and not the arrays.

Exit status: 0; 1 the file is broken; 2 there is no such file, or no network fits it.
"""

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from patchnets import runtime
from patchnets.errors import UserError
from patchnets.runtime.cli import ArgumentParser, checkpoint, positive_int, run_cli

PROGRAM = "patchnets.weights"
COLUMNS = ("array", "shape", "type", "norm")


def execute(arguments: list[str]) -> int:
    """Print the contents; return the exit status."""
    parser = ArgumentParser(f"python -m {PROGRAM}", description=__doc__)
    parser.add_argument("source", metavar="SOURCE", help="a folder, a file, or an id of the hub")
    parser.add_argument("--network", metavar="NAME", help="timm's name of the architecture, or ours of the family")
    parser.add_argument("--checkpoint", type=checkpoint, default="best", help="of a run: best, latest or a step")
    parser.add_argument("--norms", choices=("on", "off"), default="on", help="read every array for its norm")
    parser.add_argument("--against", metavar="CONFIG", help="a configuration, as patchnets.main takes it")
    parser.add_argument("--classes", type=positive_int, metavar="K", help="of data that are not on this machine")
    options, overrides = parser.parse_with_overrides(arguments)
    unused = [*overrides, *(["--classes"] if options.classes else [])]
    if unused and not options.against:
        raise UserError(f"{unused[0]} needs --against=CONFIG")
    runtime.silence_logs()
    from patchnets.weights.pretrained import read_pretrained

    pretrained = read_pretrained(options.source, options.network, options.checkpoint)
    print(f"{options.source}: {pretrained.layout}")
    for line in describe(pretrained):
        print(line)
    print()
    if options.against:
        for line in compare(pretrained, options, overrides):
            print(line)
        return 0
    norms = {} if options.norms == "off" else norms_of(pretrained)
    rows = [
        (name, " x ".join(map(str, shape)) or "-", kind, norms.get(name, "-"))
        for name, (shape, kind) in pretrained.header.items()
    ]
    for line in table([COLUMNS, *rows]):
        print(line)
    return 0


def describe(pretrained: Any) -> Iterator[str]:
    """Yield lines that say what the weights are."""
    from patchnets import models
    from patchnets.runtime.format import list_names, printable
    from patchnets.weights.load_timm import variable_shapes

    spec = pretrained.spec
    fields = {name: spec.fields[name] for name in models.config_fields(spec.network) if name in spec.fields}
    defaults = {field.name: field.default for field in dataclasses.fields(models.MODELS[spec.network][0])}
    defaults["dtype"] = "float32"
    shapes = variable_shapes(spec.create_model(), spec.image_size, spec.channels)
    count = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("params/"))
    levels = lambda values: ", ".join(f"{value:.4g}" for value in values)
    yield f"network     {spec.network}: {', '.join(f'{k}={v}' for k, v in fields.items() if v != defaults[k])}"
    yield f"parameters  {count:,}"
    yield f"input       {spec.image_size} x {spec.image_size} pixels, {spec.channels} channels"
    yield f"mean, std   {levels(spec.mean)}; {levels(spec.std)} (of levels from 0 to 255)"
    resized = "" if spec.shorter_side is None else f", shorter side to {spec.shorter_side} pixels"
    yield f"crop_pct    {pretrained.crop_pct:.4g}, {spec.interpolation}{resized}"
    yield f"classes     {len(spec.classes):,}" + (f": {list_names(spec.classes)}" if spec.classes else ", no head")
    for line in pretrained.assumed:
        yield f"assumed     {printable(line)}"
    if pretrained.leftovers:
        yield f"left out    {list_names(pretrained.leftovers)}"


def norms_of(pretrained: Any) -> dict[str, str]:
    """Return the Euclidean norm of every array, by its name in the file."""
    import numpy as np

    return {name: f"{np.linalg.norm(np.asarray(array, np.float64)):.4g}" for name, array in pretrained.arrays()}


def compare(pretrained: Any, options: argparse.Namespace, overrides: Sequence[str]) -> Iterator[str]:
    """Yield lines that say what a run of a configuration would take from the weights, by the code of such a run.

    The data are opened for their classes and channels, and no image is decoded.

    Raises:
      UserError: the configuration is invalid, or the weights do not fit its network or its data.
    """
    from patchnets import models
    from patchnets.config import flags, flatten, validate
    from patchnets.estimate.dataset_spec import find_dataset_spec
    from patchnets.experiment import data_options
    from patchnets.inference.warm_start import fields_of_weights, fit_to_run

    init = [f"--config.init.weights={options.source}"]
    init += [f"--config.init.network={options.network}"] if options.network else []
    config, _ = flags.parse_flags([PROGRAM, f"--config={options.against}", *overrides, *init])
    config.update_from_flattened_dict(fields_of_weights(flatten(config)))
    validate(config)
    count = None if options.classes is None else 1  # of images, on which the weights do not depend
    data = find_dataset_spec(data_options(config), 1, count, options.classes, instead="--classes=K")
    result = fit_to_run(
        pretrained.spec,
        pretrained.variables,
        models.create_model(**config.model, num_classes=data.num_classes),
        data,
        preprocess=None if config.normalize == "dataset" else data.preprocess,  # which takes decoding all images
        image_size=config.image_size,
        head=config.init.head,
        resize=config.init.resize,
        skip=config.init.skip,
    )
    images = f"{config.image_size} pixels and {data.num_classes:,} classes ({data.name})"
    yield f"{options.against}: {config.model.name} for {images}"
    yield from (result.summary()[0], *result.notes, "")
    rows = []
    for what in ("adapted", "new", "left_out"):
        rows += [(what.replace("_", " "), name, how) for name, how in getattr(result, what).items()]
    rows += [("taken", name, str(result.arrays[name].shape)) for name in result.taken]
    yield from table(rows)


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table, whose columns are as wide as their widest cell."""
    from patchnets.runtime.format import printable

    rows = [list(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip()


def main(argv: list[str]) -> int:
    """Carry out a command line and return the exit status."""
    return run_cli(argv, execute, PROGRAM)


if __name__ == "__main__":
    runtime.reexec_with_huge_pages()
    sys.exit(main(sys.argv))
