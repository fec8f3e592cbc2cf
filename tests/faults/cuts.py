# SPDX-License-Identifier: GPL-3.0-or-later
"""Kill points of what is no backup, or not of this host: retention, proofs, recoveries, restores, far ends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

# How retention is cut off: it has two sets to remove.
PRUNE = {
    "the old set's hiding": "pathlib.Path.rename",
    "syncing that": "_sets.prune.sync_path",
    "the removal of its proof": "pathlib.Path.unlink",
    "the second set's hiding": "pathlib.Path.rename#2",
    "the removal of the old set": "shutil.rmtree",
    "a file of the old set": "os.unlink#2",
    "another file of the old set": "os.unlink#5",
    "the old set's directory": "os.rmdir",
    "the removal of the second set": "shutil.rmtree#2",
    "a file of the second set": "os.unlink#9",
}
PROOF = {
    "reading the set": "_target.directory.DirectoryTarget.check",
    "noting the proof": "_sets.check.note_proof",
    "the proof's file": "_sets.check.write_durably",
    "the proof's name": "os.replace",
}
# How a recovery is cut off, and what it finds: overlays of a guest that is up or off, or a job.
RECOVERY: dict[str, dict[str, str]] = {
    "overlays": {
        "giving up": "_operations.recover.give_up",
        "the first disk": "_capture.legacy.commit_all",
        "the start of a commit": "blockCommit",
        "a pivot": "blockJobAbort",
        "noting a pivot": "_overlay.way_back.Way._remember_pivot",
        "a deletion": "_overlay.way_back.Way._delete",
        "syncing a deletion": "_overlay.way_back.sync_path",
        "the second disk": "_capture.legacy.commit_all#2",
        "the second pivot": "blockJobAbort#2",
        "the removal of the partial set": "shutil.rmtree",
        "a file of the partial set": "os.rmdir",
        "the end of the claim": "_recovery.repairs.end_claim",
        "noting that": "_recovery.repairs.save_claim#2",
        "the release of the directory": "_recovery.repairs.release_domain_directory",
        "the removal of the claim": "_recovery.repairs.remove_claim",
        "a file of the claim": "_claim.claim.temporary_of#2",
        "syncing the removal": "_claim.claim.sync_path",
    },
    "overlays of a domain that is shut off": {
        "the look at the overlay": "_overlay.way_back._require_header",
        "the commit": "_overlay.way_back.commit",
        "syncing the base": "_overlay.way_back.sync_path",
        "noting the commit": "_overlay.way_back.remember#2",
        "the definition": "defineXML",
        "a deletion": "_overlay.way_back.Way._delete",
        "the second commit": "_overlay.way_back.commit#2",
        "the second definition": "defineXML#2",
    },
    "a job": {
        "giving up": "_operations.recover.give_up",
        "the abortion": "abortJob",
        "the job's end": "_capture.backup_job.abort_and_wait",
        "the removal of the partial set": "shutil.rmtree",
        "the removal of the claim": "_recovery.repairs.remove_claim",
    },
}
# What the program at the far end of an ssh:// target dies of, by method; the near end sees a connection that is lost.
FAR_END = {
    "push": {
        "looking for space": "far._sets.receive.space_for",
        "making the set": "far._sets.receive.begin_set",
        "receiving": "far._target.ssh.server.write_frames",
        "proving what was received": "far._image.new_file.open_digest",
        "looking at the set": "far._sets.receive.read_manifest",
        "syncing the set": "far._sets.receive.sync_path",
        "syncing its name": "far._sets.publish.sync_path",
        "naming the set": "far._sets.receive.finish_set",
    },
    "offline": {
        "making the set": "far._sets.receive.begin_set",
        "receiving": "far._target.ssh.server.receive",
        "leaving the set": "far._sets.receive.leave_set",
        "finding it again": "far._sets.receive.resume_set",
        "naming the set": "far._sets.receive.finish_set",
    },
}
# The same of what is asked there of sets that it has.
FAR_CALL = {
    "backup_set_prune": {
        "a set's hiding": "far.os.rename",
        "syncing that": "far._sets.prune.sync_path",
        "the second set's hiding": "far.os.rename#2",
        "the removal of a set": "far.shutil.rmtree",
        "the removal of the second set": "far.shutil.rmtree#2",
    },
    "backup_set_verify": {
        "reading the set": "far._sets.check.check_files",
        "noting the proof": "far._sets.check.note_proof",
        "the proof's file": "far._sets.check.write_durably",
        "the proof's name": "far.os.replace",
    },
    "libvirt_domain_restore": {
        "finding the set": "far._target.ssh.server.open_set",
        "the first file": "far._target.ssh.server.send",
        "a disk": "far._target.ssh.server.send#5",
        "the data of a disk": "far._target.ssh.server.read_at#5",
    },
    "backup_set_copy": {
        "listing the sets": "far._sets.catalogue.list_sets",
        "finding a set": "far._target.ssh.server.open_set",
        "the size of a file": "far._target.ssh.server.send",
        "where its data is": "far._target.ssh.server.extents_of",
        "a later file": "far._target.ssh.server.extents_of#3",
        "the data of a file": "far._target.ssh.server.read_at#2",
    },
    "backup_set_consolidate": {
        "the first image": "far._sets.consolidate.new_image",
        "the second image": "far._sets.consolidate.new_image#2",
        "the digests": "far._sets.consolidate.note_image",
        "describing the set": "far._sets.consolidate.describe_set",
        "naming the set": "far._sets.consolidate.give_name",
    },
}
# Where a restore dies: its journal, its new files, their names, the definition.
RESTORE = {
    "the journal": "_claim.restore_journal.Journal.save",
    "its note at the target": "_operations.restore.note_at_target",
    "the first new disk": "_operations.restore.write_image",
    "the second new disk": "_operations.restore.write_image#2",
    "noting what is new": "_operations.restore.note_identities",
    "the last look": "_operations.restore._require_unchanged",
    "noting the swap": "_claim.restore_journal.Journal.set_phase",
    "the first disk": "_restore.files._put",
    **{f"rename {number}": f"pathlib.Path.rename#{number}" for number in range(1, 6)},
    "the second disk": "_restore.files._put#2",
    "syncing the second disk": "_restore.files.sync_path#2",
    "the definition": "defineXML",
    "noting the definition": "_claim.restore_journal.Journal.set_phase#2",
    "the removal of the old disks": "_restore.finish.remove_old",
    "the end": "_restore.finish.end",
    "the removal of its note": "_restore.files.forget_at_target",
    "the removal of the journal": "_claim.restore_journal.Journal.remove",
}
# Where its undoing dies, since another set is wanted by then.
UNDO = {
    "noting the undoing": "_claim.restore_journal.Journal.set_phase",
    "the first disk's return": "_restore.files._put_back",
    "the second disk's return": "_restore.files._put_back#2",
    "a file's removal": "pathlib.Path.unlink",
    "syncing the return": "_restore.files.sync_path",
    "the removal of its note": "_restore.files.forget_at_target",
    "the end of the undoing": "_restore.files.end",
}
# Where the recovery of a restore dies, which was killed between its disks.
COMPLETION = {
    "the second disk": "_restore.files._put",
    "the definition": "defineXML",
    "the removal of the old disks": "_restore.finish.remove_old",
    "the end": "_restore.finish.end",
}
DEVICE = {
    "noting the device": "_claim.restore_journal.Journal.save#3",
    "the device": "_restore.files._write_device",
    "syncing the device": "_restore.files.sync_path",
    "the definition": "defineXML",
}


@dataclass(frozen=True)
class Cut:
    """One row of the tables of what is no backup, or not of this host."""

    method: str
    what: str
    at: str
    call: str
    when: str
    # Whether the same is done again, rather than recovered first.
    again: bool = False

    @property
    def fault(self) -> str:
        return f"KILL {self.when} {self.call}"

    def __str__(self) -> str:
        return f"{self.what}: {self.when} {self.at}{', and again' * self.again}"


def cuts(method: str, what: str, calls: dict[str, str]) -> list[Cut]:
    return [Cut(method, what, at, call, when) for (at, call), when in product(calls.items(), ("before", "after"))]


PRUNES = cuts("prune", "prune", PRUNE)
PROOFS = cuts("verify", "verify", PROOF)
RECOVERIES = [row for what, calls in RECOVERY.items() for row in cuts("recover", what, calls)]
FAR_ENDS = [row for method, calls in FAR_END.items() for row in cuts(f"{method} to a server", method, calls)]
FAR_CALLS = [row for module, calls in FAR_CALL.items() for row in cuts(f"{module} at a server", module, calls)]
_RESTORES = {"restore": RESTORE, "undoing a restore": UNDO, "recovering a restore": COMPLETION, "restore of a device": DEVICE}
# The same restore comes again before one place and after the next.
RESTORES = [
    replace(row, again=number % 4 in (1, 2)) for what, calls in _RESTORES.items() for number, row in enumerate(cuts("restore", what, calls))
]
