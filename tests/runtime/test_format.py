"""Durations, sizes and counts as text."""

from patchnets.runtime.format import format_duration


def test_durations_are_in_the_unit_that_suits():
    seconds = (0, 59.94, 60, 89, 3540, 3571, 3725, 86400)
    expected = ["0.0 s", "59.9 s", "1 min", "1 min", "59 min", "1 h 00 min", "1 h 02 min", "24 h 00 min"]
    assert [format_duration(each) for each in seconds] == expected
