"""Published tables as data. `python -m experiments.reproduce` trains their rows."""

from experiments.tables import cifar, imagenet, keras_examples
from experiments.tables.row import Row

TABLES: dict[str, tuple[Row, ...]] = {
    "keras_examples": keras_examples.TABLE,
    "cifar": cifar.TABLE,
    "imagenet": imagenet.TABLE,
}
SIZES = "sizes"  # parameters and GMACs, which need no training: experiments.tables.sizes
