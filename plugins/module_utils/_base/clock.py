# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Time, in one object that tests replace."""

from __future__ import annotations

import re
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

# The clocks of hypervisor and target may differ by so much.
AHEAD_SECONDS = 300
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(0*[1-9][0-9]*(\.[0-9]+)?|0+\.0*[1-9][0-9]*)[smhdw]", re.ASCII)


class Clock:
    """The host's clocks. `boottime` never jumps and counts suspended time too."""

    def boottime(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def wait(self, event: threading.Event, seconds: float) -> None:
        """Wait for an event, at most so long."""
        event.wait(seconds)


def rfc3339(wall: float) -> str:
    """Seconds since the epoch as UTC text with milliseconds: `2026-11-22T18:45:12.345Z`."""
    return datetime.fromtimestamp(wall, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def is_ahead(text: str, now: float) -> bool:
    """Whether a time lies so far in the future that some clock was wrong."""
    return wall_time(text) > now + AHEAD_SECONDS


def wall_time(text: str) -> float:
    """The seconds since the epoch that `rfc3339` made text of."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc).timestamp()


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def is_duration(text: object) -> bool:
    """Whether it is a number above zero with `s`, `m`, `h`, `d` or `w`."""
    return isinstance(text, str) and _DURATION.fullmatch(text) is not None


def seconds_of(duration: str) -> float:
    """`26h` as seconds."""
    return float(duration[:-1]) * _UNITS[duration[-1]]


def length(seconds: float) -> str:
    """Seconds in the unit that suits: `45 s`, `12 min`, `26 h`, `3 days`."""
    for size, unit, until in ((1, "s", 120), (60, "min", 7200), (3600, "h", 172800)):
        if seconds < until:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
