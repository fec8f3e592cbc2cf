# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""End a domain's backup job."""

from __future__ import annotations

from typing import Any

from .._base.clock import Clock
from .._hypervisor.connection import connect, explained, find_domain
from .._hypervisor.jobs import JobWatch, abort_and_wait, running_job


def abort_job(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Abort the backup job that runs on the domain, whoever began it; no other kind of job is touched."""
    with connect(params["uri"], readonly=check_mode) as connection:
        domain = find_domain(connection, params["domain"])
        with explained(f"ask for the job of domain {domain.name()!r}"):
            job = running_job(domain)
        if job is None or job["operation"] != "backup":
            return {"changed": False, "job": job}
        if not check_mode:
            watch = JobWatch(params["uri"], domain.UUIDString(), None, clock)
            abort_and_wait(watch, domain, params["timeout"], clock)
        return {"changed": True, "job": job}
