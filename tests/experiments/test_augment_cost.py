"""The program that measures what augmentation costs, on a few operations and the smallest tutorial."""

import json
import re

import pytest

from experiments.micro import augment_cost


def test_each_work_takes_its_turn_and_the_median_counts():
    calls = []
    works = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    actual = augment_cost.milliseconds(works, rounds=3)
    assert calls == ["a", "b"] * 4 and set(actual) == {"a", "b"} and all(ms >= 0 for ms in actual.values())


@pytest.mark.slow
def test_the_tables_say_what_was_measured(monkeypatch, capsys, tmp_path):
    every = augment_cost.operations(3, 8)
    monkeypatch.setattr(augment_cost, "operations", lambda channels, height: {"flip": every["flip"]})
    monkeypatch.setattr(augment_cost, "POLICIES", ())
    monkeypatch.setitem(augment_cost.TUTORIALS, "mixer", ("mixer_digits", 10))
    out = tmp_path / "costs.json"
    assert augment_cost.main(["augment_cost", "--steps=mixer", "--rounds=1", f"--out={out}"]) == 0
    text, actual = capsys.readouterr().out, json.loads(out.read_text())
    ms, rate = re.search(r"^flip +([\d.]+) +([\d,]+)$", text, re.MULTILINE).groups()
    assert float(rate.replace(",", "")) == pytest.approx(128_000 / actual["operations_128x64x64"]["flip"], rel=0.01)
    assert float(ms) == pytest.approx(actual["operations_128x64x64"]["flip"], abs=0.06)
    costs = actual["tutorials"]["mixer"]
    share = re.search(r"^own augmentation .* (\d+)%$", text, re.MULTILINE).group(1)
    assert int(share) == pytest.approx(100 * costs["own augmentation"] / costs["step"], abs=0.6)


@pytest.mark.parametrize("argument", ["--steps=resnet", "--rounds=0", "--out=costs.txt", "more"])
def test_mistakes_cost_one_line(argument, capsys):
    assert augment_cost.main(["augment_cost", argument]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
