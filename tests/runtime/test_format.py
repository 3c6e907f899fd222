"""Durations, sizes and counts as text."""

from patchnets.runtime.format import format_duration, printable, same_name


def test_durations_are_in_the_unit_that_suits():
    seconds = (0, 59.94, 60, 89, 3540, 3571, 3725, 86400)
    expected = ["0.0 s", "59.9 s", "1 min", "1 min", "59 min", "1 h 00 min", "1 h 02 min", "24 h 00 min"]
    assert [format_duration(each) for each in seconds] == expected


def test_of_a_name_that_cannot_be_printed_only_such_characters_become_codes():
    assert printable("狗 café $_1") == "狗 café $_1"
    assert printable("狗\n\x1b\u202e") == "狗\\n\\x1b\\u202e"
    assert printable(b"caf\xe9".decode(errors="surrogateescape")) == "caf\\udce9"


def test_the_forms_of_a_name_have_one_in_common():
    assert same_name("cafe\u0301") == same_name("caf\u00e9") != same_name("cafe")
