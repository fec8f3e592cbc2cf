# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Decide what is to be done with an overlay. Nothing here touches libvirt or a disk.

The rule above all: where it cannot be proved that a guest's writes are all in the base, nothing is committed over it and the
overlay is not deleted.

See docs/internals/overlays.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from .._base.errors import LiveBackupError
from .._claim.overlays import Memory, Overlay
from .._hypervisor.domain_xml import Disk
from .._hypervisor.numbers import VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT
from .._image.fingerprint import Fingerprint

# The longest that a pivot may take.
PIVOT_SECONDS = 15.0


class Do(Enum):
    """The next step on the way of one disk back to its base."""

    NOTHING = "it is on its base, and there is no overlay"
    COMMIT = "commit the overlay into its base"
    WAIT = "wait for the commit"
    PIVOT = "pivot to the base"
    LOOK_AGAIN = "look again: libvirt is in the middle of a pivot"
    COMMIT_OFFLINE = "commit the overlay of a domain that is shut off"
    DEFINE = "name the base in the domain's definition again"
    DELETE = "delete the overlay"
    COMMIT_IN_QEMU = "commit the overlay, which libvirt does not know, into its base by QEMU's monitor"
    PIVOT_IN_QEMU = "pivot to the base by QEMU's monitor"
    CLOSE_IN_QEMU = "let QEMU close the overlay, which it does not use"


class Refusal(LiveBackupError):
    """It cannot be proved what is right, so nothing is done; it is said again at each try."""


@dataclass(frozen=True)
class InQemu:
    """What QEMU itself says of an overlay: whether a disk is on it, how far our commit there is, and by what names it has it open."""

    writes: bool
    job: str = ""
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seen:
    """What libvirt, the processes and the files say of one disk now.

    `live` and `inactive` are the disk in the domain's live and inactive XML, if the domain runs, is defined, and has it.
    QEMU is asked only where libvirt's daemon may have died before it noted what QEMU had done. `base_still` is whether nobody wrote
    the base but our commit; None where nothing proves it, and then the user's word may: `base_vouched`.
    """

    running: bool
    defined: bool
    live: Disk | None
    inactive: Disk | None
    job: dict[str, Any] = field(default_factory=dict)
    instance: str = ""
    daemon: str = ""
    base_still: bool | None = True
    base_vouched: bool = False
    overlay_print: Fingerprint | None = None
    overlay_written: float = 0.0
    overlay_exists: bool = True
    place_is_there: bool = True
    overlay_holds_data: bool = True
    identical: bool = False
    saved: bool = False
    migrated: bool = False
    lost: bool = False
    base_written: float = 0.0
    in_qemu: InQemu | None = None


def judge(overlay: Overlay, memory: Memory, seen: Seen) -> Do:
    """The next step, or a Refusal that says why there is none."""
    if not seen.overlay_exists and not seen.place_is_there:
        raise Refusal(
            f"{Path(overlay.path).parent}, where the overlay {overlay.path} of disk {overlay.target} was, holds neither that nor the "
            "copy of the claim: is its file system not mounted? Mount it, and recover again.",
            code="not_mounted",
        )
    if seen.running:
        return _judge_running(overlay, memory, seen)
    if seen.lost:
        raise _lost(overlay, seen)
    if seen.defined:
        return _judge_shut_off(overlay, memory, seen)
    return _judge_gone(overlay, memory, seen)


