# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filters of the roles backup, restore and copy. Each is documented in the file of its name."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ansible.utils.display import Display

from ansible_collections.virtops.live_backup.plugins.plugin_utils import _backup_result, _backup_rows, _restore, _summaries, _variables


def unknown_variables(names: list[str], known: list[str], strict: bool = False) -> str:
    """What is wrong with the names of variables; a warning unless that is an error."""
    found = _variables.unknown(names, known)
    if found and not strict:
        Display().warning(f"{found} Ansible ignores such variables.")
    return found if strict else ""


class FilterModule:
    """What Ansible asks for the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "backup_options": lambda given, spec, groups=None: _backup_rows.options(given, spec, groups, time.time()),
            "backup_listing": _backup_rows.listing,
            "backup_rows": _backup_rows.rows,
            "backup_notes": _backup_rows.notes,
            "backup_group": _backup_rows.group,
            "backup_result": _backup_result.result,
            "backup_results": _backup_result.results,
            "prune_summary": _summaries.pruned,
            "copy_summary": _summaries.copied,
            "recover_summary": _summaries.recovered,
            "backup_summary": _backup_result.summary,
            "backup_verdict": _backup_result.verdict,
            "backup_row_verdict": _backup_result.row_verdict,
            "unknown_variables": unknown_variables,
            "restore_group": _restore.newest_whole,
            "restore_result": _restore.restored,
        }
