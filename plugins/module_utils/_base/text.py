# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sizes in words, and the one way in for text that others write: a guest, its agent or console, libvirt, a server, a file at a target."""

from __future__ import annotations

import re

# How much of such a text is shown.
MOST_CHARACTERS = 200
# Control sequences (ECMA-48): CSI, OSC and the other strings with their end, and the short ones.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]?|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]?|\x9b[0-?]*[ -/]*[@-~]?")


def foreign(text: str | bytes, most: int = MOST_CHARACTERS) -> str:
    """A foreign text on one printable line of at most `most` characters; `...` at its end shows that it was cut."""
    line = " ".join(" ".join(screen(text)).split())
    return line if len(line) <= most else line[: most - 3] + "..."


def one_line(text: str) -> str:
    """A text of ours with names in it: printable, on one line and otherwise whole, since no name may hide what comes before or after it."""
    known = text.encode("utf-8", "backslashreplace").decode()
    return "".join(one if one.isprintable() else " " if one.isspace() else "" for one in known)


def size_text(size: float) -> str:
    """Bytes in the unit that suits, in four digits: `512 B`, `1.5 MiB`, `61.04 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def screen(text: str | bytes) -> list[str]:
    """The lines that a terminal would show of a foreign text: no control sequences, and a carriage return overwrites its line."""
    known = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else text.encode("utf-8", "backslashreplace").decode()
    # As systemd shows a job that goes on: back to the line before, and erase it.
    known = re.sub(r"\r\x1b\[[02]?K", "\r\0", re.sub(r"\r?\n\x1bM", "\r", known))
    return [_overwritten(line) for line in re.split(r"\r?\n|[\v\f\x85\u2028\u2029]", _ESCAPES.sub("", known))]


def _overwritten(line: str) -> str:
    # A list, in which each part is written in place: a guest may send as many as it likes.
    shown: list[str] = []
    for part in line.split("\r"):
        if part.startswith("\0"):
            shown.clear()
        visible = [one for one in part.replace("\t", " ") if one.isprintable()]
        shown[: len(visible)] = visible
    return "".join(shown)
