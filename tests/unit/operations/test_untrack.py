# SPDX-License-Identifier: GPL-3.0-or-later
"""What untracking finds, and when it waits for a backup. tests/integration/test_untrack.py has what libvirt removes."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._claim.claim import Claim, save_claim
from ansible_collections.virtops.live_backup.plugins.module_utils._operations import untrack as _untrack

from ..support.backup import PLAN, Backup
from ..support.raising import raises_code

OURS, THEIRS = "live-backup.5f0c21aa.night-1.93ac0f4be1d27786", "monday"


def untrack(backup: Backup, check: bool = False) -> dict[str, Any]:
    return _untrack.untrack({"uri": "qemu:///system", "domain": "db1"}, check, backup.clock)


def test_check_mode_lists_only_our_checkpoints(backup: Backup) -> None:
    backup.domain.checkpoints = [THEIRS, OURS]
    assert untrack(backup, check=True) == {"changed": True, "removed": [OURS]}
    backup.domain.checkpoints = [THEIRS]
    for check in (True, False):
        assert untrack(backup, check) == {"changed": False, "removed": []}


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(("lease", "code"), [(60, "claim_alive"), (-1, "recovery_needed")])
def test_it_waits_for_a_backup_or_its_recovery(lease: float, code: str, check: bool, backup: Backup) -> None:
    backup.domain.checkpoints = [OURS]
    backup.claims.mkdir()
    mine = {"uuid": backup.domain.uuid, "domain": "db1", "backup_id": "other", "method": "push", "directory": "/t", "started": 1.0}
    save_claim(Claim.from_json({**mine, "plan": {**PLAN, "state": "running"}, "lease_until": backup.clock.boottime() + lease}))
    with raises_code(code):
        untrack(backup, check)


def test_what_a_running_qemu_cannot_remove_is_a_warning(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libvirt forgets the checkpoint; the bitmap is damaged."""
    looks = [{(OURS, ""), (OURS, "/d/vda.qcow2")}, {(OURS, "/d/vda.qcow2")}]
    monkeypatch.setattr(_untrack, "our_checkpoints", lambda *_: looks.pop(0))
    monkeypatch.setattr(_untrack, "remove_checkpoint", lambda *_: None)
    result = untrack(backup)
    assert (result["changed"], result["removed"]) == (True, [])
    [warning] = result["warnings"]
    assert warning.startswith(f"Bitmap {OURS} is still in /d/vda.qcow2. ")
