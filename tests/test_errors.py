"""Errors are one line, whatever the names in them are."""

from patchnets.errors import UserError, report_error


def test_line_breaks_and_other_control_characters_of_names_do_not_reach_the_screen(capsys):
    assert report_error(UserError("two\nlines \x1b[2J of 狗, caf\udce9")) == 2
    assert capsys.readouterr().err == "patchnets: two\\nlines \\x1b[2J of 狗, caf\\udce9\n"
