"""The program that times compilation, on the smallest networks; its results are in docs/measurements.md."""

import re

import jax
import pytest

from experiments.micro import compile_times


@pytest.fixture(autouse=True)
def same_cache_afterwards():
    enabled = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", enabled)


@pytest.mark.slow
def test_both_ways_are_timed_and_compared(capsys):
    assert compile_times.main(["compile_times", "keras_mixer:cifar100"]) == 0
    _, apart, scanned, ratio = capsys.readouterr().out.splitlines()
    seconds = [[float(s) for s in re.findall(r"([\d.]+) s", line)] for line in (apart, scanned)]
    assert all(trace + compiling == pytest.approx(both, abs=0.11) for trace, compiling, both in seconds)
    assert float(ratio.split()[1].removesuffix("x")) == pytest.approx(seconds[0][2] / seconds[1][2], rel=0.1)


def test_an_unknown_network_is_refused_with_the_known_ones(capsys):
    assert compile_times.main(["compile_times", "vit:Q/1"]) == 2
    out, err = capsys.readouterr()
    assert not out and "'vit:Q/1'" in err and "vit:H/14" in err and err.count("\n") == 1
