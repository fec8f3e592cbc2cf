# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The names of variables that look like options of a role, and are none."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(names: Iterable[str], known: Iterable[str]) -> str:
    """A sentence about each name that is not known, with the one that may be meant."""
    options = sorted(known)
    return " ".join(f"No role reads the variable {name}.{_meant(name, options)}" for name in sorted(set(names) - {*options}))


def _meant(name: str, options: list[str]) -> str:
    close = get_close_matches(name, options, 1, 0.8)
    return f" Did you mean {close[0]}?" if close else ""
