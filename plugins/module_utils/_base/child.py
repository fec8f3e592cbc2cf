# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A child process that may hang, or outlive us."""

from __future__ import annotations

import gc
import os
import select
import signal
from collections.abc import Callable
from typing import IO, NamedTuple

from .signals import SIGNALS

_MOST_DESCRIPTORS = 4096


class Child(NamedTuple):
    """Its number, and the end of the pipe at which its answer is read."""

    pid: int
    answer: IO[bytes]

    def first_line(self, seconds: float) -> bytes:
        """What it says first; empty if that does not come within so many seconds."""
        ready, _out, _err = select.select([self.answer], [], [], seconds)
        return self.answer.readline() if ready else b""


def fork(work: Callable[[int], object]) -> Child:
    """Do `work` in a child, which is given the descriptor to write its answer to. It holds nothing else open that is ours."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            # What hears our signals is not there, and no object of ours may close a number that is used again.
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            gc.freeze()
            # Who holds something open keeps it locked, or keeps somebody waiting: Ansible waits for the end of our output.
            nothing = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nothing, stream)
            os.closerange(3, writer)
            os.closerange(writer + 1, _MOST_DESCRIPTORS)
            work(writer)
        finally:
            os._exit(0)
    os.close(writer)
    return Child(pid, os.fdopen(reader, "rb"))
