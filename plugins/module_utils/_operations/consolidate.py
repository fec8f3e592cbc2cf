# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Make a full set of one that builds on others, at the target."""

from __future__ import annotations

from typing import Any

from .._base.clock import Clock
from .._sets.layout import check_backup_id
from .target import target_of


def consolidate(params: dict[str, Any], check_mode: bool, _clock: Clock) -> dict[str, Any]:
    """Make the full set of `backup_id`, or of the newest good set, unless it is there."""
    if params["backup_id"]:
        check_backup_id(params["backup_id"])
    made = target_of(params).consolidate(params["domain"], params["backup_id"], check_mode)
    return {**made, "diff": {"before": "", "after": f"{made['path']}\n" if made["changed"] else ""}}
