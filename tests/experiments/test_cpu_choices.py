"""The program that compares what a CPU's devices and groups give."""

import pytest

from experiments.micro import cpu_choices


@pytest.mark.parametrize("argument", ["--model=resnet", "--model=", "--steps=0", "--step=3"])
def test_what_is_not_understood_costs_one_line(argument, capsys):
    assert cpu_choices.main(["cpu_choices", argument]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
    assert argument in err and "mixer, fnet, gmlp, vit, convmixer" in err and "--steps=N" in err


def test_networks_and_steps_are_taken():
    assert cpu_choices.parse_args(["--model=vit,fnet", "--steps=2"]) == (["vit", "fnet"], 2)
    assert cpu_choices.parse_args([]) == (["mixer", "fnet", "gmlp", "vit", "convmixer"], 3)
