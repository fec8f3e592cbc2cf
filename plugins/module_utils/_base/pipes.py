# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The pipes to and from a process that may fall silent: every wait ends when no byte has moved for a time."""

from __future__ import annotations

import os
import select

from .streams import fill

_PIECE = 64 * 1024


class Silence(Exception):
    """Nothing has moved for too long."""


class Endless(Exception):
    """A line is longer than any that is expected."""


class Pipes:
    """What is written to a process, and what it writes. One thread reads; who writes must be alone, too."""

    def __init__(self, writing: int, reading: int, patience: float) -> None:
        self._writing = writing
        self._reading = reading
        self._patience = patience
        self._buffer = bytearray()
        # A pipe that blocks takes all of a piece before it answers.
        os.set_blocking(writing, False)
        self._writable, self._readable = select.poll(), select.poll()
        self._writable.register(writing, select.POLLOUT)
        self._readable.register(reading, select.POLLIN)

    def write(self, data: bytes | memoryview) -> None:
        """Write all of it."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._writing, view) :]
            except BlockingIOError:
                self._wait(self._writable)

    def read_into(self, view: memoryview) -> None:
        """Fill it; EOFError if the end came before."""
        done = min(len(view), len(self._buffer))
        view[:done] = self._buffer[:done]
        del self._buffer[:done]
        fill(view[done:], self._read)

    def _read(self, view: memoryview) -> int:
        self._wait(self._readable)
        return os.readv(self._reading, [view])

    def line(self, most: int) -> bytes:
        """A line of at most so many bytes, without its end; the end of everything is EOFError."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > most:
                raise Endless
            self._wait(self._readable)
            piece = os.read(self._reading, _PIECE)
            if not piece:
                raise EOFError
            self._buffer += piece
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _wait(self, poll: select.poll) -> None:
        if not poll.poll(self._patience * 1000):
            raise Silence
