"""The published tables against the configurations that they name."""

import re

import pytest

from experiments.tables import TABLES
from experiments.tables.sizes import counted
from patchnets.config.flags import parse_flags

ROWS = [(name, row) for name, table in TABLES.items() for row in table]


@pytest.mark.parametrize("table", TABLES)
def test_ids_are_names_of_folders_and_each_is_there_once(table):
    ids = [row.id for row in TABLES[table]]
    assert len(set(ids)) == len(ids) > 5
    assert all(re.fullmatch(r"[\w-]+", name) for name in ids)


@pytest.mark.parametrize("row", [row for _, row in ROWS], ids=[f"{name}:{row.id}" for name, row in ROWS])
def test_a_row_is_a_configuration_that_claims_the_same_and_takes_as_long(row):
    changes = [f"--config.{name}={value}" for name, value in row.changes.items()]
    changes += ["--config.init.weights=weights.npz"] * bool(row.weights)
    config, _ = parse_flags(["x", f"--config={row.config}", *changes])
    assert config.dataset.name == row.dataset
    assert (config.total_epochs, config.total_steps) == (row.cost.epochs, row.cost.steps)
    assert config.published.incomparable is None or row.changes
    claimed = {} if row.changes else {name: config.published[name] for name in ("accuracy", "top5_accuracy")}
    assert {name: value for name, value in claimed.items() if value is not None} == row.published
    if row.published:
        assert config.published.tolerance == row.tolerance
    assert row.source and row.cost.device
    assert all(0 < value < 1 for value in (*row.published.values(), *row.curve.values()))
    assert all(epoch <= row.cost.epochs for epoch in row.curve)
    assert bool(row.weights) == bool(config.init.weights)


@pytest.mark.slow
def test_every_network_has_its_published_size():
    sizes = {size.id: size for size in counted()}
    assert sizes["mlp_mixer B/16"].counted_params == 59_880_472 and len(sizes) > 30
    assert [size.id for size in sizes.values() if size.verdict != "reproduced"] == []
    wrong = sizes["vit B/16"]._replace(counted_params=1)
    assert wrong.verdict == "not reproduced"
    assert sizes["vit B/16"]._replace(counted_gmacs=17.8).verdict == "not reproduced"
