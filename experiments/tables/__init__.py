"""Published tables as data. `python -m experiments.reproduce` trains their rows."""

from experiments.runner.run_spec import RunSpec
from experiments.tables import cifar, imagenet, keras_examples, transfer

TABLES: dict[str, tuple[RunSpec, ...]] = {
    "keras_examples": keras_examples.TABLE,
    "cifar": cifar.TABLE,
    "imagenet": imagenet.TABLE,
    "transfer": transfer.TABLE,
}
SIZES = "sizes"  # parameters and GMACs, which need no training: experiments.tables.sizes
