# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which method of backup suits a domain. What lists domains needs no more of the methods than their names."""

from __future__ import annotations

from .._hypervisor.versions import HostVersions, missing_versions


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