def _judge_running(overlay: Overlay, memory: Memory, seen: Seen) -> Do:
    disk = seen.live
    path = disk.chain[0].path if disk is not None and disk.chain else ""
    if path not in (overlay.path, overlay.base) and not seen.overlay_exists:
        return Do.NOTHING
    if disk is None or path not in (overlay.path, overlay.base):
        raise _strange(overlay, disk, "runs")
    if path == overlay.base:
        if disk.mirror is not None or seen.job:
            raise Refusal(
                f"A block job that is not ours runs on disk {overlay.target}, which is on its base {path}. Wait for its end.",
                code="domain_busy",
            )
        if seen.in_qemu is not None and seen.in_qemu.writes:
            # libvirt's daemon was killed between QEMU's switch to the overlay and its own note of it (seen with libvirt 9.0).
            return {"": Do.COMMIT_IN_QEMU, "ready": Do.PIVOT_IN_QEMU}.get(seen.in_qemu.job, Do.WAIT)
        step = _on_base(overlay, memory, seen)
        return Do.CLOSE_IN_QEMU if step == Do.DELETE and seen.in_qemu is not None and seen.in_qemu.nodes else step
    if len(disk.chain) < 2 or disk.chain[1].path != overlay.base:
        raise Refusal(
            f"The overlay {path} of disk {overlay.target} is not backed by {overlay.base}, which the claim names.",
            code="disk_chain_differs",
        )
    if disk.mirror is None:
        if seen.job and memory.commit_begun and not memory.pivot_asked and seen.job["type"] == VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT:
            # Killed as it began, libvirt's daemon finds the job again, but not what it was for. When that job is ended the daemon goes
            # away (seen with libvirt 9.0), so that is not done.
            raise Refusal(
                f"libvirt has lost sight of what the block job on disk {overlay.target} is for: its daemon was killed as our commit of "
                f"{overlay.path} started. The guest runs, no write is lost, and nothing is touched. Do not abort the job: its end can end "
                "libvirt's daemon, which systemd starts again. Shut the domain off, start it, and recover again.",
                code="block_job_unknown",
            )
        if seen.job:
            raise Refusal(f"A block job that is not ours runs on disk {overlay.target}. Wait for its end, or end it.", code="domain_busy")
        if seen.in_qemu is not None and not seen.in_qemu.writes:
            return Do.LOOK_AGAIN
        if not _same_run(memory, seen):
            _require_settled(overlay, memory, seen)
        _require_untouched(overlay, memory, seen)
        return Do.COMMIT
    if disk.mirror.path not in ("", overlay.base) or disk.mirror.job not in ("", "active-commit"):
        raise Refusal(
            f"A block job that is not ours ({disk.mirror.job} to {disk.mirror.path}) runs on disk {overlay.target}. Wait for its end.",
            code="domain_busy",
        )
    if not disk.mirror.job or not seen.job or disk.mirror.ready not in ("", "yes"):
        return Do.LOOK_AGAIN
    return Do.PIVOT if disk.mirror.ready == "yes" else Do.WAIT


def _judge_shut_off(overlay: Overlay, memory: Memory, seen: Seen) -> Do:
    disk = seen.inactive
    path = disk.chain[0].path if disk is not None and disk.chain else ""
    if path not in (overlay.path, overlay.base) and not seen.overlay_exists:
        return Do.NOTHING
    if disk is None or path not in (overlay.path, overlay.base):
        raise _strange(overlay, disk, "is defined")
    if path == overlay.base:
        return _on_base(overlay, memory, seen)
    if len(disk.chain) > 1 and disk.chain[1].path != overlay.base:
        raise Refusal(
            f"The domain is defined with {disk.chain[1].path} below the overlay {path} of disk {overlay.target}, not {overlay.base}.",
            code="disk_chain_differs",
        )
    if seen.migrated:
        raise Refusal(
            "The domain was migrated away and may run on another host: recover it there, or bring it back.", code="domain_migrated"
        )
    if seen.saved:
        raise Refusal(
            f"The domain's memory was saved while it used the overlay {overlay.path}. Restore it (`virsh start` after a managed save, "
            "`virsh restore` after a save), or drop what is saved (`virsh managedsave-remove`, or start the domain without it). "
            "Then recover again.",
            code="memory_saved",
        )
    if not seen.overlay_exists:
        if memory.merged is not None:
            # It was deleted by us, and then the power failed before the definition on the base had reached libvirt's disk.
            return Do.DEFINE
        raise Refusal(
            f"The overlay {overlay.path}, which disk {overlay.target} is defined on, is gone, and with it what the guest wrote to it.",
            code="overlay_gone",
        )
    if _is_merged(memory, seen) or memory.pivot_asked and seen.identical:
        return Do.DEFINE
    _require_settled(overlay, memory, seen)
    _require_untouched(overlay, memory, seen)
    return Do.COMMIT_OFFLINE


def _judge_gone(overlay: Overlay, memory: Memory, seen: Seen) -> Do:
    """A transient domain whose QEMU has ended, or one that was undefined."""
    if not seen.overlay_exists:
        return Do.NOTHING
    if _is_merged(memory, seen) or not seen.overlay_holds_data or memory.pivot_asked and seen.identical:
        return Do.DELETE
    if memory.pivot_asked:
        raise _unsettled(overlay)
    _require_untouched(overlay, memory, seen)
    return Do.COMMIT_OFFLINE


def _on_base(overlay: Overlay, memory: Memory, seen: Seen) -> Do:
    """The disk is on its base. Its overlay is of no use if a pivot of ours led there, or if it never was used."""
    inactive = seen.inactive.chain[0].path if seen.inactive is not None and seen.inactive.chain else ""
    if not seen.overlay_exists:
        return Do.DEFINE if inactive == overlay.path else Do.NOTHING
    # That the same QEMU runs does not prove it: a disk can be detached, and attached again on its base.
    lived_through = memory.pivot_asked == seen.daemon or _same_run(memory, seen)
    # A guest that went on writing to the overlay was not pivoted then.
    in_use_since = seen.overlay_written > memory.pivot_time + PIVOT_SECONDS
    pivoted = memory.pivot_asked and (lived_through and not in_use_since or seen.identical)
    if not (pivoted or _is_merged(memory, seen)) and seen.overlay_holds_data:
        raise _base_used(overlay, seen)
    return Do.DEFINE if inactive == overlay.path else Do.DELETE


