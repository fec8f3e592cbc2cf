# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done with an overlay: never a step that could lose a write of the guest."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from ansible_collections.virtops.live_backup.plugins.module_utils._claim.overlays import Memory, Overlay
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.domain_xml import Disk, Image, Mirror
from ansible_collections.virtops.live_backup.plugins.module_utils._overlay.decide import Do, InQemu, Refusal, Seen, judge

OVERLAY = Overlay("vda", "/images/base.raw", "raw", "file", "/images/uuid.vda.n1.overlay")
BASE, TOP = Image("file", OVERLAY.base, "raw"), Image("file", OVERLAY.path, "qcow2")
USERS = Image("file", "/images/users.qcow2", "qcow2")
PRINT = {"mtime_ns": 1}
OVERLAY_PRINT, USED_AGAIN = {"mtime_ns": 3}, {"mtime_ns": 4}
RAN = "100@5"
NODES = ("libvirt-3-format", "libvirt-3-storage")
JOB = {"type": 4, "cur": 1, "end": 2}


def disk(*chain: Image, mirror: Mirror | None = None) -> Disk:
    return Disk("vda", "disk", "virtio", chain, False, False, False, mirror=mirror)


def committing(ready: str = "", job: str = "active-commit", path: str = OVERLAY.base) -> Disk:
    return disk(TOP, BASE, mirror=Mirror(job, ready, path))


ON_OVERLAY, ON_BASE, STACKED = disk(TOP, BASE), disk(BASE), disk(USERS, TOP, BASE)
KNOWN = Memory(RAN, PRINT)


def running(live: Disk | None, **more: Any) -> Seen:
    return Seen(**{"running": True, "defined": True, "live": live, "inactive": live, "instance": RAN, **more})


def shut_off(inactive: Disk | None, **more: Any) -> Seen:
    return Seen(**{"running": False, "defined": True, "live": None, "inactive": inactive, **more})


def gone(**more: Any) -> Seen:
    return Seen(**{"running": False, "defined": False, "live": None, "inactive": None, **more})


PIVOT_TIME = 1000.0
PIVOT_ASKED = Memory(RAN, PRINT, commit_begun=True, pivot_asked="1@1", pivot_time=PIVOT_TIME)
BY_MONITOR = Memory(RAN, PRINT, commit_begun=True, pivot_asked="QEMU's monitor", pivot_time=PIVOT_TIME)
# All of the overlay is in the base, and it was not written since.
MERGED = Memory(RAN, PRINT, commit_begun=True, pivot_asked="1@1", merged=OVERLAY_PRINT)
BEGUN = Memory(RAN, PRINT, commit_begun=True)


