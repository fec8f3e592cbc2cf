# SPDX-License-Identifier: GPL-3.0-or-later
"""The legacy flow and the offline one on real images: overlays, copies, commits, and what is left when something fails on the way."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._base.filesystem import is_on_disk
from ansible_collections.virtops.live_backup.plugins.module_utils._base.space import MIB, FreeSpace
from ansible_collections.virtops.live_backup.plugins.module_utils._capture import growing as _growing, legacy as _snapshot
from ansible_collections.virtops.live_backup.plugins.module_utils._claim import claim as _claim, places as _places
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.claim import Claim, read_claim, remember, save_claim
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.overlays import Overlay
from ansible_collections.virtops.live_backup.plugins.module_utils._copy import disks as _capture_copy
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.reach import TargetFacts
from ansible_collections.virtops.live_backup.plugins.module_utils._image import copy as _copy_image, data as _copy
from ansible_collections.virtops.live_backup.plugins.module_utils._image.fingerprint import fingerprint
from ansible_collections.virtops.live_backup.plugins.module_utils._operations import begin as _begin
from ansible_collections.virtops.live_backup.plugins.module_utils._overlay import look as _look, space as _space, way_back as _commit
from ansible_collections.virtops.live_backup.plugins.module_utils._overlay.decide import Do
from ansible_collections.virtops.live_backup.plugins.module_utils._overlay.space import Space

from ..recovery.test_repairs import die, repaired
from ..support.backup import PLAN, UUID, Backup, Killed
from ..support.fake import libvirt
from ..support.raising import raises_code

ALL = bool(os.environ.get("LIVE_BACKUP_TEST_ALL"))
CHANGES = {"snapshotCreateXML", "blockCommit", "blockJobAbort", "defineXML", "backupBegin"}


def content(image: Path | str) -> list[int]:
    """The value in each 64 KiB of a raw image."""
    return list(Path(image).read_bytes()[::65536])


def overlay_of(backup: Backup, target: str = "vda") -> Path:
    return Path(backup.domain.disks[target]).with_name(f"{UUID}.{target}.night-1.overlay")


def changes() -> list[str]:
    return [call for call in libvirt.host.calls if call in CHANGES]


def state(backup: Backup) -> Any:
    """All that must stay as it is when something is refused."""
    domain = backup.domain
    files = {name: os.stat(Path(domain.disks["vda"]).with_name(name)).st_mtime_ns for name in backup.images() if name.endswith("w")}
    return domain.xml(), domain.xml(inactive=True), backup.images(), files, backup.tree()


# The way


def test_the_way(capture: Backup) -> None:
    begun = capture.snapshot()
    assert begun["changed"] and [overlay["path"] for overlay in begun["overlays"]] == [
        str(overlay_of(capture, target)) for target in ("vda", "vdb")
    ]
    capture.domain.write("vda", 3, 9)
    copied = capture.copy()
    assert copied["changed"] and [disk["target"] for disk in copied["disks"]] == ["vda", "vdb"]
    assert set(capture.domain.commits) == {"vda", "vdb"}, "a commit begins as soon as its disk is copied"
    committed = capture.commit()
    assert committed["changed"] and all(row["bytes"] > 0 for row in committed["committed"])
    capture.assert_on_bases()
    published = capture.publish()
    assert published["manifest"]["method"] == "legacy" and published["manifest"]["consistency"]["level"] == "crash"
    assert content(capture.final / "vda.raw") == [1] + [0] * 15, "the set is of the instant of the snapshot"
    assert content(capture.domain.disks["vda"]) == [1, 0, 0, 9] + [0] * 12, "what the guest wrote meanwhile is in the base"
    assert "qemuMonitorCommand" not in libvirt.host.calls, "libvirt would call the domain tainted"
    saved = (capture.final / "domain.xml").read_text(encoding="utf-8")
    assert capture.domain.disks["vda"] in saved and "overlay" not in saved and "<backingStore" not in saved
    assert capture.claim_files() == []


def test_a_backup_begins_by_legacy_with_the_overlays_that_a_snapshot_makes(capture: Backup) -> None:
    planned = capture.snapshot(check=True)
    assert capture.begin(check=True, method="legacy")["overlays"] == planned["overlays"] != []
    assert capture.begin(method="legacy")["changed"] and not capture.snapshot()["changed"]


def test_every_disk_is_named_in_the_snapshot(capture: Backup) -> None:
    capture.snapshot(exclude_disks=["vdb"])
    assert list(capture.domain.live) == ["vda"], "libvirt takes what is not named too"
    capture.copy()
    capture.commit()
    capture.assert_on_bases()


def test_each_step_again_changes_nothing(capture: Backup) -> None:
    for step in (capture.snapshot, capture.copy, capture.commit, capture.publish):
        first = step()
        before = changes()
        again = step()
        assert first["changed"] and not again["changed"], step
        assert changes() == before


def test_check_mode_changes_nothing(capture: Backup) -> None:
    for step in (capture.snapshot, capture.copy, capture.commit, capture.publish):
        calls, before, claim = len(libvirt.host.calls), state(capture), read_claim(UUID)
        planned = step(check=True)
        assert planned["changed"]
        assert state(capture) == before and read_claim(UUID) == claim
        changing = {"snapshotCreateXML", "blockCommit", "blockJobAbort", "defineXML", "qemuMonitorCommand"}
        assert not changing & set(libvirt.host.calls[calls:]), "check mode only reads"
        assert step()["changed"]


def test_a_chosen_disk_is_committed_first(capture: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    capture.snapshot()
    capture.copy()
    assert [row["target"] for row in capture.commit(disks=["vdb"])["committed"]] == ["vdb"]
    assert not overlay_of(capture, "vdb").exists() and overlay_of(capture).exists()
    with raises_code("step_out_of_order"):
        capture.publish()
    with raises_code("disk_unknown"):
        capture.commit(disks=["vdz"])
    capture.commit()
    assert capture.publish()["changed"]


@pytest.mark.parametrize("check", [False, True])
def test_publish_names_the_step_that_is_missing(capture: Backup, check: bool) -> None:
    capture.snapshot()
    with raises_code("step_out_of_order"):
        capture.publish(check=check)
    capture.copy()
    with raises_code("step_out_of_order"):
        capture.publish(check=check)


def test_a_claim_lies_beside_the_overlays_and_serves_when_the_first_is_lost(capture: Backup) -> None:
    capture.snapshot()
    copy = overlay_of(capture).with_name(f"{UUID}.night-1.claim")
    assert copy.read_bytes() == (capture.claims / f"{UUID}.json").read_bytes()
    capture.domain.write("vda", 3, 9)
    die(capture, boot_id="another boot")
    claim_file = capture.claims / f"{UUID}.json"
    claim_file.unlink()
    assert repaired(capture.recover())[:2] == ["overlay of disk vda", "overlay of disk vdb"]
    capture.assert_on_bases()
    capture.assert_nothing_left()
    assert content(capture.domain.disks["vda"])[3] == 9


def test_a_commit_that_is_behind_goes_on_after_the_timeout(capture: Backup) -> None:
    capture.domain.commit_turns = 1000
    capture.snapshot()
    capture.copy()
    with pytest.raises(LiveBackupError, match="not committed within 5 s: vda .* behind"):
        capture.commit(timeout=5)
    assert set(capture.domain.commits) == {"vda", "vdb"}
    assert capture.commit(timeout=2000)["changed"]
    capture.assert_on_bases()


def test_a_pivot_that_libvirt_is_not_ready_for_is_asked_again(capture: Backup) -> None:
    capture.snapshot()
    capture.copy()
    answers = [libvirt.VIR_ERR_BLOCK_COPY_ACTIVE] * 3

    def not_yet() -> None:
        if answers:
            raise libvirt.libvirtError(answers.pop(), "block copy still active: not ready for pivot yet")

    libvirt.host.before["blockJobAbort"] = not_yet
    opened = libvirt.host.calls.count("open")
    capture.commit()
    # One to look, one to commit.
    assert not answers and libvirt.host.calls.count("open") == opened + 2, "it is no trouble of the connection"
    capture.assert_on_bases()


def test_a_pivot_that_was_not_done_is_not_remembered_as_one(capture: Backup) -> None:
    def never() -> None:
        raise libvirt.libvirtError(libvirt.VIR_ERR_BLOCK_COPY_ACTIVE, "block copy still active: not ready for pivot yet")

    capture.snapshot()
    capture.copy()
    libvirt.host.before["blockJobAbort"] = never
    with raises_code("commit_unfinished"):
        capture.commit(timeout=10)
    claim = read_claim(UUID)
    assert claim is not None
    assert {(one["commit_begun"], one["pivot_asked"]) for one in claim.progress.memory.values()} == {(True, "")}


def test_libvirtd_restarts_during_the_commit(capture: Backup) -> None:
    capture.snapshot()
    capture.copy()
    libvirt.host.turns = [libvirt.host.restart, libvirt.host.restart]
    capture.commit()
    capture.assert_on_bases()
    assert capture.publish()["changed"]


# What dies on the way


def flow(backup: Backup) -> None:
    """One disk's way, with a guest that writes."""
    backup.snapshot(exclude_disks=["vdb"])
    backup.domain.write("vda", 3, 9)
    backup.copy()
    backup.commit()
    backup.publish()


