# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the power fails: in backups, and in a restore, a recovery and a retention."""

from __future__ import annotations

from dataclasses import dataclass

from .tables import BEGIN, COMMIT, COPY, PUBLISH, SNAPSHOT, WAIT, modules_of


@dataclass(frozen=True)
class PowerCut:
    """One row: the module that is stopped at a call, or has ended, when the power fails."""

    method: str
    module: str
    at: str
    fault: str
    # Whether the set is there for certain then.
    published: bool = False

    @property
    def modules(self) -> tuple[str, ...]:
        return modules_of(self.module, self.fault)

    def __str__(self) -> str:
        return f"{self.method}: {self.at}"


_STOPS: dict[str, dict[str, dict[str, str]]] = {
    "legacy": {
        SNAPSHOT: {
            "before the snapshot": "before snapshotCreateXML",
            "after the snapshot": "after snapshotCreateXML",
            "before the bases are noted": "before _capture.capture._save_definition",
            "after the snapshot's step": "",
        },
        COPY: {
            "before the name of a copy": "before pathlib.Path.rename",
            "after the start of a commit": "after blockCommit",
            "before a pivot is noted": "after blockJobAbort",
            "before a deletion": "before _overlay.way_back.Way._delete",
            "after a deletion": "after os.unlink",
            "after a deletion is synced": "after _overlay.way_back.Way._delete",
            "after the copy's step": "",
        },
        COMMIT: {"after the commit": ""},
    },
    "push": {
        BEGIN: {
            "after the claim": "after _claim.step.save_claim",
            "after the mark of the partial set": "after _sets.layout.make_partial",
            "after the start of the job": "after backupBegin",
            "after the begin": "",
        },
        WAIT: {"after the wait": ""},
        PUBLISH: {
            "after an image is settled": "after _operations.publish._settle",
            "after the manifest": "after _sets.publish.write_durably#2",
            "after the sums": "after _sets.publish.write_durably#3",
            "before the name is synced": "after pathlib.Path.rename",
            "after the name is synced": "after _target.directory.DirectoryTarget.publish",
            "before the removal of the claim": "before _recovery.repairs.remove_claim",
        },
    },
    "offline": {BEGIN: {"after the begin": ""}, COPY: {"before the name of a copy": "before pathlib.Path.rename", "after the copy": ""}},
}
CUTS = [
    PowerCut(method, module, at, fault and f"STOP {fault}", at in ("after the name is synced", "before the removal of the claim"))
    for method, modules in _STOPS.items()
    for module, stops in modules.items()
    for at, fault in stops.items()
] + [PowerCut(method, PUBLISH, "after the publishing", "", True) for method in _STOPS]


# In a restore over the disks of a domain.
_RESTORE = {
    "after the journal is saved": "after _claim.restore_journal.Journal.save",
    "after a new file is written": "after _operations.restore.write_image",
    "after the new files are noted": "after _operations.restore.note_identities",
    "after the swap is noted": "after _claim.restore_journal.Journal.set_phase",
    **{f"after rename {number}": f"after pathlib.Path.rename#{number}" for number in range(1, 6)},
    "after the first disk": "after _restore.files._put",
    "after the second disk": "after _restore.files._put#2",
    "before the definition": "before defineXML",
    "after the definition": "after defineXML",
    "after the definition is noted": "after _claim.restore_journal.Journal.set_phase#2",
    "before the removal of the old disks": "before _restore.finish.remove_old",
    "after the removal of the old disks": "after _restore.finish.remove_old",
    "after the end": "after _restore.finish.end",
    "after the restore": "",
}
_PRUNE = {
    "after a set's hiding": "after pathlib.Path.rename",
    "after that is synced": "after _sets.prune.sync_path",
    "after a file's removal": "after os.unlink#2",
    "after the removal of a set": "after shutil.rmtree",
    "after the retention": "",
}
# Of a legacy backup that died as it copied.
_RECOVERY = {
    "after a pivot": "after blockJobAbort",
    "before a deletion is synced": "before _overlay.way_back.sync_path",
    "after the second deletion": "after _overlay.way_back.Way._delete#2",
    "after the removal of the partial set": "after _recovery.repairs.remove_partial",
    "before the removal of the claim": "before _recovery.repairs.remove_claim",
    "before that is synced": "before _claim.claim.sync_path",
    "after the recovery": "",
}


def _rows(method: str, module: str, stops: dict[str, str], done: tuple[str, ...]) -> list[PowerCut]:
    return [PowerCut(method, module, at, fault and f"STOP {fault}", at in done) for at, fault in stops.items()]


RESTORES = _rows("restore", "libvirt_domain_restore", _RESTORE, tuple(_RESTORE)[-6:])
PRUNES = _rows("prune", "backup_set_prune", _PRUNE, tuple(_PRUNE)[1:])
RECOVERIES = _rows("recover", "libvirt_backup_recover", _RECOVERY, ())