@pytest.mark.parametrize(
    ("memory", "seen", "step"),
    [
        (KNOWN, running(ON_OVERLAY), Do.COMMIT),
        (KNOWN, running(ON_OVERLAY, instance="200@9"), Do.COMMIT),
        (Memory(RAN), running(ON_OVERLAY), Do.COMMIT),
        (BEGUN, running(ON_OVERLAY), Do.COMMIT),
        (BEGUN, running(committing(), job=JOB), Do.WAIT),
        (BEGUN, running(committing("yes"), job=JOB), Do.PIVOT),
        (BEGUN, running(committing("pivot")), Do.LOOK_AGAIN),
        (BEGUN, running(committing("yes", job="")), Do.LOOK_AGAIN),
        (BEGUN, running(committing("yes")), Do.LOOK_AGAIN),
        (BEGUN, running(committing("abort"), job=JOB), Do.LOOK_AGAIN),
        (PIVOT_ASKED, running(ON_OVERLAY), Do.COMMIT),
        (PIVOT_ASKED, running(ON_OVERLAY, instance="200@9", daemon="1@1"), Do.COMMIT),
        (PIVOT_ASKED, running(ON_BASE, daemon="2@2"), Do.DELETE),
        (PIVOT_ASKED, running(ON_BASE, instance="200@9", daemon="1@1"), Do.DELETE),
        (PIVOT_ASKED, running(ON_BASE, inactive=ON_OVERLAY), Do.DEFINE),
        (MERGED, running(ON_BASE, instance="200@9", overlay_print=OVERLAY_PRINT), Do.DELETE),
        (KNOWN, running(ON_BASE, instance="200@9", overlay_holds_data=False), Do.DELETE),
        (KNOWN, running(ON_BASE, overlay_exists=False), Do.NOTHING),
        (KNOWN, running(ON_BASE, overlay_exists=False, inactive=ON_OVERLAY), Do.DEFINE),
        (KNOWN, shut_off(ON_OVERLAY), Do.COMMIT_OFFLINE),
        (BEGUN, shut_off(ON_OVERLAY), Do.COMMIT_OFFLINE),
        (PIVOT_ASKED, shut_off(ON_OVERLAY, daemon="1@1"), Do.COMMIT_OFFLINE),
        (PIVOT_ASKED, shut_off(ON_OVERLAY, daemon="2@2", identical=True), Do.DEFINE),
        (MERGED, shut_off(ON_OVERLAY, overlay_print=OVERLAY_PRINT), Do.DEFINE),
        (Memory(RAN, PRINT, True, merged=OVERLAY_PRINT), shut_off(ON_OVERLAY, overlay_print=USED_AGAIN), Do.COMMIT_OFFLINE),
        (MERGED, shut_off(ON_BASE, overlay_print=OVERLAY_PRINT), Do.DELETE),
        (PIVOT_ASKED, shut_off(ON_BASE, daemon="1@1"), Do.DELETE),
        (KNOWN, running(ON_BASE, in_qemu=InQemu(True, "", NODES)), Do.COMMIT_IN_QEMU),
        (KNOWN, running(ON_BASE, in_qemu=InQemu(True, "", NODES), overlay_holds_data=False), Do.COMMIT_IN_QEMU),
        (PIVOT_ASKED, running(ON_BASE, daemon="2@2", in_qemu=InQemu(True, "", NODES)), Do.COMMIT_IN_QEMU),
        (BEGUN, running(ON_BASE, in_qemu=InQemu(True, "running", NODES)), Do.WAIT),
        (BEGUN, running(ON_BASE, in_qemu=InQemu(True, "ready", NODES)), Do.PIVOT_IN_QEMU),
        (PIVOT_ASKED, running(ON_BASE, daemon="1@1", in_qemu=InQemu(False, "", NODES)), Do.CLOSE_IN_QEMU),
        (PIVOT_ASKED, running(ON_BASE, daemon="1@1", in_qemu=InQemu(False)), Do.DELETE),
        (KNOWN, running(ON_BASE, in_qemu=InQemu(False, "", NODES), overlay_holds_data=False), Do.CLOSE_IN_QEMU),
        (PIVOT_ASKED, running(ON_OVERLAY, daemon="2@2", in_qemu=InQemu(True, "", NODES)), Do.COMMIT),
        (PIVOT_ASKED, running(ON_OVERLAY, daemon="2@2", in_qemu=InQemu(False, "", NODES)), Do.LOOK_AGAIN),
        (BY_MONITOR, running(ON_BASE, in_qemu=InQemu(False, "", NODES)), Do.CLOSE_IN_QEMU),
        (BY_MONITOR, running(ON_BASE, in_qemu=InQemu(True, "running", NODES)), Do.WAIT),
        (KNOWN, running(None, overlay_exists=False), Do.NOTHING),
        (KNOWN, shut_off(ON_BASE, overlay_holds_data=False), Do.DELETE),
        (KNOWN, shut_off(ON_BASE, overlay_exists=False), Do.NOTHING),
        (KNOWN, gone(), Do.COMMIT_OFFLINE),
        # One QEMU on the overlay keeps its domain from the base; of another one the user may know more.
        (KNOWN, running(ON_OVERLAY, base_still=None), Do.COMMIT),
        (KNOWN, running(ON_OVERLAY, instance="200@9", base_still=None, base_vouched=True), Do.COMMIT),
        (KNOWN, shut_off(ON_OVERLAY, base_still=None, base_vouched=True), Do.COMMIT_OFFLINE),
        (BEGUN, gone(base_still=None, base_vouched=True), Do.COMMIT_OFFLINE),
        # We deleted it, and the power failed before libvirt's definition on the base was on the disk.
        (MERGED, shut_off(ON_OVERLAY, overlay_exists=False), Do.DEFINE),
        (KNOWN, gone(overlay_exists=False), Do.NOTHING),
        (KNOWN, gone(overlay_holds_data=False), Do.DELETE),
        (MERGED, gone(overlay_print=OVERLAY_PRINT), Do.DELETE),
        (PIVOT_ASKED, gone(identical=True), Do.DELETE),
    ],
)
def test_the_next_step(memory: Memory, seen: Seen, step: Do) -> None:
    assert judge(OVERLAY, memory, seen) == step


