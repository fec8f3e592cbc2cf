# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How fast disks may be copied: by the limits that the user gave, and so that the writes of the guest stay quick."""

from __future__ import annotations

from typing import NamedTuple

from .._base.clock import Clock
from .._base.space import MIB

# Latencies are averages over this time.
_LOOK_SECONDS = 1.0
_LEAST_RATE = MIB
_SLOWER, _FASTER = 0.5, 1.25


class Served(NamedTuple):
    """How many requests of one kind a disk of the guest has served, and the nanoseconds that they took together."""

    requests: int
    nanoseconds: int


class LatencyGuard:
    """Slows a copy down while the guest's writes or flushes take longer than `limit_ms` on average, and lets it become faster again.

    `slowed_seconds` is for how long it was slowed down, and `worst_ms` the longest latency that was seen.
    """

    def __init__(self, limit_ms: float, clock: Clock) -> None:
        self._limit_ms = limit_ms
        self._clock = clock
        self._then = clock.boottime()
        self._before: dict[str, Served] = {}
        self._copied = 0
        self._fastest = 0.0
        self._rate = 0
        self.slowed_seconds = 0.0
        self.worst_ms = 0.0

    def rate(self, served: dict[str, Served], copied: int) -> int:
        """The bytes per second that may be copied now, 0 for no limit. `served` is by disk and kind, `copied` in bytes until now."""
        seconds = self._clock.boottime() - self._then
        if seconds < _LOOK_SECONDS:
            return self._rate
        latency = max((_milliseconds(self._before.get(name, now), now) for name, now in served.items()), default=0.0)
        speed = (copied - self._copied) / seconds
        self._fastest = max(self._fastest, speed)
        self.worst_ms = max(self.worst_ms, latency)
        if self._rate:
            self.slowed_seconds += seconds
        if latency > self._limit_ms:
            self._rate = max(_LEAST_RATE, int(min(speed, self._rate or speed) * _SLOWER))
        elif self._rate:
            faster = int(self._rate * _FASTER)
            self._rate = 0 if faster > self._fastest else faster
        self._then, self._before, self._copied = self._clock.boottime(), served, copied
        return self._rate


def _milliseconds(before: Served, now: Served) -> float:
    """The average latency of the requests in between."""
    requests = now.requests - before.requests
    return (now.nanoseconds - before.nanoseconds) / requests / 1e6 if requests > 0 else 0.0


def least_rate(*rates: int) -> int:
    """The smallest of several limits, of which 0 is none."""
    return min(filter(None, rates), default=0)
