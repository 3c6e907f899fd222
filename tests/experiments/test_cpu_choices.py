"""The program that compares devices and microbatches of a CPU."""

import pytest

from experiments.micro import cpu_choices

KNOWN = "known: mixer, fnet, gmlp, vit, convmixer"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--model=resnet", f"--model: there is no tutorial 'resnet'; {KNOWN}"),
        ("--model=", f"--model: there is no tutorial ''; {KNOWN}"),
        ("--steps=0", "--steps: expected a whole number above 0, got '0'"),
        ("--step=3", "unrecognized arguments: --step=3; --help lists the options"),
    ],
)
def test_what_is_not_understood_costs_one_line(argument, message, capsys):
    assert cpu_choices.main(["cpu_choices", argument]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
    assert err == f"patchnets: {message}\n"


def test_networks_and_steps_are_taken():
    settings = cpu_choices.parse_args(["--model=vit,fnet", "--steps=2"])
    assert (settings.model, settings.steps) == (("vit", "fnet"), 2)
    settings = cpu_choices.parse_args([])
    assert (settings.model, settings.steps) == (("mixer", "fnet", "gmlp", "vit", "convmixer"), 3)
