# SPDX-License-Identifier: GPL-3.0-or-later
"""The last steps of a restore: what somebody has put in their way, what an undo may touch, and what is left where libvirt refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._base.filesystem import mount_of
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.restore_journal import (
    Device,
    Journal,
    Move,
    all_journals,
    restore_of,
)
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor import numbers as _numbers
from ansible_collections.virtops.live_backup.plugins.module_utils._image.fingerprint import fingerprint
from ansible_collections.virtops.live_backup.plugins.module_utils._restore import files as _files, finish as _finish
from ansible_collections.virtops.live_backup.plugins.module_utils._restore.files import note_identities, note_old, swap, undo, was_used
from ansible_collections.virtops.live_backup.plugins.module_utils._restore.plan import require_replaceable

from ..support.clock import FakeClock
from ..support.fake import libvirt
from ..support.raising import raises_code

URI = "qemu:///system"
UUID = "8e6d5a2e-6c44-4c8d-9d3c-0e1f8a6f7b11"
STAMP = {"uuid": UUID, "backup_id": "n1", "instant": "2026-11-22T18:45:12.345Z"}


@pytest.fixture
def journal(tmp_path: Path, claims: Path) -> Journal:
    """A restore over one disk and to one free place, which has written both beside their places."""
    libvirt.host = libvirt.Host()
    claims.mkdir()
    moves = []
    for name in ("old", "free"):
        path = tmp_path / name
        moves.append(Move(str(path), f"{tmp_path}/.{name}.n1.restoring", f"{tmp_path}/.{name}.n1.replaced", mount_of(path)))
        Path(moves[-1].temporary).write_text(f"backup of {name}", encoding="utf-8")
    (tmp_path / "old").write_text("old", encoding="utf-8")
    found = Journal("db1", UUID, URI, STAMP, "<domain/>", False, "/backup", "", moves, [], [], {}, [])
    note_old(found)
    note_identities(found)
    found.set_phase("swap")
    return found


def files(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in directory.iterdir() if path.is_file()}


def test_what_somebody_has_put_at_a_free_place_in_the_meantime_is_not_touched(tmp_path: Path, journal: Journal) -> None:
    (tmp_path / "free").write_text("mine", encoding="utf-8")
    with pytest.raises(LiveBackupError, match=f"^{tmp_path}/free was created or changed by somebody else in the meantime. Move it away"):
        swap(journal)
    assert files(tmp_path)["free"] == "mine"
    (tmp_path / "free").rename(tmp_path / "moved")
    swap(journal)
    assert files(tmp_path) == {"old": "backup of old", ".old.n1.replaced": "old", "free": "backup of free", "moved": "mine"}


@pytest.mark.parametrize("name", ["free", "old"])
def test_what_comes_to_a_place_while_the_set_is_written_is_not_the_old_file(name: str, tmp_path: Path, journal: Journal) -> None:
    (tmp_path / name).write_text("mine, and longer", encoding="utf-8")
    with raises_code("file_in_the_way"):
        note_identities(journal)
    assert files(tmp_path)[name] == "mine, and longer"


@pytest.mark.parametrize("interrupted", [False, True])
def test_an_undo_removes_no_file_of_somebody_else(tmp_path: Path, journal: Journal, interrupted: bool) -> None:
    """It was there before this restore refused to touch it, and is there after the undo, and after the undo of the undo."""
    (tmp_path / "free").write_text("mine", encoding="utf-8")
    with pytest.raises(LiveBackupError):
        swap(journal)
    if interrupted:
        # Killed when the new file was removed, before the journal was.
        journal.set_phase("undo")
        Path(journal.moves[1].temporary).unlink()
    undo(journal)
    assert files(tmp_path) == {"old": "old", "free": "mine"}
    assert not journal.file.exists()


def test_an_undo_takes_away_what_the_restore_has_put_there(tmp_path: Path, journal: Journal) -> None:
    swap(journal)
    undo(journal)
    assert files(tmp_path) == {"old": "old"}


def test_an_undo_that_finds_nothing_of_its_own_ends(tmp_path: Path, journal: Journal) -> None:
    for path in tmp_path.iterdir():
        if path.is_file():
            path.unlink()
    undo(journal)
    assert not journal.file.exists()


def test_an_undo_of_names_that_cannot_be_ends(tmp_path: Path, journal: Journal) -> None:
    long = str(tmp_path / ("x" * 300))
    journal.moves = [Move(long, f"{long}.restoring", f"{long}.replaced", mount_of(tmp_path))]
    journal.set_phase("write")
    undo(journal)
    assert not journal.file.exists()


def test_an_undo_that_somebody_else_is_in_the_way_of_says_so_and_goes_on_later(tmp_path: Path, journal: Journal) -> None:
    swap(journal)
    (tmp_path / "old").unlink()
    (tmp_path / "old").write_text("mine, and longer", encoding="utf-8")
    with pytest.raises(LiveBackupError, match="could not be undone completely: .*/old was created by somebody else"):
        undo(journal)
    assert files(tmp_path) == {"old": "mine, and longer", ".old.n1.replaced": "old"} and journal.file.exists()
    (tmp_path / "old").rename(tmp_path / "moved")
    undo(journal)
    assert files(tmp_path) == {"old": "old", "moved": "mine, and longer"}


def test_an_undo_without_the_old_file_keeps_the_new_one_and_says_so(tmp_path: Path, journal: Journal) -> None:
    """A power cut may have given it another time, or somebody has removed it."""
    swap(journal)
    aside = Path(journal.moves[0].aside)
    os.utime(aside, ns=(1, 1))
    with pytest.raises(LiveBackupError, match=f"{tmp_path}/old is the new file, and the old one, {aside}, is gone or was changed"):
        undo(journal)
    assert files(tmp_path) == {"old": "backup of old", ".old.n1.replaced": "old"} and journal.file.exists()


def test_an_old_file_of_another_restore_is_not_replaced(tmp_path: Path, journal: Journal) -> None:
    Path(journal.moves[0].aside).write_text("older", encoding="utf-8")
    with pytest.raises(LiveBackupError, match="is an old file that another restore put aside"):
        swap(journal)
    assert files(tmp_path)["old"] == "old" and files(tmp_path)[".old.n1.replaced"] == "older"


def test_a_domain_whose_name_is_its_uuid_keeps_its_journal(journal: Journal) -> None:
    journal.name = UUID
    journal.save()
    assert restore_of(UUID) == journal
    journal.remove()
    assert restore_of(UUID) is None


def test_nothing_is_concluded_from_a_file_system_that_is_not_mounted(tmp_path: Path, journal: Journal) -> None:
    journal.moves[0].mount = "/was/here"
    for step in (swap, undo):
        with pytest.raises(LiveBackupError, match="was on the file system mounted at /was/here"):
            step(journal)
    assert journal.file.exists()


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (_numbers.VIR_DOMAIN_SHUTOFF_CRASHED, ""),
        (_numbers.VIR_DOMAIN_SHUTOFF_MIGRATED, "was migrated away and may be running on another host"),
        (libvirt.VIR_DOMAIN_PAUSED_USER, ""),
    ],
    ids=["crashed", "migrated", "shut off"],
)
def test_which_domains_are_replaced(reason: int, words: str) -> None:
    """A domain that crashed is the one that is restored; a migrated one may run on these disks elsewhere."""
    state = libvirt.DomainState("db1", UUID, state=libvirt.VIR_DOMAIN_SHUTOFF, reason=reason)
    libvirt.host = libvirt.Host(state)
    domain = libvirt.open(URI).lookupByName("db1")
    if words:
        with pytest.raises(LiveBackupError, match=words):
            require_replaceable(domain, overwrite=True)
    else:
        require_replaceable(domain, overwrite=True)


def refuse() -> None:
    raise libvirt.libvirtError(67, "unsupported configuration")


@pytest.mark.parametrize(("broken", "lost"), [([], ""), (["/dev/vg/b"], ", but /dev/vg/b, which cannot be put aside, holds")])
def test_libvirt_refuses_the_definition(tmp_path: Path, journal: Journal, broken: list[str], lost: str) -> None:
    """Whatever can be put back is; what cannot is named, with what libvirt said, and nobody takes the domain for sound."""
    swap(journal)
    libvirt.host.before["defineXML"] = refuse
    journal.broken = broken
    with pytest.raises(LiveBackupError) as failed:
        _finish.complete(journal, None, FakeClock(), 0)
    words = f"define domain 'db1': unsupported configuration. The files are as they were{lost}"
    assert words in failed.value.msg and failed.value.libvirt_error and failed.value.code == "libvirt_refused"
    assert files(tmp_path) == {"old": "old"}
    assert [one.phase for one in all_journals()] == ["broken"] * len(broken)


def test_a_device_that_holds_a_part_of_a_set_is_told_by_each_recovery(journal: Journal, clock: FakeClock) -> None:
    journal.broken = ["/dev/vg/b"]
    journal.set_phase("broken")
    with pytest.raises(LiveBackupError, match="/dev/vg/b may hold only a part of backup n1.*Restore this or another set"):
        _finish.recover_restore(journal, False, clock)
    assert restore_of("db1") == restore_of(UUID) == journal


def test_a_device_that_was_used_half_restored_is_not_written_again(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file stands for it, which has a fingerprint too."""
    device = tmp_path / "device"
    device.write_text("restored", encoding="utf-8")
    journal.moves, journal.devices = [], [Device(str(device), "vdb.qcow2", "qcow2", "raw", 8)]
    assert not was_used(journal)
    journal.devices[0].written = fingerprint(device)
    journal.save()
    assert restore_of(UUID) == journal and not was_used(journal)
    device.write_text("used", encoding="utf-8")
    with pytest.raises(LiveBackupError, match=f"^{device} was written after the restore of domain 'db1' from backup n1 was interrupted"):
        was_used(journal)
    assert was_used(journal, overwrite=True)
    monkeypatch.setattr(_files, "stood_still", lambda _path, _before: None)
    with pytest.raises(LiveBackupError, match="may have been written"):
        was_used(journal)
    device.unlink()
    assert not was_used(journal), "it is not there, which is said when it is to be written"


