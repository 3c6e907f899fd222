"""The first lines of output."""

import jax
import pytest

from patchnets.run import console


@pytest.mark.parametrize(
    "devices, num_microbatches, line",
    [
        (2, 8, "2 devices, microbatches of 16"),
        (1, 4, "1 device, microbatches of 32"),
        (2, 1, "2 devices, the whole batch at once"),
    ],
)
def test_how_a_cpu_works_is_one_line(devices, num_microbatches, line):
    assert console.describe_cpu(devices, 128, num_microbatches) == line


def test_an_accelerator_has_no_such_line(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert console.describe_cpu(2, 128, 1) is None
