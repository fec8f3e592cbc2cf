# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The methods of backup, and which one suits a domain. The only place that knows them by name."""

from __future__ import annotations

from .._hypervisor.versions import HostVersions
from .legacy import Legacy
from .method import Method
from .offline import Offline
from .push import Push, missing_versions

METHODS: dict[str, Method] = {method.name: method for method in (Push(), Legacy(), Offline())}


def choose_method(versions: HostVersions, *, active: bool, wanted: str = "auto") -> tuple[str, str]:
    """The method that suits a domain, and why; `wanted` is `auto`, `push` or `legacy`."""
    if not active:
        return "offline", "the domain is shut off"
    if wanted != "auto":
        return wanted, "it was asked for"
    missing = missing_versions(versions)
    return ("legacy", missing) if missing else ("push", f"the domain is running, and {versions.words} have the backup job")


def reason_for(method: str, versions: HostVersions, *, active: bool) -> str:
    """Why a domain is backed up by this method: it was asked for where another would have been chosen."""
    chosen, reason = choose_method(versions, active=active)
    return reason if chosen == method else "it was asked for"