@pytest.mark.parametrize("swapped", [True, False])
def test_files_that_were_used_half_restored_are_overwritten_only_if_somebody_asks(tmp_path: Path, journal: Journal, swapped: bool) -> None:
    if swapped:
        swap(journal)
    assert not was_used(journal)
    (tmp_path / "old").write_text("used", encoding="utf-8")
    with pytest.raises(LiveBackupError, match=f"^{tmp_path}/old was written after"):
        was_used(journal)
    assert was_used(journal, overwrite=True)
    undo(journal, overwrite=True)
    # What was written in the meantime is kept: the restore that replaces it may fail.
    kept = {"old": "old", f"{Path(journal.moves[0].aside).name}.used-1": "used"} if swapped else {"old": "used"}
    assert files(tmp_path) == kept and not journal.file.exists()


def of_older_version(journal: Journal, phase: str) -> Path:
    """Leave the journal as version 1.0.0-dev.1 would have."""
    moves = [{"path": move.path, "temporary": move.temporary, "aside": move.aside, "had_old": bool(move.old)} for move in journal.moves]
    old = {"name": "db1", "stamp": STAMP, "phase": phase, "xml": "<domain/>", "start": False, "backup": "/backup", "fetched_into": ""}
    told = {"domain": {"name": "db1", "uuid": UUID}, "backup_id": "n1", "disks": [], "removed": []}
    journal.remove()
    path = journal.file.with_name("restore-db1.journal")
    path.write_text(json.dumps({**old, "moves": moves, "devices": [], "told": told}), encoding="utf-8")
    return path


