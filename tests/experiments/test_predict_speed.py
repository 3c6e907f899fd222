"""The comparison of prediction with timm's: what a turn counts, and errors."""

import numpy as np
import pytest

from experiments.micro import predict_speed
from patchnets.parallel import cpu


def test_a_rate_is_the_median_over_the_counted_turns(monkeypatch):
    clock = iter([0, 0, *(0, 2, 2, 10), *(10, 14, 14, 24), *(24, 30, 30, 70)])  # the first turn is not counted
    monkeypatch.setattr(predict_speed.time, "perf_counter", lambda: next(clock))
    methods = {"first": lambda: [0] * 20, "second": lambda: [0] * 20}
    assert predict_speed.rates(methods, 20, 3) == {"first": 20 / 4, "second": 20 / 10}


def test_a_method_that_leaves_images_out_is_no_method():
    with pytest.raises(AssertionError):
        predict_speed.rates({"first": lambda: [0] * 19}, 20, 1)


@pytest.mark.slow
def test_the_network_measured_is_the_one_described():
    model = predict_speed.make_model("mlp_mixer", 32, **predict_speed.MIXER)
    probabilities = model.probabilities(np.zeros((2, 32, 32, 3), np.uint8))
    assert probabilities.shape == (2, 100) and np.allclose(probabilities.sum(-1), 1, atol=1e-5)
    assert len([name for name in model.variables["params"] if name.startswith("MixerBlock")]) == 8


@pytest.mark.parametrize("option", ["--images=0", "--photos=-1", "--turns=0", "--batch_size=0", "--image=1"])
def test_a_mistake_costs_one_line(option, capsys, monkeypatch):
    monkeypatch.setattr(cpu, "use_one_device_per_core", lambda *_: pytest.fail("too late"))
    assert predict_speed.main(["predict_speed", option]) == 2
    assert capsys.readouterr().err.count("\n") == 1
