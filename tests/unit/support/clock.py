# SPDX-License-Identifier: GPL-3.0-or-later
"""A clock that only tests move."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import Clock


class FakeClock(Clock):
    """Time passes by sleeping alone, and at once; who sleeps for ever is told so."""

    def __init__(self, boottime: float = 1000.0, wall: float = 1_790_000_000.0) -> None:
        self._boottime = boottime
        self._wall = wall
        self._end = boottime + 1_000_000
        # What happens while somebody waits for an event.
        self.at_wait: Callable[[], None] = lambda: self.sleep(1.0)

    def boottime(self) -> float:
        return self._boottime

    def wall(self) -> float:
        return self._wall

    def sleep(self, seconds: float) -> None:
        self._boottime += seconds
        self._wall += seconds
        assert self._boottime < self._end, "this waits for ever"

    def wait(self, event: threading.Event, seconds: float) -> None:
        self.at_wait()