@pytest.mark.parametrize(
    ("memory", "seen", "words"),
    [
        (KNOWN, running(ON_BASE, instance="200@9"), "used without its overlay"),
        (BEGUN, running(ON_BASE), "used without its overlay"),
        (PIVOT_ASKED, running(ON_BASE, instance="200@9", daemon="2@2"), "used without its overlay"),
        (PIVOT_ASKED, running(ON_BASE, instance="200@9", daemon="1@1", overlay_written=PIVOT_TIME + 60), "used without its overlay"),
        (KNOWN, shut_off(disk(TOP, USERS)), "/images/users.qcow2 below the overlay"),
        (PIVOT_ASKED, shut_off(ON_BASE, daemon="2@2"), "used without its overlay"),
        (MERGED, shut_off(ON_BASE, overlay_print=USED_AGAIN, daemon="2@2"), "used without its overlay"),
        (KNOWN, running(ON_BASE, overlay_exists=False, place_is_there=False), "not mounted"),
        (KNOWN, gone(overlay_exists=False, place_is_there=False), "not mounted"),
        (KNOWN, shut_off(ON_BASE), "used without its overlay"),
        (KNOWN, running(ON_OVERLAY, base_still=False), "used without its overlay"),
        (KNOWN, shut_off(ON_OVERLAY, base_still=False), "used without its overlay"),
        (KNOWN, gone(base_still=False), "used without its overlay"),
        (KNOWN, shut_off(ON_OVERLAY, base_still=False, base_vouched=True), "used without its overlay"),
        (KNOWN, running(ON_OVERLAY, instance="200@9", base_still=None), "or does not count what is written"),
        (KNOWN, shut_off(ON_OVERLAY, base_still=None), "recover again with base_untouched"),
        (BEGUN, shut_off(ON_OVERLAY, base_still=None), "QEMU ended in the middle of the commit"),
        (BEGUN, gone(base_still=None), "It is not proved that nobody used the base"),
        (KNOWN, running(STACKED), "snapshot that was put on top"),
        (KNOWN, shut_off(STACKED), "snapshot that was put on top"),
        (KNOWN, running(disk(USERS)), "/images/users.qcow2"),
        (KNOWN, running(None), "does not belong to the domain any more"),
        (KNOWN, running(disk(TOP, USERS)), "not backed by"),
        (KNOWN, running(disk(TOP)), "not backed by"),
        (KNOWN, running(ON_OVERLAY, job=JOB), "not ours"),
        (PIVOT_ASKED, running(ON_OVERLAY, job=JOB), "not ours"),
        (BEGUN, running(ON_OVERLAY, job=JOB), "lost sight of what the block job on disk vda is for"),
        (BY_MONITOR, shut_off(ON_BASE, daemon="1@1"), "used without its overlay"),
        (BY_MONITOR, running(ON_BASE, instance="200@9", in_qemu=InQemu(False)), "used without its overlay"),
        (BEGUN, running(ON_OVERLAY, job={**JOB, "type": 2}), "not ours"),
        (BEGUN, running(ON_BASE, in_qemu=InQemu(False, "", NODES)), "used without its overlay"),
        (KNOWN, shut_off(ON_OVERLAY, instance=RAN, lost=True), "the domain's QEMU (process 100) still runs"),
        (MERGED, shut_off(ON_BASE, instance=RAN, lost=True, overlay_print=OVERLAY_PRINT), "libvirt has lost sight"),
        (KNOWN, gone(instance=RAN, lost=True, overlay_holds_data=False), "libvirt has lost sight"),
        (KNOWN, shut_off(ON_BASE, overlay_written=2.0, base_written=1.0), "The overlay was written last"),
        (KNOWN, shut_off(ON_BASE, overlay_written=1.0, base_written=2.0), "The base was written last"),
        (KNOWN, running(ON_BASE, job=JOB), "not ours"),
        (KNOWN, running(committing("yes", job="copy"), job=JOB), "not ours"),
        (KNOWN, running(committing("yes", path="/elsewhere"), job=JOB), "not ours"),
        (KNOWN, shut_off(ON_OVERLAY, saved=True), "memory was saved"),
        (KNOWN, shut_off(ON_OVERLAY, migrated=True), "migrated away"),
        (KNOWN, shut_off(ON_OVERLAY, overlay_exists=False), "is gone"),
        (PIVOT_ASKED, shut_off(ON_OVERLAY, daemon="2@2"), "in the middle of the pivot"),
        (PIVOT_ASKED, running(ON_OVERLAY, instance="200@9", daemon="2@2"), "in the middle of the pivot"),
        (PIVOT_ASKED, gone(), "in the middle of the pivot"),
    ],
)
def test_what_is_refused(memory: Memory, seen: Seen, words: str) -> None:
    with pytest.raises(Refusal) as refusal:
        judge(OVERLAY, memory, seen)
    assert words in refusal.value.msg
    assert OVERLAY.path in refusal.value.msg or "vda" in refusal.value.msg or "migrated" in words


