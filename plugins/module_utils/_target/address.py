# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the sets are, as the options say. Claims and journals note it, and most who read those never go there."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TargetAddress:
    """The options that say where the sets are, and how to get there."""

    target: str
    ssh_key: str | None = None
    ssh_options: list[str] = field(default_factory=list)