def assert_recovered(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest writes on, and after the recovery it has lost nothing, and nothing of ours is left."""
    monkeypatch.undo()
    libvirt.host.at_each_call = lambda: None
    backup.domain.write("vda", 5, 7)
    seen = backup.domain.read("vda")
    assert seen[5] == 7
    # A run that died before its first step, or between two, leaves a lease.
    backup.clock.sleep(301)
    monkeypatch.setattr(_places, "CLAIMS", backup.claims)
    for module in (_commit, _look, _snapshot):
        monkeypatch.setattr(module, "qemu_instance", libvirt.host.instance)
    for module in (_commit, _look):
        monkeypatch.setattr(module, "daemon_instance", libvirt.host.daemon)
    listed = backup.recover(check=True)
    # What is repaired later is seen only when what is before it has been repaired.
    assert repaired(backup.recover())[: len(listed["repairs"])] == repaired(listed)
    backup.assert_on_bases()
    assert backup.domain.read("vda") == seen == content(backup.domain.disks["vda"])
    assert backup.claim_files() == []
    if backup.final.exists():
        assert content(backup.final / "vda.raw")[0] == 1
    else:
        assert backup.tree() == set()
    assert not backup.recover()["changed"]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("method", ["snapshotCreateXML", "blockCommit", "blockJobAbort"])
def test_killed_before_and_after_each_call_that_changes(capture: Backup, monkeypatch: pytest.MonkeyPatch, method: str, after: bool) -> None:
    call = getattr(libvirt.virDomain, method)

    def kill(*arguments: Any) -> None:
        if after:
            call(*arguments)
        raise Killed

    monkeypatch.setattr(libvirt.virDomain, method, kill)
    with pytest.raises(Killed):
        flow(capture)
    assert_recovered(capture, monkeypatch)


@pytest.mark.parametrize("number", range(1, 125, 1 if ALL else 13))
def test_killed_at_a_call_of_libvirt(capture: Backup, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    calls: list[int] = []

    def kill() -> None:
        calls.append(1)
        if len(calls) == number:
            raise Killed

    libvirt.host.at_each_call = kill
    try:
        flow(capture)
    except Killed:
        assert_recovered(capture, monkeypatch)
    else:
        assert number > 100, "the flow has fewer calls than the test tries"


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(1, 21, 1 if ALL else 4))
def test_killed_when_the_claim_is_written(capture: Backup, monkeypatch: pytest.MonkeyPatch, number: int, after: bool) -> None:
    written: list[int] = []

    def kill(path: Path, data: bytes, mode: int = 0o600) -> None:
        written.append(1)
        if len(written) == number and not after:
            raise Killed
        write(path, data, mode)
        if len(written) == number:
            raise Killed

    write = _claim.write_durably
    monkeypatch.setattr(_claim, "write_durably", kill)
    try:
        flow(capture)
    except Killed:
        assert_recovered(capture, monkeypatch)
    else:
        raise AssertionError("the claim is written less often than the test tries")


def test_killed_when_the_overlay_is_deleted(capture: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = os.unlink

    def kill(path: Any, **options: Any) -> None:
        if str(path).endswith(".overlay"):
            raise Killed
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", kill)
    with pytest.raises(Killed):
        flow(capture)
    assert_recovered(capture, monkeypatch)


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("number", range(3, 48, 1 if ALL else 7))
def test_a_recovery_that_was_killed_is_finished_by_the_next(capture: Backup, number: int, running: bool) -> None:
    calls: list[int] = []

    def kill() -> None:
        calls.append(1)
        if len(calls) == number:
            raise Killed

    capture.snapshot(exclude_disks=["vdb"])
    capture.domain.write("vda", 3, 9)
    if not running:
        capture.domain.shut_off()
    die(capture, step="copy")
    libvirt.host.at_each_call = kill
    with pytest.raises(Killed):
        capture.recover()
    libvirt.host.at_each_call = lambda: None
    capture.recover()
    capture.assert_on_bases()
    capture.assert_nothing_left()
    assert content(capture.domain.disks["vda"])[:5] == [1, 0, 0, 9, 0]


@pytest.mark.parametrize("changed", ["commit", "_commit_offline", "_define", "_delete"])
def test_killed_after_each_step_of_an_offline_commit(capture: Backup, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    capture.snapshot(exclude_disks=["vdb"])
    capture.domain.write("vda", 3, 9)
    capture.domain.shut_off()
    die(capture, step="copy")
    place = _commit if changed == "commit" else _commit.Way
    call = getattr(place, changed)

    def kill(*arguments: Any) -> None:
        call(*arguments)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(place, changed, kill)
        with pytest.raises(Killed):
            capture.recover()
    capture.recover()
    capture.assert_on_bases()
    capture.assert_nothing_left()
    assert content(capture.domain.disks["vda"])[:5] == [1, 0, 0, 9, 0]


@pytest.mark.parametrize("persistent", [True, False])
def test_qemu_dies_while_the_guest_is_on_overlays(capture: Backup, persistent: bool) -> None:
    capture.domain.persistent = persistent
    capture.snapshot()
    capture.domain.write("vda", 3, 9)
    capture.domain.shut_off()
    die(capture)
    capture.recover()
    capture.assert_on_bases()
    assert content(capture.domain.disks["vda"])[:4] == [1, 0, 0, 9]
    capture.assert_nothing_left()


def test_qemu_dies_in_the_commit_and_the_domain_is_started_again(capture: Backup) -> None:
    capture.snapshot()
    capture.domain.write("vda", 3, 9)
    capture.copy()
    assert capture.domain.commits
    capture.domain.shut_off()
    capture.domain.start()
    capture.domain.write("vda", 4, 8)
    capture.commit()
    capture.assert_on_bases()
    assert content(capture.domain.disks["vda"])[:5] == [1, 0, 0, 9, 8]
    assert capture.publish()["changed"]
    assert content(capture.final / "vda.raw")[:5] == [1, 0, 0, 0, 0]


def test_the_same_backup_goes_on_after_a_step_that_died(capture: Backup) -> None:
    capture.snapshot()
    die(capture, step="copy")
    assert not capture.recover(backup_id="night-1")["changed"]
    for step in (capture.copy, capture.commit, capture.publish):
        assert step()["changed"]
    capture.assert_on_bases()


# What recovery refuses


@pytest.fixture
def dead(capture: Backup) -> Backup:
    """A run that died while the guest was on overlays, and had written there."""
    capture.snapshot()
    capture.domain.write("vda", 3, 9)
    die(capture, step="copy")
    return capture


def booted_on_its_base(backup: Backup) -> None:
    backup.domain.shut_off()
    backup.domain.defined.clear()
    backup.domain.start()
    backup.domain.write("vda", 3, 5)


def created_on_its_base_and_shut_off(backup: Backup) -> None:
    backup.domain.shut_off()
    backup.domain.start(on_base=True)
    backup.domain.write("vda", 3, 5)
    backup.domain.shut_off()


def created_on_its_base_and_gone(backup: Backup) -> None:
    backup.domain.persistent = False
    created_on_its_base_and_shut_off(backup)


def saved(backup: Backup) -> None:
    backup.domain.shut_off()
    backup.domain.saved_xml = backup.domain.xml()


def migrated(backup: Backup) -> None:
    backup.domain.shut_off()
    backup.domain.reason = 4


def snapshot_on_top(backup: Backup) -> None:
    domain = backup.connection().lookupByUUIDString(UUID)
    disks = f"<disk name='vda'><source file='{overlay_of(backup)}.users'/></disk><disk name='vdb' snapshot='no'/>"
    domain.snapshotCreateXML(f"<domainsnapshot><disks>{disks}</disks></domainsnapshot>", 16 | 4)


def foreign_job(backup: Backup) -> None:
    backup.domain.block_jobs["vda"] = {"type": 2, "bandwidth": 0, "cur": 0, "end": 1}


def another_disk(backup: Backup) -> None:
    backup.domain.disks["vda"] = f"{backup.domain.disks['vda']}.other"
    backup.domain.live.clear()
    backup.domain.defined.clear()


def overlay_lost(backup: Backup) -> None:
    backup.domain.shut_off()
    overlay_of(backup).unlink()


REFUSALS: list[tuple[Callable[[Backup], None], str]] = [
    (booted_on_its_base, "was used without its overlay"),
    (created_on_its_base_and_shut_off, "was used without its overlay"),
    (created_on_its_base_and_gone, "was used without its overlay"),
    (saved, "managed save"),
    (migrated, "was migrated away"),
    (snapshot_on_top, "a snapshot that was put on top of our overlay"),
    (foreign_job, "A block job that is not ours"),
    (another_disk, "raw.other"),
    (overlay_lost, "is gone, and with it"),
]


@pytest.mark.parametrize(("trouble", "words"), REFUSALS)
def test_what_cannot_be_proved_is_refused_again_and_again(dead: Backup, trouble: Callable[[Backup], None], words: str) -> None:
    trouble(dead)
    before, changed = state(dead), changes()
    for check in (True, False, True, False):
        with pytest.raises(LiveBackupError, match=words):
            dead.recover(check=check)
        # Not even the disk without trouble is touched.
        assert state(dead) == before and changes() == changed
        assert read_claim(UUID) is not None
    if dead.domain.persistent:
        with raises_code("recovery_needed"):
            dead.snapshot(backup_id="night-2")


def test_qemu_writes_to_overlays_that_libvirt_does_not_know(capture: Backup) -> None:
    """libvirtd was killed within the snapshot: it shows the bases, and nothing but QEMU tells where the guest's writes are."""
    capture.snapshot()
    die(capture, step="begin")
    capture.domain.forget_snapshot()
    capture.domain.write("vda", 3, 9)
    # Nothing was written to that of vdb yet, and it is in use all the same.
    listed = capture.recover(check=True)["repairs"]
    assert [repair["action"] for repair in listed[:2]] == [Do.COMMIT_IN_QEMU.value] * 2
    assert capture.domain.qemu_jobs == {}
    capture.recover()
    assert capture.domain.unknown == {}
    assert content(capture.domain.disks["vda"]) == [1, 0, 0, 9] + [0] * 12
    assert [nodes for nodes in capture.domain.unused.values() if nodes] == [], "they would be in libvirt's way"
    capture.assert_on_bases()
    assert capture.claim_files() == []


def test_libvirt_may_still_be_at_the_call_of_a_dead_client(capture: Backup) -> None:
    """QEMU is asked when that is at its end, and by then libvirt knows the overlays."""
    capture.snapshot()
    die(capture, step="begin")
    known = {target: list(images) for target, images in capture.domain.live.items()}
    capture.domain.forget_snapshot()

    def end_of_the_call() -> None:
        capture.domain.unknown.clear()
        for target, images in known.items():
            capture.domain.live[target], capture.domain.defined[target] = list(images), list(images)

    libvirt.host.before["qemuMonitorCommand"] = end_of_the_call
    listed = capture.recover(check=True)["repairs"]
    assert [repair["action"] for repair in listed[:2]] == [Do.COMMIT.value] * 2
    capture.recover()
    capture.assert_on_bases()


def test_an_overlay_that_qemu_has_opened_and_not_used(capture: Backup) -> None:
    capture.snapshot()
    die(capture, step="begin")
    overlay = str(overlay_of(capture))
    capture.domain.forget_snapshot()
    capture.domain.unknown.clear()
    capture.domain.unused[overlay] = ["vda-format", "vda-storage"]
    capture.recover()
    assert capture.domain.unused == {overlay: []}
    capture.assert_on_bases()


def test_an_overlay_that_was_made_and_never_formatted(capture: Backup) -> None:
    capture.snapshot()
    die(capture, step="begin")
    capture.domain.forget_snapshot()
    capture.domain.unknown.clear()
    overlay_of(capture).write_bytes(b"")
    capture.recover()
    capture.assert_on_bases()


def test_a_commit_of_which_libvirt_has_lost_sight_ends_with_its_qemu(dead: Backup) -> None:
    claim = read_claim(UUID)
    assert claim is not None
    claim.progress.memory = {"vda": {"commit_begun": True}}
    save_claim(claim)
    dead.domain.commits["vda"] = libvirt.Commit(1, 1000, noted=False)
    with raises_code("block_job_unknown"):
        dead.recover()
    assert "vda" in dead.domain.commits, "the end of that job can end libvirt's daemon"
    dead.domain.shut_off()
    dead.domain.start()
    dead.recover()
    dead.assert_on_bases()
    assert content(dead.domain.disks["vda"]) == [1, 0, 0, 9] + [0] * 12


def test_the_way_that_a_stuck_pivot_is_left(dead: Backup) -> None:
    """QEMU is on the base, and libvirt never shows it. When the domain was shut off and started, what is left goes."""
    claim = read_claim(UUID)
    assert claim is not None
    claim.progress.memory = {"vda": {"commit_begun": True, "pivot_asked": "0@1", "pivot_time": 0.0}}
    save_claim(claim)
    overlay = dead.domain.live["vda"][0]
    dead.domain.commits["vda"] = libvirt.Commit(1, 0)
    dead.domain.pivot("vda")
    dead.domain.live["vda"], dead.domain.defined["vda"] = [overlay], [overlay]
    dead.domain.stuck = {"vda"}
    with raises_code("pivot_unfinished"):
        dead.recover()
    dead.domain.shut_off()
    dead.domain.stuck.clear()
    dead.domain.start()
    dead.domain.write("vda", 4, 7)
    dead.recover()
    dead.assert_on_bases()
    assert content(dead.domain.disks["vda"]) == [1, 0, 0, 9, 7] + [0] * 11


def test_saved_memory_that_names_an_overlay_keeps_it(dead: Backup) -> None:
    """The disk is on its base again, and what is saved would be started on the overlay."""
    text = dead.domain.xml()
    claim = read_claim(UUID)
    assert claim is not None
    claim.progress.memory = {overlay.target: {"commit_begun": True, "merged": fingerprint(overlay.path)} for overlay in claim.plan.overlays}
    save_claim(claim)
    dead.domain.live.clear()
    dead.domain.defined.clear()
    dead.domain.saved_xml = text
    with pytest.raises(LiveBackupError, match="The saved memory of domain 'db1' still names the overlay"):
        dead.recover()
    assert overlay_of(dead).exists()
    dead.domain.saved_xml = ""
    assert dead.recover()["changed"]
    dead.assert_on_bases()


def test_a_snapshot_that_names_an_overlay_keeps_it(dead: Backup) -> None:
    dead.domain.snapshots["users"] = dead.domain.xml()
    with pytest.raises(LiveBackupError, match="Snapshot 'users' of domain 'db1' still names the overlay"):
        dead.recover()
    assert overlay_of(dead).exists()
    assert content(dead.domain.disks["vda"])[3] == 9


def test_what_was_refused_is_recovered_when_it_is_mended(dead: Backup) -> None:
    snapshot_on_top(dead)
    with pytest.raises(LiveBackupError, match="put on top"):
        dead.recover()
    users = dead.domain.live["vda"][0]
    for images in (dead.domain.live, dead.domain.defined):
        images["vda"].remove(users)
    Path(users).unlink()
    dead.recover()
    dead.assert_on_bases()
    assert content(dead.domain.disks["vda"])[3] == 9


def test_recovery_in_check_mode_changes_nothing(dead: Backup) -> None:
    before, claim, changed = state(dead), read_claim(UUID), changes()
    listed = dead.recover(check=True)
    assert repaired(listed) == ["overlay of disk vda", "overlay of disk vdb", "unfinished backup set", "claim"]
    assert (state(dead), read_claim(UUID), changes()) == (before, claim, changed)
    assert repaired(dead.recover()) == repaired(listed)
    dead.assert_on_bases()


DAY = 86400.0


@pytest.fixture
def ended_in_the_commit(capture: Backup) -> Backup:
    """QEMU ended in the middle of a commit, and the run with it; the guest had written to the overlay of vda."""
    capture.snapshot()
    capture.domain.write("vda", 3, 9)
    capture.copy()
    assert capture.domain.commits
    capture.domain.shut_off()
    die(capture, step="commit")
    return capture


def write_base(backup: Backup, after: float) -> float:
    """The base of vda was last written so long after its overlay; when that was."""
    moment = os.stat(overlay_of(backup)).st_mtime + after
    os.utime(backup.domain.disks["vda"], (moment, moment))
    return moment


@pytest.mark.parametrize("persistent", [True, False])
def test_a_base_that_was_written_after_the_end_of_its_commit(ended_in_the_commit: Backup, persistent: bool) -> None:
    backup = ended_in_the_commit
    if not persistent:
        backup.domain.persistent = False
        backup.domain.shut_off()
    write_base(backup, DAY)
    before = state(backup)
    for check in (True, False, True, False):
        with pytest.raises(
            LiveBackupError, match="It is not proved that nobody used the base .*vda.raw.* ended in the middle of the commit"
        ):
            backup.recover(check=check)
    assert state(backup) == before
    assert repaired(backup.recover(check=True, base_untouched=True))[0] == "overlay of disk vda"
    assert state(backup) == before
    backup.recover(base_untouched=True)
    backup.assert_on_bases()
    assert content(backup.domain.disks["vda"])[:4] == [1, 0, 0, 9]


def test_the_last_writes_of_a_commit_are_no_use_of_the_base(ended_in_the_commit: Backup) -> None:
    """They may reach the base when the overlay had been written for the last time."""
    write_base(ended_in_the_commit, 9)
    ended_in_the_commit.recover()
    ended_in_the_commit.assert_on_bases()


def test_what_a_commit_was_seen_to_write_is_no_use_of_the_base(ended_in_the_commit: Backup) -> None:
    """A guest may write nothing for as long as its commit takes."""
    moment = write_base(ended_in_the_commit, DAY)
    claim = read_claim(UUID)
    assert claim is not None and claim.progress.memory["vda"]["base_seen"] > 0
    claim.progress.memory["vda"]["base_seen"] = moment - 3
    save_claim(claim)
    ended_in_the_commit.recover()
    ended_in_the_commit.assert_on_bases()


def killed_in_a_commit_by_qemu_img(backup: Backup, monkeypatch: pytest.MonkeyPatch, lasted: float) -> None:
    """It writes the base alone. When it had run for so long we noted that it was at work, and were killed soon after."""

    def half(_overlay: str, at_work: Callable[[], None], _every: float) -> None:
        moment = write_base(backup, lasted)
        monkeypatch.setattr(_commit, "_file_time", lambda _overlay: moment)
        if lasted:
            at_work()
        write_base(backup, lasted + 9)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(_commit, "commit", half)
        backup.recover()


@pytest.mark.parametrize("lasted", [0, DAY])
def test_a_commit_by_qemu_img_that_was_killed_is_no_use_of_the_base(
    ended_in_the_commit: Backup, monkeypatch: pytest.MonkeyPatch, lasted: float
) -> None:
    backup = ended_in_the_commit
    for _time in range(2):
        killed_in_a_commit_by_qemu_img(backup, monkeypatch, lasted)
    backup.recover()
    backup.assert_on_bases()
    assert content(backup.domain.disks["vda"])[:4] == [1, 0, 0, 9]


@pytest.mark.parametrize("lasted", [0, DAY])
def test_a_base_that_was_used_after_a_commit_by_qemu_img_was_killed(
    ended_in_the_commit: Backup, monkeypatch: pytest.MonkeyPatch, lasted: float
) -> None:
    """Its lock of the image died with it."""
    backup = ended_in_the_commit
    killed_in_a_commit_by_qemu_img(backup, monkeypatch, lasted)
    write_base(backup, lasted + 60)
    before = state(backup)
    for check in (True, False, True, False):
        with pytest.raises(LiveBackupError, match="It is not proved that nobody used the base .*while the domain was shut off"):
            backup.recover(check=check)
    assert state(backup) == before
    backup.recover(base_untouched=True)
    backup.assert_on_bases()


def test_the_time_of_a_file_is_that_of_its_file_system(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.write_bytes(b"1")
    base.chmod(0o640)
    os.utime(base, (1000, 1000))
    before = base.stat()
    moment = _commit._file_time(Overlay("vda", str(base), "raw", "file", "/overlay"))
    after = base.stat()
    assert (after.st_mtime, after.st_mode) == (1000, before.st_mode) and before.st_ctime <= moment == after.st_ctime
    tmp_path.joinpath("other").touch()
    assert moment <= tmp_path.joinpath("other").stat().st_mtime < moment + 5


def test_a_base_that_was_used_after_the_end_of_its_commit_was_seen(capture: Backup) -> None:
    """The run saw it, and could not go on. From then on every write to the base is another's, however soon it comes."""
    capture.snapshot()
    capture.domain.write("vda", 3, 9)
    capture.copy()
    capture.domain.shut_off()
    capture.domain.reason = 4
    claim = read_claim(UUID)
    assert claim is not None
    with raises_code("domain_migrated"):
        _commit.commit_all("qemu:///system", claim, ["vda"], 60, capture.clock)
    die(capture, step="commit")
    capture.domain.reason = 2
    write_base(capture, 0.001)
    with raises_code("base_used"):
        capture.recover(base_untouched=True)


def test_a_base_in_use_is_not_noted_as_the_end_of_a_commit(ended_in_the_commit: Backup) -> None:
    """The domain was defined on its base and used there, a commit by hand refused, and then it was defined on its overlay again."""
    backup = ended_in_the_commit
    on_overlay, backup.domain.defined["vda"] = backup.domain.defined["vda"], []
    write_base(backup, DAY)
    claim = read_claim(UUID)
    assert claim is not None
    with pytest.raises(LiveBackupError, match="was used without its overlay"):
        _commit.commit_all("qemu:///system", claim, ["vda"], 60, backup.clock)
    backup.domain.defined["vda"] = on_overlay
    with pytest.raises(LiveBackupError, match="It is not proved that nobody used the base"):
        backup.recover()


@pytest.mark.parametrize("answered", [True, False])
def test_the_power_fails_after_the_overlay_was_deleted(
    answered: bool, capture: Backup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And the definition on the base had not reached libvirt's disk. First everything that is needed then is brought there."""
    definitions = tmp_path / "qemu"
    definitions.mkdir()
    monkeypatch.setattr(_commit, "DEFINITIONS", definitions)
    monkeypatch.setattr(_commit, "sync_existing", lambda path: order.append(str(path)))
    unlink, order = os.unlink, []

    def unlink_overlay(path: str, **options: Any) -> None:
        unlink(path, **options)
        if str(path).endswith("vda.night-1.overlay"):
            claim = read_claim(UUID)
            assert claim is not None and claim.progress.memory["vda"]["merged"]
            order.append("deleted")
            raise Killed

    capture.snapshot()
    capture.domain.write("vda", 3, 9)
    capture.copy()
    before = [list(capture.domain.defined["vda"])]
    delete = _commit.Way._delete

    def delete_without_answer(way: _commit.Way, connection: Any, overlay: Any) -> None:
        """As one does that finds a domain on its base, and does not know what the pivot answered."""
        remember(way._claim, overlay.target, merged=None)
        delete(way, connection, overlay)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("os.unlink", unlink_overlay)
        if not answered:
            patch.setattr(_commit.Way, "_delete", delete_without_answer)
        capture.commit()
    assert order == [str(definitions), "deleted"]
    die(capture, step="commit")
    capture.domain.shut_off()
    [capture.domain.defined["vda"]] = before
    assert not overlay_of(capture).exists()
    assert [repair["action"] for repair in capture.recover(check=True)["repairs"]][0] == Do.DEFINE.value
    capture.recover()
    assert capture.domain.chain("vda", inactive=True) == [(capture.domain.disks["vda"], "raw")]
    assert content(capture.domain.disks["vda"])[3] == 9


# What is refused before anything is done


def existing_overlay(backup: Backup) -> str:
    overlay_of(backup, "vdb").write_bytes(b"")
    return "exists already and belongs to no known backup"


def link_in_place_of_the_overlay(backup: Backup) -> str:
    overlay_of(backup).symlink_to(backup.target / "nowhere")
    return "exists already and belongs to no known backup"


def no_directory(backup: Backup) -> str:
    return "does not exist, or is not an absolute path"


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("trouble", [existing_overlay, link_in_place_of_the_overlay, no_directory])
def test_places_where_no_overlay_can_be(capture: Backup, trouble: Callable[[Backup], str], check: bool) -> None:
    words = trouble(capture)
    before = state(capture)
    with pytest.raises(LiveBackupError, match=words):
        capture.snapshot(check=check, overlay_dir="/no/where" if trouble is no_directory else None)
    assert state(capture) == before and capture.claim_files() == [] and changes() == []


def test_the_overlay_of_a_block_device_goes_beside_the_other_images(capture: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never beside the device, which is in memory; and check mode says where."""
    capture.domain.devices_of_host.add("vda")
    images = Path(capture.domain.disks["vdb"]).parent
    device = images.parent / "dev" / "volume"
    device.parent.mkdir()
    device.write_bytes(Path(capture.domain.disks["vda"]).read_bytes())
    capture.domain.disks["vda"] = str(device)
    planned = capture.snapshot(check=True)["overlays"]
    assert [Path(overlay["path"]).parent for overlay in planned] == [images, images]


@pytest.mark.parametrize(("on_disk", "free"), [(False, 1 << 40), (True, MIB)], ids=["in memory", "full"])
def test_no_place_for_the_overlay_of_a_block_device(on_disk: bool, free: int, capture: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    capture.domain.devices_of_host |= {"vda", "vdb"}
    images = Path(capture.domain.disks["vda"]).parent
    monkeypatch.setattr(_growing, "_IMAGES", (images, images / "missing"))
    assert Path(capture.snapshot(check=True)["overlays"][0]["path"]).parent == images
    monkeypatch.setattr(_growing, "is_on_disk", lambda mounts, device: on_disk)
    monkeypatch.setattr(_growing, "free_space", lambda place: FreeSpace(str(place), free))
    before = state(capture)
    for check in (True, False):
        with pytest.raises(LiveBackupError, match=f"vda .* is not a file of this host.* None of {images}, {images}/missing is one"):
            capture.snapshot(check=check)
    assert state(capture) == before and capture.claim_files() == [] and changes() == []


def test_what_is_kept_in_memory_is_no_disk() -> None:
    mounts = "\n".join(
        f"{number} 1 {device} / {point} rw shared:1 - {kind} source rw"
        for number, (device, point, kind) in enumerate([("254:0", "/", "ext4"), ("0:6", "/dev", "devtmpfs"), ("0:25", "/run", "tmpfs")])
    )
    assert [is_on_disk(mounts, os.makedev(*device)) for device in ((254, 0), (0, 6), (0, 25))] == [True, False, False]


def test_the_overlay_of_another_domain_is_never_touched(capture: Backup) -> None:
    other = overlay_of(capture).with_name("22222222-2222-4222-8222-222222222222.vda.night-1.overlay")
    other.write_bytes(b"theirs")
    capture.snapshot()
    die(capture)
    capture.recover()
    assert other.read_bytes() == b"theirs"
    other.unlink()
    capture.assert_on_bases()


def test_overlays_in_a_directory_of_their_own(capture: Backup, tmp_path: Path) -> None:
    directory = tmp_path / "overlays"
    directory.mkdir()
    begun = capture.snapshot(overlay_dir=str(directory))
    assert {Path(overlay["path"]).parent for overlay in begun["overlays"]} == {directory}
    capture.copy()
    capture.commit()
    assert list(directory.glob("*.overlay")) == []
    capture.publish()
    assert list(directory.iterdir()) == []


def test_too_little_space_for_overlays(capture: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(capture)
    monkeypatch.setattr(_growing, "file_systems", lambda overlays: [Space(FreeSpace(str(Path(overlays[0].path).parent), 63 * MIB), 0, 0)])
    for check in (True, False):
        with pytest.raises(LiveBackupError, match="is too small for overlays, which.* 63 MiB are free, and 128 MiB are needed") as told:
            capture.snapshot(check=check)
        assert told.value.code == "no_free_space"
    assert state(capture) == before and capture.claim_files() == []


def test_overlays_and_copies_on_one_file_system(capture: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each alone would fit, also beside another domain's backup that is unfinished."""
    planned = capture.snapshot(check=True)
    free = planned["bytes_needed"] + 128 * MIB
    device = os.stat(capture.target).st_dev
    monkeypatch.setattr(_begin, "probe_target", lambda *_arguments, **_options: TargetFacts(free, device))
    with pytest.raises(LiveBackupError, match="is too small"):
        capture.snapshot()
    monkeypatch.setattr(_begin, "probe_target", lambda *_arguments, **_options: TargetFacts(free, device + 1))
    assert capture.snapshot(check=True)["changed"]

    other = dict.fromkeys(["domain", "backup_id", "directory"], "other")
    rooms = {target: {"path": f"{capture.target}/{target}.overlay", "device": device, "bytes": 70 * MIB} for target in ("vda", "vdb")}
    # Nobody looks at another file system for it: it may hang.
    rooms["vdc"] = {"path": f"{capture.target}/file/vdc.overlay", "device": device + 2, "bytes": 70 * MIB}
    (capture.target / "file").touch()
    plan = {**PLAN, "device": device, "bytes_needed_here": 5 * MIB, "overlay_room": rooms}
    _places.CLAIMS.mkdir()
    claim = {**other, "uuid": "other", "method": "legacy", "plan": plan, "started": 0.0, "results": {"committed": {"vdb": 1}}}
    save_claim(Claim.from_json(claim))
    monkeypatch.setattr(_growing, "file_systems", lambda overlays: [Space(FreeSpace(str(Path(overlays[0].path).parent), 200 * MIB), 0, 0)])
    with pytest.raises(LiveBackupError, match="128 MiB are needed, and other unfinished backups there still need 75 MiB"):
        capture.snapshot()
    (capture.target / "vda.overlay").write_bytes(bytes(4 * MIB))
    assert capture.snapshot(check=True)["changed"]


def test_a_snapshot_that_fails_leaves_nothing(capture: Backup) -> None:
    def fail() -> None:
        raise libvirt.libvirtError(1, "internal error: broken")

    libvirt.host.before["snapshotCreateXML"] = fail
    with pytest.raises(LiveBackupError, match="Could not put overlays on the disks"):
        capture.snapshot()
    capture.assert_on_bases()
    capture.assert_nothing_left()


def test_an_error_of_a_snapshot_that_was_made_nevertheless_loses_nothing(capture: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt may fail after QEMU has gone over to the overlays."""
    create = libvirt.virDomain.snapshotCreateXML

    def late(domain: Any, text: str, flags: int) -> None:
        create(domain, text, flags)
        capture.domain.write("vda", 3, 9)
        raise libvirt.libvirtError(1, "internal error: cannot save the status")

    monkeypatch.setattr(libvirt.virDomain, "snapshotCreateXML", late)
    with pytest.raises(LiveBackupError, match="cannot save the status"):
        capture.snapshot()
    capture.assert_on_bases()
    capture.assert_nothing_left()
    assert content(capture.domain.disks["vda"])[3] == 9


# What fails during the copy


def test_overlays_that_threaten_to_fill_their_file_system_are_committed(capture: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    capture.snapshot()
    capture.domain.write("vda", 3, 9)
    monkeypatch.setattr(_space, "file_systems", lambda overlays: [Space(FreeSpace("/images", 31 * MIB), MIB, 0)])
    with raises_code("overlay_space_short"):
        capture.copy(bandwidth=1)
    capture.assert_on_bases()
    capture.assert_nothing_left()
    assert content(capture.domain.disks["vda"])[3] == 9


def test_the_overlays_are_watched_while_libvirt_hangs(capture: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are committed as soon as it answers."""
    capture.snapshot()
    capture.domain.write("vda", 3, 9)
    given_up = threading.Event()
    give_up, opened = _copy.Pace.give_up, libvirt.open

    def give_up_and_tell(pace: _copy.Pace, why: LiveBackupError) -> None:
        give_up(pace, why)
        given_up.set()

    def answer_late(uri: str) -> libvirt.virConnect:
        assert given_up.wait(20), "nobody watched the overlays"
        return opened(uri)

    monkeypatch.setattr(_space, "file_systems", lambda overlays: [Space(FreeSpace("/images", 31 * MIB), MIB, 0)])
    monkeypatch.setattr(_copy.Pace, "give_up", give_up_and_tell)
    monkeypatch.setattr(libvirt, "open", answer_late)
    with pytest.raises(LiveBackupError, match="threaten to fill /images.* as soon as libvirt answers"):
        capture.copy(bandwidth=1)
    capture.assert_on_bases()
    capture.assert_nothing_left()
    assert content(capture.domain.disks["vda"])[3] == 9


def test_overlays_that_cannot_be_watched_are_committed(capture: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    capture.snapshot()

    def fail(_overlays: Any) -> None:
        raise OSError(116, "Stale file handle", "/images")

    monkeypatch.setattr(_space, "file_systems", fail)
    with pytest.raises(LiveBackupError, match="was given up.*refused on '/images': Stale file handle"):
        capture.copy(bandwidth=1)
    capture.assert_on_bases()
    capture.assert_nothing_left()


def test_a_full_target_gives_the_copy_up_and_commits(capture: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: Any, **_options: Any) -> None:
        raise OSError(28, "No space left on device")

    capture.snapshot()
    capture.domain.write("vda", 3, 9)
    monkeypatch.setattr(_copy_image, "copy_data", full)
    with pytest.raises(LiveBackupError, match="was given up. .*No space left on device.* Nothing was published") as told:
        capture.copy()
    assert told.value.code == "no_free_space"
    capture.assert_on_bases()
    capture.assert_nothing_left()
    assert content(capture.domain.disks["vda"])[3] == 9
    with pytest.raises(LiveBackupError, match="has no backup night-1 under way"):
        capture.publish()


def test_a_copy_that_hangs_does_not_keep_the_overlays_from_being_committed(capture: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()

    def hang(*_arguments: Any, **_options: Any) -> None:
        answers.wait()

    capture.snapshot()
    capture.domain.write("vda", 3, 9)
    monkeypatch.setattr(_copy_image, "copy_data", hang)
    monkeypatch.setattr(_capture_copy, "_END_SECONDS", 0.1)
    monkeypatch.setattr(_capture_copy, "_HANG_SECONDS", 0.1)
    monkeypatch.setattr(_space, "file_systems", lambda overlays: [Space(FreeSpace("/images", 31 * MIB), MIB, 0)])
    with pytest.raises(LiveBackupError, match=r"threaten to fill /images.*\.partial does not answer since.*Run libvirt_backup_recover"):
        capture.copy()
    capture.assert_on_bases()
    assert content(capture.domain.disks["vda"])[3] == 9
    assert capture.partial.exists()
    answers.set()
    with raises_code("recovery_needed"):
        capture.publish()
    assert [repair["what"] for repair in capture.recover()["repairs"]] == ["unfinished backup set", "claim"]
    capture.assert_nothing_left()


def test_a_guest_that_stopped_for_want_of_room_is_resumed(capture: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    capture.snapshot()
    capture.domain.state, capture.domain.reason = libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR
    monkeypatch.setattr(_space, "file_systems", lambda overlays: [Space(FreeSpace("/images", 0), MIB, 0)])
    with raises_code("overlay_space_short"):
        capture.copy(bandwidth=1)
    capture.assert_on_bases()
    assert capture.domain.state == libvirt.VIR_DOMAIN_RUNNING


def test_a_base_that_did_not_stand_still_is_not_copied(capture: Backup) -> None:
    """Nothing is committed over it either."""
    capture.snapshot()
    capture.domain.write("vda", 3, 9)
    with open(capture.domain.disks["vda"], "r+b") as base:
        base.write(b"\5")
    with raises_code("base_used"):
        capture.copy()
    assert overlay_of(capture).exists() and "blockCommit" not in changes()[:1]
    assert not capture.final.exists()
    with raises_code("recovery_needed"):
        capture.publish()


def test_a_pivot_of_the_user_during_the_copy_is_noticed(capture: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    capture.snapshot()
    copy = _capture_copy.copy_image

    def meanwhile(copying: Any, *arguments: Any) -> Any:
        if copying.source.name == "vda.raw":
            capture.domain.commits["vda"] = libvirt.Commit(1, 0)
            capture.domain.pivot("vda")
        return copy(copying, *arguments)

    monkeypatch.setattr(_capture_copy, "copy_image", meanwhile)
    with pytest.raises(LiveBackupError, match="The base of disk vda changed while it was copied"):
        capture.copy()
    capture.assert_on_bases()
    capture.assert_nothing_left()


# Two runs


def test_another_run_is_told_who_has_the_domain(capture: Backup) -> None:
    capture.snapshot()
    before = state(capture)
    for call in (lambda: capture.snapshot(backup_id="night-2"), lambda: capture.begin(backup_id="night-2"), capture.recover):
        with pytest.raises(LiveBackupError, match="is being backed up: backup night-1"):
            call()
    for step in (capture.copy, capture.commit, capture.publish):
        with pytest.raises(LiveBackupError, match="is in another backup, night-1"):
            step(backup_id="night-2")
    assert state(capture) == before


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_after_a_recovery_no_later_step_goes_on(capture: Backup, steps: int) -> None:
    run = (capture.snapshot, capture.copy, capture.commit)
    for step in run[:steps]:
        step()
    capture.clock.sleep(301)
    capture.recover()
    for late in (capture.copy, capture.publish):
        with pytest.raises(LiveBackupError, match="has no backup night-1 under way"):
            late()
    assert not capture.commit()["changed"]
    capture.assert_on_bases()
    capture.assert_nothing_left()


def test_while_a_recovery_is_not_finished_no_later_step_goes_on(capture: Backup) -> None:
    capture.snapshot()
    capture.copy()
    claim = read_claim(UUID)
    assert claim is not None
    claim.progress.recovering = True
    save_claim(claim)
    for late in (capture.copy, capture.commit, capture.publish):
        with raises_code("recovery_needed"):
            late()
    with raises_code("claim_alive"):
        capture.snapshot()


# Offline


@pytest.fixture
def off(capture: Backup) -> Backup:
    capture.domain.shut_off()
    return capture


def test_a_domain_that_is_shut_off(off: Backup) -> None:
    begun = off.begin(method="offline")
    assert begun["changed"] and begun["consistency"] == "offline" and changes() == []
    copied = off.copy()
    assert [disk["target"] for disk in copied["disks"]] == ["vda", "vdb"]
    manifest = off.publish()["manifest"]
    assert manifest["method"] == "offline" and content(off.final / "vdb.raw")[0] == 2
    assert changes() == [] and off.claim_files() == []
    off.assert_on_bases()


def test_saved_memory_is_not_in_the_backup(off: Backup) -> None:
    off.domain.saved_xml = off.domain.xml()
    begun = off.begin(method="offline")
    assert begun["consistency"] == "crash" and "memory saved" in begun["why"]


@pytest.mark.parametrize("check", [False, True])
def test_what_offline_refuses(off: Backup, check: bool) -> None:
    off.domain.reason = 4
    with raises_code("domain_migrated"):
        off.begin(method="offline", check=check)
    off.domain.reason = 2
    off.domain.devices_of_host.add("vda")
    with pytest.raises(LiveBackupError, match="Disks vda .* are block devices.*exclusive"):
        off.begin(method="offline", check=check)
    assert off.begin(method="offline", check=check, exclude_disks=["vda"])["changed"]


def test_offline_is_not_for_a_domain_that_runs(capture: Backup) -> None:
    with raises_code("method_unsuitable"):
        capture.begin(method="offline")
    capture.assert_nothing_left()


def test_a_domain_that_is_started_meanwhile(off: Backup) -> None:
    off.begin(method="offline")
    off.domain.start()
    with pytest.raises(LiveBackupError, match="The domain was started, or disk .* written, while it was copied"):
        off.copy()
    off.assert_nothing_left()


def test_a_domain_that_was_started_and_shut_off_meanwhile(off: Backup) -> None:
    off.begin(method="offline")
    off.domain.start()
    off.domain.write("vdb", 1, 3)
    off.domain.shut_off()
    with pytest.raises(LiveBackupError, match="disk vdb written, while it was copied"):
        off.copy()
    off.assert_nothing_left()


def test_a_disk_that_another_qemu_uses_is_not_copied(off: Backup) -> None:
    off.begin(method="offline")
    with subprocess.Popen(
        ["qemu-io", "-f", "raw", off.domain.disks["vda"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdin.write("length\n")
        other.stdin.flush()
        assert "MiB" in other.stdout.readline()
        with raises_code("disk_in_use"):
            off.copy()
        other.stdin.close()
    off.assert_nothing_left()


def test_an_offline_run_that_died(off: Backup) -> None:
    off.begin(method="offline")
    die(off, step="copy")
    assert not off.recover(backup_id="night-1")["changed"]
    assert repaired(off.recover(check=True, backup_id="night-2")) == ["unfinished backup set", "claim"]
    off.recover(backup_id="night-2")
    off.assert_nothing_left()


def test_the_claim_is_readable_json_with_what_recovery_needs(capture: Backup) -> None:
    capture.snapshot()
    plan = json.loads((capture.claims / f"{UUID}.json").read_text(encoding="utf-8"))
    assert plan["method"] == "legacy" and len(plan["results"]["bases"]) == 2 and plan["plan"]["instance"] == "1@1"
