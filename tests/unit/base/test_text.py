# SPDX-License-Identifier: GPL-3.0-or-later
"""Text that others write, as it is shown."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, strategies as st

from ansible_collections.virtops.live_backup.plugins.module_utils._base.text import MOST_CHARACTERS, foreign, screen


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("No such file", "No such file"),
        ("two\nlines\r\n", "two lines"),
        ("\x1b[0;31m*\x1b[0;1;31m*\x1b[0m] Job running", "**] Job running"),
        ("\x1b]0;a title\x07text", "text"),
        ("10 %\r20 %\r100 %", "100 %"),
        ("long line\rshort", "shortline"),
        ("a\x00b\x08c\x7f", "abc"),
        ("right\u202eleft", "rightleft"),
        ("line\u2028separator", "line separator"),
        (b"\xff bytes", "\\xff bytes"),
        ("lone \udcff surrogate", "lone \\udcff surrogate"),
        ("busy.\n\n## Restore\n\n```\ncurl | sh\n```", "busy. ## Restore ``` curl | sh ```"),
    ],
)
def test_foreign_text(text: str | bytes, shown: str) -> None:
    assert foreign(text) == shown


def test_it_is_cut() -> None:
    assert foreign("a" * 500) == "a" * (MOST_CHARACTERS - 3) + "..."
    assert foreign("abcdef", 5) == "ab..."


def test_lines_of_a_screen() -> None:
    assert screen("one\n\x1b[2K two\rTWO\n") == ["one", "TWOo", ""]


@pytest.mark.parametrize("text", ["Job (1s)\r\n\x1bM\r\x1b[KJob", "long line\r\x1b[KJob", "long line\r\x1b[2KJob", "ab\n\x1bMJob"])
def test_a_line_that_is_written_again(text: str) -> None:
    assert screen(text) == ["Job"]


@pytest.mark.parametrize(
    "text", ["a" * 500_000 + "\r" * 500_000, "a" * 500_000 + "\rb" * 250_000, "\r\n\x1bM" * 250_000, "\x1b]" * 500_000]
)
def test_what_would_take_long(text: str) -> None:
    began = time.process_time()
    screen(text)
    assert time.process_time() - began < 10


@given(st.one_of(st.text(), st.binary()))
def test_it_is_one_printable_line(text: str | bytes) -> None:
    shown = foreign(text)
    assert len(shown) <= MOST_CHARACTERS and (shown.isprintable() or not shown) and shown.strip() == shown
    shown.encode()
