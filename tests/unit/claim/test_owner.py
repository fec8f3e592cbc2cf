# SPDX-License-Identifier: GPL-3.0-or-later
"""While a restore of a domain is unfinished, it owns the domain, its disks and the set that it needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.owner import require_no_backup
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.restore_journal import Journal, Move
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.list_domains import domain_info
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.prune import prune
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.untrack import untrack
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.verify import verify_set

from ..support.backup import REMOTE, UUID, Backup
from ..support.clock import FakeClock
from ..support.raising import raises_code

OTHER = "0c1c1c1c-5b5a-4bb6-9e2c-2f0f5a5f9d3e"
PRUNE: dict[str, Any] = {f"keep_{rule}": 0 for rule in ("last", "hourly", "daily", "weekly", "monthly", "yearly")}
INFO = {"uri": "qemu:///system", "method": "auto", "prefer": "push", "domains": ["*"], "exclude_domains": [], "unmatched": "fail"}


def journal_of(backup: Backup, *, uuid: str = UUID, name: str = "db1", path: str = "/images/other", stamp: str = UUID) -> Journal:
    backup.claims.mkdir(parents=True, exist_ok=True)
    known = {"uuid": stamp, "backup_id": "night-1", "instant": "2026-11-22T18:45:12.345Z"}
    move = Move(path, f"{path}.restoring", f"{path}.replaced", "/")
    journal = Journal(name, uuid, "qemu:///system", known, "", False, "/set", "", [move], [], [], {}, [], "swap")
    journal.save()
    return journal


def published(backup: Backup) -> None:
    backup.finished()
    backup.publish()


@pytest.mark.parametrize("how", ["by its UUID", "by its name", "by a disk"])
@pytest.mark.parametrize("step", [Backup.begin, Backup.snapshot])
def test_its_domain_is_not_backed_up(capture: Backup, how: str, step: Callable[..., Any]) -> None:
    backup, disk = capture, next(iter(capture.domain.disks.values()))
    options = {
        "by its UUID": {"name": "renamed"},
        "by its name": {"uuid": OTHER},
        "by a disk": {"uuid": OTHER, "name": "copy", "path": disk},
    }[how]
    journal = journal_of(backup, **options)
    for check in (True, False):
        with pytest.raises(
            LiveBackupError, match="Cannot back up domain 'db1': the restore of domain .* from backup night-1 is not finished"
        ):
            step(backup, check=check)
    journal.remove()
    assert step(backup)["changed"]


def test_an_offline_backup_is_refused_too(backup: Backup) -> None:
    journal_of(backup)
    backup.domain.shut_off()
    with raises_code("restore_unfinished"):
        backup.begin(method="offline")


def test_its_backup_is_not_published(backup: Backup) -> None:
    backup.finished()
    journal_of(backup)
    with pytest.raises(LiveBackupError, match="Cannot publish a backup of domain 'db1'"):
        backup.publish()


@pytest.mark.parametrize(("uuid", "stamp"), [(UUID, OTHER), (OTHER, UUID)], ids=["its own sets", "the sets that it needs"])
def test_its_sets_are_neither_removed_nor_proven(backup: Backup, clock: FakeClock, uuid: str, stamp: str) -> None:
    published(backup)
    journal = journal_of(backup, uuid=uuid, name="db1" if uuid == UUID else "copy", stamp=stamp)
    params = {**PRUNE, **REMOTE, "target": str(backup.target), "domains": ["*"], "keep_ids": [], "own_rules": True, "keep_last": 1}
    for check in (True, False):
        with pytest.raises(
            LiveBackupError, match="Nothing of domain 'db1' was removed: the restore of domain .* is not finished"
        ) as failed:
            prune(params, check, clock)
        assert failed.value.facts["removed"] == []
    if uuid == UUID:
        verify = {**params, "uri": "qemu:///system", "domain": "db1", "backup_id": None, "level": "check", "console_pattern": None}
        verify |= {"timeout": 1, "scratch_dir": "/var/tmp", "scratch_size": 1 << 30, "max_memory": None, "max_vcpus": 4, "every": 0}
        with pytest.raises(LiveBackupError, match="Cannot prove a set of domain 'db1'"):
            verify_set(verify, False, clock)
    journal.remove()
    assert prune(params, False, clock)["removed"] == []


def test_nothing_is_removed_while_its_journal_is_damaged(backup: Backup, clock: FakeClock) -> None:
    """Nobody knows whether it needs a set."""
    published(backup)
    journal_of(backup).file.write_text("{}", encoding="utf-8")
    params = {
        **PRUNE,
        **REMOTE,
        "target": str(backup.target),
        "domains": ["*"],
        "keep_ids": [],
        "own_rules": True,
        "keep_last": 0,
        "keep_daily": 1,
    }
    with pytest.raises(LiveBackupError, match="Nothing of domain 'db1' was removed: The journal .* is damaged"):
        prune(params, False, clock)


def test_its_disks_are_neither_copied_nor_untracked(backup: Backup, clock: FakeClock, tmp_path: Path) -> None:
    disk = next(iter(backup.domain.disks.values()))
    image, other = tmp_path / "image", tmp_path / "other"
    for path in (image, other):
        path.write_bytes(b"data")
    journal = journal_of(backup, path=str(image), uuid=OTHER, name="copy")
    for source, dest in ((image, tmp_path / "new"), (other, image)):
        with pytest.raises(LiveBackupError, match="Cannot copy .* from backup night-1 is not finished"):
            backup.copy(domain=None, src=str(source), dest=str(dest))
    journal.remove()
    journal_of(backup, path=disk)
    for check in (True, False):
        with pytest.raises(LiveBackupError, match="Cannot untrack domain 'db1': .* from backup night-1 is not finished"):
            untrack({"uri": "qemu:///system", "domain": "db1"}, check, clock)


def test_a_restore_of_another_libvirt_is_not_ended(backup: Backup) -> None:
    journal_of(backup)
    with pytest.raises(LiveBackupError, match="The libvirt URI of the restore of domain 'db1' .* is qemu:///system, not qemu:///session"):
        backup.recover(uri="qemu:///session")


def test_it_is_listed(backup: Backup, clock: FakeClock) -> None:
    journal_of(backup)
    found = domain_info(INFO, False, clock)
    [row] = found["domains"]
    assert row["restore"] == found["restores"][0] and row["restore"]["phase"] == "swap"
    assert row["restore"]["msg"] == "the restore of domain 'db1' from backup night-1 is not finished"


def test_the_disks_of_a_backup_are_not_restored_over(backup: Backup) -> None:
    backup.begin()
    disk = next(iter(backup.domain.disks.values()))
    for uuid, paths in ((UUID, []), (OTHER, [disk])):
        with pytest.raises(LiveBackupError, match="Cannot restore it: backup night-1 of domain 'db1' is not finished"):
            require_no_backup("restore it", uuid, "any", paths)
    require_no_backup("restore it", OTHER, "any", [f"{disk}.other"])


def test_a_claim_of_another_libvirt_is_left_alone(backup: Backup) -> None:
    """Its domain would look as if it were gone, and its overlay as if nobody used it."""
    backup.begin()
    for step in (Backup.recover, Backup.wait, Backup.publish):
        with pytest.raises(
            LiveBackupError, match="The libvirt URI of backup night-1 of domain 'db1' is qemu:///system, not qemu:///session"
        ):
            step(backup, uri="qemu:///session")
