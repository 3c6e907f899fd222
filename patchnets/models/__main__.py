"""Print every model and variant: its cost, the published cost, and the difference.

    python -m patchnets.models [NAME ...]

NAME  a model, such as mlp_mixer; all of them by default. Exit status: 0, or 2 for a name that is not known.
"""

import sys
from collections.abc import Iterator

from patchnets import models
from patchnets.errors import UserError
from patchnets.models.flops import cost
from patchnets.models.published_sizes import PUBLISHED

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
            found = cost(network(num_classes=published.num_classes, **fields), published.image_size)
            gmacs = found.macs / 1e9
            yield (
                name,
                variant,
                str(published.image_size),
                f"{published.num_classes:,}",
                f"{found.tokens:,}",
                f"{found.params:,}",
                "-" if published.params is None else f"{published.params:,}",
                "-" if published.params is None else f"{found.params - published.params:+,}".replace("+0", "0"),
                f"{gmacs:.3f}" if gmacs < 1 else f"{gmacs:.2f}",
                "-" if published.gmacs is None else f"{published.gmacs:.2f}",
                "-" if published.gmacs is None else f"{gmacs / published.gmacs - 1:+.1%}",
            )


def line(cells: tuple[str, ...], widths: list[int]) -> str:
    aligned = (f"{cell:<{w}}" if i < NUMBERS_FROM else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(cells, widths)))
    return "  ".join(aligned).rstrip()


def main(argv: list[str]) -> int:
    """Run the command line and return the exit status."""
    if {"--help", "-h"} & set(argv[1:]):
        print(__doc__)
        return 0
    names = list(dict.fromkeys(argv[1:])) or list(models.MODELS)
    for name in names:
        if name not in models.MODELS:
            print(f"patchnets: unknown model {name!r}; known models: {', '.join(models.MODELS)}", file=sys.stderr)
            return UserError.status
    table = list(rows(names))
    widths = [max(len(row[i]) for row in (COLUMNS, *table)) for i in range(len(COLUMNS))]
    print(line(COLUMNS, widths))
    for i, row in enumerate(table):
        if i and row[0] != table[i - 1][0] and len(models.MODELS[table[i - 1][0]][1]) > 1:
            print()
        print(line(row, widths))
    print(
        "\nGMACs: billions of multiply-accumulates of matrix products, convolutions and Fourier transforms, an image."
        "\nA dash: nothing is published, because the sizes are this project's own or the source gives no figure."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
