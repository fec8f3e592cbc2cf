# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of kill points: each step of the legacy flow, before and after, and what happens beside it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

# The modules of a backup, in order.
FLOW = ("libvirt_disk_snapshot", "sparse_copy", "libvirt_blockcommit", "backup_set_publish")
FLOWS = {
    "legacy": FLOW,
    "push": ("libvirt_backup_begin", "libvirt_job_wait", "backup_set_publish"),
    "offline": ("libvirt_backup_begin", "sparse_copy", "backup_set_publish"),
    "pull": ("libvirt_backup_begin", "sparse_copy", "backup_set_publish"),
}
# A commit that is ready late is pivoted by the module after the copy.
_COMMITTING = FLOW[1:3]
# Where they can die. Freeze and thaw are called only where there is something to freeze.
CALLS = {
    "the claim": (("libvirt_disk_snapshot",), "_claim.claim.write_durably"),
    "the freeze": (("libvirt_disk_snapshot",), "fsFreeze"),
    "the snapshot": (("libvirt_disk_snapshot",), "snapshotCreateXML"),
    "the thaw": (("libvirt_disk_snapshot",), "fsThaw"),
    "noting the bases": (("libvirt_disk_snapshot",), "_capture.capture.fingerprint"),
    "the watch of the overlays": (("libvirt_disk_snapshot",), "_operations.begin.guard_overlays"),
    "the copy": (("sparse_copy",), "_copy.disks.copy_image"),
    "naming the copy": (("sparse_copy",), "pathlib.Path.rename"),
    "the start of the commit": (_COMMITTING, "blockCommit"),
    "ready": (_COMMITTING, "_overlay.way_back.Way._pivot"),
    "the pivot": (_COMMITTING, "blockJobAbort"),
    "the deletion": (_COMMITTING, "_overlay.way_back.Way._delete"),
    "syncing the definitions": (_COMMITTING, "_overlay.way_back.sync_existing"),
    "noting the deletion": (_COMMITTING, "_overlay.way_back.sync_path"),
    "the publishing": (("backup_set_publish",), "pathlib.Path.rename"),
    "the end of the claim": (("backup_set_publish",), "_recovery.repairs.remove_claim"),
}
# libvirtd can die within these too, when QEMU has done what it asked for and it has not noted that yet.
WITHIN = {
    "the snapshot": ("legacy", "libvirt_disk_snapshot", "snapshotCreateXML"),
    "the start of the commit": ("legacy", "sparse_copy", "blockCommit"),
    "the pivot": ("legacy", "sparse_copy", "blockJobAbort"),
    "the start of the push": ("push", "libvirt_backup_begin", "backupBegin"),
    "the start of the pull": ("pull", "libvirt_backup_begin", "backupBegin"),
    "the end of the pull": ("pull", "sparse_copy", "abortJob"),
}
BESIDE = ("nothing", "libvirtd is killed and started", "QEMU is killed and the domain started", "the guest shuts down")
HANGS = "libvirtd hangs for a while"
SHAPES = ("two-disks", "several", "transient", "block-device", "template")
NEEDS_FREEZE = {"the freeze", "the thaw"}


@dataclass(frozen=True)
class Point:
    """One row: where the module dies, and what happens beside that."""

    shape: str
    at: str
    when: str
    beside: str

    @property
    def modules(self) -> tuple[str, ...]:
        return CALLS[self.at][0]

    @property
    def fault(self) -> str:
        return f"KILL {self.when} {CALLS[self.at][1]}"

    @property
    def may_refuse(self) -> bool:
        """A transient domain that ends within a pivot leaves nothing that tells whether QEMU had gone over to the base."""
        return self.shape == "transient" and self.at in ("ready", "the pivot") and self.beside.split()[0] not in ("nothing", "libvirtd")

    @property
    def again(self) -> bool:
        """Whether the same backup is run again, rather than recovered by another one: by turns, where its domain is always defined."""
        turn = list(CALLS).index(self.at) + BESIDE.index(self.beside) + (self.when == "after")
        return turn % 2 == 1 and self.shape != "transient"

    def __str__(self) -> str:
        return f"{self.shape}: {self.when} {self.at}, {self.beside}{', and run again' * self.again}"


def _is_chosen(shape: str, beside: str, at: str, when: str) -> bool:
    """Each place has each event beside it, and each shape: on a guest of the first shape all events, on each other one an event in turn."""
    if at in NEEDS_FREEZE:
        return shape == "several"
    turn = list(CALLS).index(at) + SHAPES.index(shape) + (when == "after")
    return shape == SHAPES[0] or BESIDE.index(beside) == turn % len(BESIDE)


TABLE = [
    Point(shape, at, when, beside)
    for shape, beside, at, when in product(SHAPES, BESIDE, CALLS, ("before", "after"))
    if _is_chosen(shape, beside, at, when)
]
# Each place once, before and after by turns, with each event beside it in turn; freezes, and a transient domain.
SAMPLE = [
    *(
        Point("two-disks", at, ("after", "before")[number % 2], BESIDE[number % len(BESIDE)])
        for number, at in enumerate(at for at in CALLS if at not in NEEDS_FREEZE)
    ),
    *(Point("several", at, "after", BESIDE[number]) for number, at in enumerate(sorted(NEEDS_FREEZE))),
    *(Point("transient", at, "after", BESIDE[2]) for at in ("the snapshot", "the start of the commit")),
]
