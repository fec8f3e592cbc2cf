# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The memory of this host."""

from __future__ import annotations

from pathlib import Path


def memory_available() -> int:
    """The bytes that programs can get without swapping."""
    return _field("MemAvailable")


def memory_total() -> int:
    """The bytes that this host has."""
    return _field("MemTotal")


def _field(name: str) -> int:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    return int(fields[name].split()[0]) * 1024
