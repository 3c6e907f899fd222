"""Print every model and variant: its cost, the published cost, and the difference.

    python -m patchnets.models [NAME ...]

Exit status: 0, or 2 for an unknown name.
"""

import sys
from collections.abc import Iterator

from patchnets import models
from patchnets.errors import UserError
from patchnets.models.flops import cost
from patchnets.models.published_sizes import PUBLISHED
from patchnets.runtime.cli import ArgumentParser, run_cli

COLUMNS = (
    "model",
    "variant",
    "pixels",
    "classes",
    "tokens",
    "parameters",
    "published",
    "diff",
    "GMACs",
    "published",
    "diff",
)
NUMBERS_FROM = 2  # columns from here on are numbers, right-aligned


def rows(names: list[str]) -> Iterator[tuple[str, ...]]:
    """Yield the table cells of every variant of the named models."""
    for name in names:
        network, variants = models.MODELS[name]
        for variant, fields in variants.items():
            published = PUBLISHED[name, variant]
            model_cost = cost(network(num_classes=published.num_classes, **fields), published.image_size)
            gmacs = model_cost.macs / 1e9
            yield (
                name,
                variant,
                str(published.image_size),
                f"{published.num_classes:,}",
                f"{model_cost.tokens:,}",
                f"{model_cost.params:,}",
                "-" if published.params is None else f"{published.params:,}",
                "-" if published.params is None else f"{model_cost.params - published.params:+,}".replace("+0", "0"),
                f"{gmacs:.3f}" if gmacs < 1 else f"{gmacs:.2f}",
                "-" if published.gmacs is None else f"{published.gmacs:.2f}",
                "-" if published.gmacs is None else f"{gmacs / published.gmacs - 1:+.1%}",
            )


def line(cells: tuple[str, ...], widths: list[int]) -> str:
    aligned = (f"{cell:<{w}}" if i < NUMBERS_FROM else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(cells, widths)))
    return "  ".join(aligned).rstrip()


def model_name(value: str) -> str:
    """Return NAME if there is such a model, or else raise UserError."""
    if value not in models.MODELS:
        raise UserError(f"unknown model {value!r}; known models: {', '.join(models.MODELS)}")
    return value


def execute(arguments: list[str]) -> int:
    """Print the table; return the exit status."""
    parser = ArgumentParser("python -m patchnets.models", description=__doc__)
    parser.add_argument(
        "names", nargs="*", type=model_name, metavar="NAME", help="a model, such as mlp_mixer (default: all)"
    )
    names = list(dict.fromkeys(parser.parse_args(arguments).names)) or list(models.MODELS)
    table = list(rows(names))
    widths = [max(len(row[i]) for row in (COLUMNS, *table)) for i in range(len(COLUMNS))]
    print(line(COLUMNS, widths))
    for i, row in enumerate(table):
        if i and row[0] != table[i - 1][0] and len(models.MODELS[table[i - 1][0]][1]) > 1:
            print()
        print(line(row, widths))
    print(
        "\nGMACs: billions of multiply-accumulates of matrix products, convolutions and Fourier transforms, per image."
        "\nA dash: no published figure; the sizes are this project's own, or the source gives none."
    )
    return 0


def main(argv: list[str]) -> int:
    """Run a command line and return the exit status."""
    return run_cli(argv, execute)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