@pytest.mark.parametrize("phase", ["write", "swap"])
def test_a_journal_of_an_older_version_is_understood(tmp_path: Path, journal: Journal, phase: str) -> None:
    path = of_older_version(journal, phase)
    [found] = all_journals()
    assert found == restore_of("db1") == restore_of(UUID)
    if phase == "swap":
        swap(found)
        assert files(tmp_path) == {"old": "backup of old", ".old.n1.replaced": "old", "free": "backup of free"}
    undo(found)
    assert files(tmp_path) == {"old": "old"} and not path.exists() and all_journals() == []


@pytest.mark.parametrize("step", [swap, undo])
def test_an_older_journal_whose_file_system_is_not_mounted(tmp_path: Path, journal: Journal, step: Callable[[Journal], None]) -> None:
    """It notes no mount: that nothing at all is there tells. When it is mounted again the journal is as it was."""
    path = of_older_version(journal, "swap")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for name in files(tmp_path):
        (tmp_path / name).rename(hidden / name)
    [found] = all_journals()
    with pytest.raises(LiveBackupError, match=f"Is their file system not mounted.*remove {path}"):
        step(found)
    assert path.exists() and not journal.file.exists()
    for name in files(hidden):
        (hidden / name).rename(tmp_path / name)
    [found] = all_journals()
    swap(found)
    assert files(tmp_path) == {"old": "backup of old", ".old.n1.replaced": "old", "free": "backup of free"}


def test_an_older_undo_that_was_interrupted_keeps_the_old_file(tmp_path: Path, journal: Journal) -> None:
    """The old file is back, the new one gone: what lies there is not the new one."""
    swap(journal)
    Path(journal.moves[0].aside).rename(journal.moves[0].path)
    path = of_older_version(journal, "undo")
    [found] = all_journals()
    undo(found)
    assert files(tmp_path) == {"old": "old"} and not path.exists() and all_journals() == []


def test_an_older_journal_without_its_new_file_is_not_completed(tmp_path: Path, journal: Journal) -> None:
    of_older_version(journal, "swap")
    Path(journal.moves[0].temporary).unlink()
    [found] = all_journals()
    with pytest.raises(LiveBackupError, match="the restored file, was removed or changed"):
        swap(found)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"phase": 1}', "[" * 100000])
def test_a_damaged_journal_is_an_error_for_its_own_domain_alone(journal: Journal, text: str) -> None:
    journal.file.write_text(text, encoding="utf-8")
    with raises_code("journal_damaged"):
        restore_of(UUID)
    assert all_journals() == [] and restore_of("another") is None