DISKS = st.sampled_from(
    [
        None,
        ON_OVERLAY,
        ON_BASE,
        STACKED,
        disk(USERS),
        disk(TOP, USERS),
        committing(),
        committing("yes"),
        committing("pivot"),
        committing("yes", job=""),
        committing("yes", job="copy"),
        committing("yes", path="/elsewhere"),
    ]
)
SEEN = st.builds(
    Seen,
    running=st.booleans(),
    defined=st.booleans(),
    live=DISKS,
    inactive=st.sampled_from([None, ON_OVERLAY, ON_BASE, STACKED, disk(USERS), disk(TOP, USERS)]),
    job=st.sampled_from([{}, JOB]),
    instance=st.sampled_from(["", RAN, "200@9"]),
    daemon=st.sampled_from(["1@1", "2@2"]),
    base_still=st.sampled_from([True, False, None]),
    base_vouched=st.booleans(),
    overlay_print=st.sampled_from([OVERLAY_PRINT, USED_AGAIN]),
    overlay_exists=st.booleans(),
    place_is_there=st.booleans(),
    overlay_holds_data=st.booleans(),
    identical=st.booleans(),
    saved=st.booleans(),
    migrated=st.booleans(),
)
MEMORY = st.builds(
    Memory,
    instance=st.sampled_from(["", RAN]),
    fingerprint=st.sampled_from([None, PRINT]),
    commit_begun=st.booleans(),
    pivot_asked=st.sampled_from(["", "1@1"]),
    merged=st.sampled_from([None, OVERLAY_PRINT]),
)


@given(MEMORY, SEEN)
def test_no_step_can_lose_a_write(memory: Memory, seen: Seen) -> None:
    """Rules that are independent of how the table is written."""
    try:
        step = judge(OVERLAY, memory, seen)
    except Refusal:
        return
    now = seen.live if seen.running else seen.inactive if seen.defined else None
    path = now.chain[0].path if now is not None else None
    if (seen.running or seen.defined) and seen.overlay_exists:
        # Whatever the user put there is left alone.
        assert path in (OVERLAY.path, OVERLAY.base)
    if step == Do.DEFINE and not seen.overlay_exists and path == OVERLAY.path:
        assert memory.merged is not None
    if step in (Do.DELETE, Do.DEFINE) and seen.overlay_exists:
        merged = memory.merged is not None and seen.overlay_print == memory.merged
        assert merged or memory.pivot_asked or not seen.overlay_holds_data
    if step == Do.NOTHING:
        assert not seen.overlay_exists and seen.place_is_there
    if step == Do.DELETE:
        # What runs or is defined on the overlay never loses it.
        assert path != OVERLAY.path
        assert seen.inactive is None or seen.inactive.chain[0].path != OVERLAY.path or not seen.defined
    if step == Do.COMMIT_OFFLINE and now is not None and len(now.chain) > 1:
        assert now.chain[1].path == OVERLAY.base
    if step in (Do.COMMIT, Do.COMMIT_OFFLINE):
        assert path in (OVERLAY.path, None)
        assert seen.base_still is not False
        assert seen.base_still or seen.base_vouched or seen.running and seen.instance == memory.instance != ""
    if step == Do.COMMIT_OFFLINE:
        assert not seen.running and seen.overlay_exists
        assert not (seen.defined and (seen.saved or seen.migrated))
        assert memory.merged is None or seen.overlay_print != memory.merged
        assert not memory.pivot_asked or seen.defined and memory.pivot_asked == seen.daemon
    if step in (Do.COMMIT, Do.WAIT, Do.PIVOT):
        assert seen.running and now is not None and now.chain[1].path == OVERLAY.base
        assert now.mirror is None or (now.mirror.job, now.mirror.path) == ("active-commit", OVERLAY.base)
    if step == Do.PIVOT:
        assert now is not None and now.mirror is not None and now.mirror.ready == "yes" and seen.job
