# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The methods of backup, by their names."""

from __future__ import annotations

from .._claim.plan import CapturePlan
from .legacy import Legacy
from .method import Copied, Method
from .offline import Offline
from .pull import Pull
from .push import Push

COPIED: dict[str, Copied] = {method.name: method for method in (Legacy(), Offline(), Pull())}
METHODS: dict[str, Method] = {"push": Push(), **COPIED}


def qemu_writer(plan: CapturePlan) -> tuple[int, int] | None:
    """QEMU's user and group, if it writes the images, and is not root."""
    return None if plan.method in COPIED else plan.qemu_user
