# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The methods of backup, and which one suits a domain. The only place that knows them by name."""

from __future__ import annotations

from .._claim.plan import CapturePlan
from .._hypervisor.versions import HostVersions
from .backup_job import missing_versions
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


def choose_method(versions: HostVersions, *, active: bool, wanted: str = "auto", prefer: str = "push") -> tuple[str, str]:
    """The method that suits a domain, and why; `wanted` is `auto`, `push`, `pull` or `legacy`, and `prefer` is `push` or `pull`."""
    if not active:
        return "offline", "the domain is shut off"
    if wanted != "auto":
        return wanted, "it was asked for"
    missing = missing_versions(versions)
    return ("legacy", missing) if missing else (prefer, f"the domain is running, and {versions.words} have the backup job")


def reason_for(method: str, versions: HostVersions, *, active: bool) -> str:
    """Why a domain is backed up by this method: it was asked for where another would have been chosen."""
    reasons = dict(choose_method(versions, active=active, prefer=job) for job in ("push", "pull"))
    return reasons.get(method, "it was asked for")
