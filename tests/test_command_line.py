"""What all commands share: words, exit statuses, streams, interrupts, and which package they run."""

from __future__ import annotations

import pytest

from benchmarks.errors import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("an é, a – and 数字", "an é, a – and 数字"),
        ("two\nlines\r\tand a tab", r"two\nlines\r\tand a tab"),
        ("\x1b[31mred\x9b0m\x07", r"\x1b[31mred\x9b0m\x07"),
        ("right\u202eto left\u2028", r"right\u202eto left\u2028"),
        ("not UTF-8: \udcff", r"not UTF-8: \udcff"),
    ],
)
def test_what_is_printed_is_one_line_without_codes(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown
