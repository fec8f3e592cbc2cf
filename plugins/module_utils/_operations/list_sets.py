# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""List the backup sets below a target."""

from __future__ import annotations

from typing import Any

from .._base.clock import Clock
from .target import target_of


def set_info(params: dict[str, Any], _check_mode: bool, _clock: Clock) -> dict[str, Any]:
    """The sets below a target."""
    found = target_of(params).sets(params["domains"])
    return {
        "changed": False,
        "sets": found["sets"],
        "findings": found["findings"],
        "free_bytes": found["free"],
        "size_bytes": found["size"],
    }
