# SPDX-License-Identifier: GPL-3.0-or-later
"""Kill points of the other flows, on guests that stand still: each call, before and after, and what happens beside it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from .points import BESIDE, FLOWS, HANGS

BEGIN, WAIT, PUBLISH = FLOWS["push"]
SNAPSHOT, COPY, COMMIT = FLOWS["legacy"][:3]
# How a step notes that it is done: from then on the run holds a lease.
END_OF_STEP = "_claim.step.save_claim#2"

_MAKING = {
    "the claim": "_claim.claim.write_durably",
    "the temporary of .domain.json": "_base.files._write_all#2",
    "the link of .domain.json": "os.link",
    "the mark of the partial set": "_sets.layout.write_durably",
    "the name of the partial set": "pathlib.Path.rename",
    "noting the partial set": "_capture.capture.save_claim",
    "saving the definition": "_capture.capture._save_definition",
    "the file of the definition": "_sets.secret_files.write_durably",
    "the end of the begin": END_OF_STEP,
}
_PUBLISHING = {
    "noting the publishing": "_claim.step.save_claim",
    "describing an image": "_operations.publish.image_entry",
    "describing the second image": "_operations.publish.image_entry#2",
    "the guide": "_sets.publish.write_durably",
    "the manifest": "_sets.publish.write_durably#2",
    "the sums": "_sets.publish.write_durably#3",
    "the modes": "pathlib.Path.chmod",
    "the publishing": "pathlib.Path.rename",
    "syncing the name": "_target.directory.DirectoryTarget.publish",
    "the end of the claim": "_operations.publish.end_claim",
    "the release of the directory": "_recovery.repairs.release_domain_directory",
    "the removal of the claim": "_recovery.repairs.remove_claim",
    "syncing the removal": "_claim.claim.sync_path",
}
_COPYING = {
    "noting the copy": "_claim.step.save_claim",
    "noting the formats": "_copy.disks.save_claim",
    "the copy": "_copy.disks.copy_image",
    "the second copy": "_copy.disks.copy_image#2",
    "naming the copy": "pathlib.Path.rename",
    "noting a copy": "_copy.disks.save_claim#2",
}
CALLS: dict[str, dict[str, dict[str, str]]] = {
    "push": {
        BEGIN: {**_MAKING, "forgetting the last job": "_capture.push.drop_completed_job", "the start of the job": "backupBegin"},
        WAIT: {
            "noting the wait": "_claim.step.save_claim",
            "the wait": "_operations.wait._await",
            "the judgement": "_operations.wait.outcome",
            "syncing the images": "_operations.wait._lost",
            "the result": END_OF_STEP,
        },
        PUBLISH: {**_PUBLISHING, "settling an image": "_operations.publish._settle", "giving an image to root": "os.chown"},
    },
    "offline": {
        BEGIN: {**_MAKING, "the look at rest": "_capture.capture._at_rest"},
        COPY: {**_COPYING, "the end of the copy": END_OF_STEP},
        PUBLISH: _PUBLISHING,
    },
    "pull": {
        BEGIN: {
            **_MAKING,
            "forgetting the last job": "_capture.pull.drop_completed_job",
            "the watchdog": "_capture.pull.arm_pull_watchdog",
            "the start of the job": "backupBegin",
        },
        COPY: {
            **_COPYING,
            "the extents": "_image.nbd_disk.ServedDisk.extents",
            "the data": "_image.data.LocalFile.write",
            "the end of the job": "_capture.pull.end_job",
            "the abortion": "abortJob",
            "the removal of the files": "_capture.pull._remove_files",
            "noting the end": "_capture.pull.save_claim",
            "the end of the copy": END_OF_STEP,
        },
        PUBLISH: _PUBLISHING,
    },
    # What points.py has not: what this flow does besides.
    "legacy": {
        SNAPSHOT: {
            "keeping space": "_capture.legacy.reserve_space",
            "the claim's second copy": "_claim.claim.write_durably#2",
            "noting the partial set": "_capture.capture.save_claim",
            "saving the definition": "_capture.capture._save_definition",
            "the end of the snapshot": END_OF_STEP,
        },
        COPY: {
            "noting a commit": "_overlay.way_back.remember",
            "noting a pivot": "_overlay.way_back.Way._remember_pivot",
            "the end of the copy": END_OF_STEP,
        },
        PUBLISH: {
            "the end of the copies": "_recovery.repairs.save_claim",
            "the release of the directory": "_recovery.repairs.release_domain_directory",
        },
    },
}
# A domain that is shut off is started meanwhile, as far as the copy's lock lets it; one that runs meets what the others meet.
BESIDE_OFF = ("nothing", "libvirtd is killed and started", "the domain is started")


def modules_of(module: str, call: str) -> tuple[str, ...]:
    """Where a call may come: a commit that is ready late is pivoted by the module after the copy."""
    commits = any(part in call for part in ("_overlay.", "os.unlink", "blockJobAbort"))
    return (COPY, COMMIT) if module == COPY and commits else (module,)


@dataclass(frozen=True)
class Kill:
    """One row: the module that dies at a call, and what happens beside that."""

    method: str
    module: str
    at: str
    call: str
    when: str
    beside: str
    # Whether the same backup is run again, rather than recovered by another one.
    again: bool
    shape: str = "still"

    @property
    def modules(self) -> tuple[str, ...]:
        return modules_of(self.module, self.call)

    @property
    def fault(self) -> str:
        return f"KILL {self.when} {self.call}"

    def __str__(self) -> str:
        return f"{self.method}: {self.when} {self.at}, {self.beside}{', and run again' * self.again}"


def _rows(method: str) -> list[Kill]:
    """Each call before and after, with nothing beside it and with one of the events by turns; it is run again after every second death."""
    besides = BESIDE_OFF if method == "offline" else (*BESIDE, HANGS)
    rows = []
    for number, ((module, at, call), when) in enumerate(
        product([(module, at, call) for module, calls in CALLS[method].items() for at, call in calls.items()], ("before", "after"))
    ):
        rows.append(Kill(method, module, at, call, when, besides[0], number % 2 == 1))
        rows.append(Kill(method, module, at, call, when, besides[1 + (number // 2) % (len(besides) - 1)], number % 2 == 0))
    return rows


KILLS = [row for method in CALLS for row in _rows(method)]