def _is_merged(memory: Memory, seen: Seen) -> bool:
    return memory.merged is not None and memory.merged == seen.overlay_print


def _same_run(memory: Memory, seen: Seen) -> bool:
    return seen.running and seen.instance == memory.instance != ""


def _require_settled(overlay: Overlay, memory: Memory, seen: Seen) -> None:
    """Fail if a pivot was asked for and its answer is not known.

    libvirt's definition tells whether QEMU went over to the base only if the same libvirtd lived through it: one that is
    killed in the middle of a pivot can go on naming the overlay while QEMU writes to the base (seen with libvirt 9.0).
    """
    if memory.pivot_asked and memory.pivot_asked != seen.daemon:
        raise _unsettled(overlay)


def _require_untouched(overlay: Overlay, memory: Memory, seen: Seen) -> None:
    """Fail unless nobody wrote the base but our commit. While one QEMU runs on the overlay, the domain cannot use the base."""
    if seen.base_still is False:
        raise _base_used(overlay, seen)
    if seen.base_still is None and not (_same_run(memory, seen) or seen.base_vouched):
        raise _unproven(overlay, memory)


def _base_used(overlay: Overlay, seen: Seen) -> Refusal:
    # Who writes to a block device does not change its time.
    known = overlay.base_type == "file"
    last = "overlay" if seen.overlay_written > seen.base_written else "base"
    return Refusal(
        f"The base {overlay.base} of disk {overlay.target} was used without its overlay {overlay.path}, which holds writes of the guest: "
        "was the domain defined or created from an old XML? Or was libvirt's daemon killed within the snapshot, and the domain shut off "
        f"since? Neither is touched, since committing would destroy what is in the base. {f'The {last} was written last. ' * known}Keep "
        "a copy of both and decide which you want. `qemu-img commit` of the overlay is right only if the base was not written since. Then "
        "delete the overlay.",
        code="base_used",
    )


def _unproven(overlay: Overlay, memory: Memory) -> Refusal:
    why = (
        "a commit that ran while the domain was shut off was interrupted, and the base may have been written after that"
        if memory.offline
        else "the guest's QEMU ended in the middle of the commit, and no run of ours was there to see how it left the base"
        if memory.commit_begun
        else "since the backup put the guest on its overlay, the host or the device was started again, or does not count what is written"
    )
    return Refusal(
        f"It is not proved that nobody used the base {overlay.base} of disk {overlay.target} without its overlay {overlay.path}: {why}. "
        "Neither is touched, since committing over a base that was used would destroy it. Do you know that since then no guest, host or "
        "tool has written to the base, except the domain on its overlay? If so, recover again with base_untouched (for the playbook "
        "recover_base_untouched=true). If not, keep a copy of both and decide which you want.",
        code="base_maybe_written",
    )


def _lost(overlay: Overlay, seen: Seen) -> Refusal:
    return Refusal(
        "libvirt has lost sight of the domain: its daemon was killed in the middle of a pivot, and it reports the domain as shut off. "
        f"But the domain's QEMU (process {seen.instance.partition('@')[0]}) still runs on {overlay.base} or its overlay {overlay.path}. "
        "Neither is touched. Do not start the domain: let libvirt find it again, as docs/troubleshooting.md shows, and recover again.",
        code="domain_lost",
    )


def _unsettled(overlay: Overlay) -> Refusal:
    return Refusal(
        f"libvirt's daemon died in the middle of the pivot of disk {overlay.target}, and the domain's QEMU has ended since: either "
        f"{overlay.base} alone or the overlay {overlay.path} on it is the guest's last state, and nothing proves which. "
        "Neither is touched. Look at both (`qemu-img convert` each, and check its file systems); then define the domain on the right one "
        "and delete the overlay.",
        code="pivot_unsettled",
    )


def _strange(overlay: Overlay, disk: Disk | None, how: str) -> Refusal:
    if disk is not None and any(image.path == overlay.path for image in disk.chain):
        return Refusal(
            f"Disk {overlay.target} {how} on {disk.chain[0].path}, a snapshot that was put on top of our overlay {overlay.path}. "
            "Remove that snapshot (`virsh blockcommit` or `virsh snapshot-delete`), and recover again.",
            code="disk_chain_differs",
        )
    now = "it does not belong to the domain any more" if disk is None else f"it {how} on {disk.chain[0].path if disk.chain else 'nothing'}"
    return Refusal(
        f"Disk {overlay.target} was on {overlay.base} when the backup started; now {now}. The overlay {overlay.path} is not touched. "
        "Put the disk back on it and recover again; or, if what it holds is not wanted, delete it and recover again.",
        code="disk_chain_differs",
    )
