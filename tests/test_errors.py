"""What an error for people shows of a stranger's file."""

from __future__ import annotations

import pytest

from cspnet.errors import DataError, UserError


def test_a_message_stays_as_it_is() -> None:
    text = "data/ü 日本.jpg: two  spaces, 'quotes' and a \\ stay"
    assert str(DataError(text)) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("a\rb", r"a\rb"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\x85\u2028b", r"a\x85\u2028b"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_would_break_the_line_or_steer_the_terminal_is_spelt_out(text: str, shown: str) -> None:
    assert str(UserError(text)) == shown


def test_the_middle_of_a_long_message_is_left_out() -> None:
    text = str(UserError("list.txt line 3: " + "x" * 1_000_000 + ": no such file"))
    assert text.startswith("list.txt line 3: xxx")
    assert text.endswith("xxx: no such file")
    assert " … " in text
    assert len(text) < 4000
