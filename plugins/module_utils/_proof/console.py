# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the guest of a proof prints on its first serial port."""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import suppress
from pathlib import Path

from .._base.text import screen

# How much of it is kept, and how much the kernel holds until we read it: nothing of it is on a disk.
_KEPT_BYTES = 64 * 1024
_HELD_BYTES = 1024 * 1024
# The module fcntl has it since Python 3.10.
_F_SETPIPE_SZ = 1031
_TAIL_CHARACTERS = 2000
# The end of a line. systemd goes back to the line before, to draw it again.
_END = re.compile(rb"\n(?!\x1bM|\x1b?\Z)")


class Console:
    """The end of a console: a pipe of libvirt's, `path`.in and `path`.out, since with one name QEMU would read what it has written."""

    def __init__(self, path: Path) -> None:
        for end in ("in", "out"):
            os.mkfifo(f"{path}.{end}", 0o600)
        self._descriptor = os.open(f"{path}.out", os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(self._descriptor, _F_SETPIPE_SZ, _HELD_BYTES)
        # The lines that nothing changes any more, and what came after them.
        self._ended: list[str] = []
        self._open = b""

    def lines(self) -> list[str]:
        """The lines that a terminal would show of what was kept and what is new."""
        text = self._open + self._read()
        end = max((found.end() for found in _END.finditer(text)), default=0)
        ended = self._ended + (screen(text[: end - 1]) if end else [])
        self._ended = "\n".join(ended)[-_KEPT_BYTES:].split("\n") if ended else []
        self._open = text[end:][-_KEPT_BYTES:]
        return ended + (screen(text[end:]) if text else [])

    def close(self) -> None:
        os.close(self._descriptor)

    def _read(self) -> bytes:
        """What is there, of a guest that may print without an end."""
        new = b""
        with suppress(BlockingIOError):
            while len(new) < _HELD_BYTES and (some := os.read(self._descriptor, _KEPT_BYTES)):
                new += some
        return new


def tail(lines: list[str]) -> str:
    """The last lines that say something."""
    return "\n".join(line.rstrip() for line in lines if line.strip())[-_TAIL_CHARACTERS:]
