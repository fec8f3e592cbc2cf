# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filters of the role status. Each is documented in the file of its name."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ansible_collections.virtops.live_backup.plugins.plugin_utils._metrics import attempts, metrics
from ansible_collections.virtops.live_backup.plugins.plugin_utils._objectives import objectives as wanted_of, problem
from ansible_collections.virtops.live_backup.plugins.plugin_utils._report import message, page, report
from ansible_collections.virtops.live_backup.plugins.plugin_utils._status import brief, status


def domain_status(
    domains: list[dict[str, Any]],
    sets: list[dict[str, Any]],
    hypervisor: str,
    max_age: str,
    objectives: dict[str, dict[str, str]] | None = None,
    copies: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """The status now, by these objectives."""
    return status(domains, sets, hypervisor, time.time(), lambda domain: wanted_of(domain, objectives or {}, max_age), copies)


class FilterModule:
    """What Ansible asks for the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "domain_status": domain_status,
            "objectives_problem": problem,
            "brief_sets": brief,
            "status_metrics": lambda rows, targets=(): metrics(rows, targets, time.time()),
            "attempt_metrics": lambda results, before="": attempts(results, before, time.time()),
            "status_report": lambda looks, results, hosts, limit="": report(looks, results, hosts, time.time(), limit),
            "report_page": page,
            "report_message": message,
        }
