# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who is at work on a domain and its disks: a backup, by its claim, or a restore, by its journal.

Whatever reads or writes a domain's disks or its sets asks here. While a restore is unfinished, some disks may be new and some old.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from .._base.errors import LiveBackupError
from .claim import Claim, read_claim
from .find import all_claims
from .restore_journal import Journal, all_journals, restore_of


def restore_that_owns(uuid: str, name: str, paths: Collection[str] = ()) -> Journal | None:
    """The unfinished restore of a domain, or of one of these files or devices."""
    return restore_of(uuid) or next(
        (one for one in all_journals() if (name == one.name and one.owns_domain) or _meet(one.paths, paths)), None
    )


def backup_that_owns(uuid: str, paths: Collection[str] = ()) -> Claim | None:
    """The unfinished backup of a domain, or of one of these files or devices."""
    own = read_claim(uuid)
    others = all_claims() if own is None else []
    return own or next((one for one in others if _meet([disk.source.path for disk in one.plan.disks], paths)), None)


def require_no_restore(action: str, uuid: str, name: str, paths: Collection[str] = ()) -> None:
    """Fail while a restore owns the domain or one of the paths; `action` is what cannot be done, as in "back up domain 'db1'"."""
    found = restore_that_owns(uuid, name, paths)
    if found is not None:
        raise LiveBackupError(
            f"Cannot {action}: {found.words} is not finished, so its disks may be of two instants. Run libvirt_backup_recover "
            "(playbook virtops.live_backup.recover), or the same restore again.",
            code="restore_unfinished",
        )


def require_no_backup(action: str, uuid: str, name: str, paths: Collection[str] = ()) -> None:
    """Fail while a backup owns the domain or one of the paths."""
    found = backup_that_owns(uuid, paths)
    if found is not None:
        raise LiveBackupError(
            f"Cannot {action}: backup {found.backup_id} of domain {found.domain!r} is not finished, and uses its disks. "
            "Let it finish, or run libvirt_backup_recover.",
            code="recovery_needed",
        )


def _meet(some: Collection[str], others: Collection[str]) -> bool:
    """Whether two lists of paths name one file."""
    return bool({os.path.realpath(one) for one in some if one} & {os.path.realpath(one) for one in others if one})
