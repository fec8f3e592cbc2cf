# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Check a set's files against its manifest, and note the proof. Runs at the far end of an ssh:// target too."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .._base.clock import rfc3339
from .._base.errors import LiveBackupError
from .._base.files import read_small, write_durably
from .._base.schema import violations
from .._base.text import one_line
from .._image.digest import file_digest, image_digest
from .catalogue import SetFacts
from .chain import chain_below
from .content import content_findings
from .locks import reading_set
from .proofs import PROOF, PROOFS, Proof, manifest_digest, proof_file, read_proof
from .read import GUIDE, SUMS, strangers
from .schema import Manifest


def check_files(target: str, domain: str, backup_id: str | None, deep: bool = False) -> SetFacts:
    """The set's facts, with `findings[]` about every file, by name, whose size or digest is not the manifest's.

    If `deep`, also about disks whose images show another content than was noted when the set was made.
    """
    # Not the newest good one: one whose proof failed would be passed over the next time.
    with reading_set(target, domain, backup_id, good=False) as found:
        path = Path(found["path"])
        findings = [*found["findings"], *_sums(path)]
        manifest = found["manifest"]
        if manifest is not None:
            _require_contents(manifest, deep)
            broken = {finding.partition(":")[0] for finding in findings}
            findings += strangers(path, manifest)
            for disk in manifest["disks"]:
                for image in (disk, *chain_below(disk)):
                    if image["file"] not in broken:
                        findings += _proved(image["file"], lambda name: image_digest(path / name), image["digest"])
                findings += content_findings(path, disk) if deep and not findings else []
            findings += _small(path, manifest, broken)
    return {**found, "findings": [one_line(one) for one in findings]}


def problems_of_small(path: Path, manifest: Manifest | None) -> list[str]:
    """What is wrong with the files of a set that are not images."""
    findings = _sums(path)
    return findings + (_small(path, manifest, {one.partition(":")[0] for one in findings}) if manifest else [])


def _small(path: Path, manifest: Manifest, broken: set[str]) -> list[str]:
    found = [
        _proved(file["name"], lambda name: file_digest(path / name), file["digest"])
        for file in manifest["files"]
        if file["name"] not in broken
    ]
    return [finding for findings in found for finding in findings]


def _require_contents(manifest: Manifest, deep: bool) -> None:
    unknown = [disk["target"] for disk in manifest["disks"] if deep and not disk.get("content")]
    if unknown:
        raise LiveBackupError(
            f"Level deep is not possible for backup set {manifest['backup_id']}: the content of {', '.join(unknown)} was not noted when it "
            "was made. Use level check or boot.",
            code="content_not_noted",
        )


def _proved(name: str, digest_of: Callable[[str], str], wanted: str) -> list[str]:
    try:
        return _differs(name, digest_of(name), wanted)
    except OSError as error:
        # A rotten disk is what a proof is to find.
        return [f"{name}: it cannot be read: {os.strerror(error.errno or 0)}"]


def _differs(name: str, digest: str, wanted: str) -> list[str]:
    return [] if digest == wanted else [f"{name}: its digest is {digest}, not {wanted}"]


def _sums(path: Path) -> list[str]:
    """What sha256sum would find of the files that tell about the set."""
    try:
        lines = read_small(path / SUMS).decode().splitlines()
    except ValueError as error:
        return [f"{SUMS}: it {error}"]
    noted = {name: digest for digest, _space, name in (line.partition("  ") for line in lines)}
    findings = []
    for name in sorted({"manifest.json", GUIDE}):
        try:
            read_small(path / name)
        except ValueError as error:
            # What is wrong with the manifest is told already.
            findings += [f"{name}: it {error}"] if name == GUIDE else []
            continue
        findings += _differs(name, file_digest(path / name), f"sha256:{noted.get(name)}")
    return findings


def note_proof(target: str, path: str, level: str, outcome: str, findings: list[str], rto_ms: int | None) -> Proof | dict[str, Any]:
    """Record, beside the sets, how the last proof of a set went. One that timed out proves nothing, and takes no failure back."""
    if Path(target) not in Path(path).parents:
        raise LiveBackupError(f"{path} is not below {target}.", code="target_unsafe")
    try:
        digest = manifest_digest(Path(path))
    except ValueError:
        # There is nothing to tie it to, and such a set is damaged for everybody who looks.
        return {}
    last = read_proof(Path(path))
    if outcome == "timed out" and last is not None and last["outcome"] == "failed":
        return last
    record: Proof = {
        "backup_id": os.path.basename(path),
        "manifest": digest,
        "level": level,
        "verified": outcome == "verified",
        "outcome": outcome,
        "at": rfc3339(time.time()),
        "rto_ms": rto_ms,
        "findings": findings,
    }
    _write_proof(Path(path), record)
    return record


def _write_proof(path: Path, record: Proof) -> None:
    directory = path.parent / PROOFS
    if directory.is_symlink():
        raise LiveBackupError(f"{directory} is a link, and is not followed. The proof of {path} is not recorded.", code="target_unsafe")
    directory.mkdir(mode=0o700, exist_ok=True)
    write_durably(proof_file(path), json.dumps(record).encode())


def take_proof(target: str, path: str, proof: Proof) -> dict[str, bool]:
    """Record the proof of the same set at another target, unless a newer one is known here, or one that failed."""
    if Path(target) not in Path(path).parents:
        raise LiveBackupError(f"{path} is not below {target}.", code="target_unsafe")
    try:
        digest = manifest_digest(Path(path))
    except ValueError:
        # It was removed meanwhile.
        return {"taken": False}
    known = read_proof(Path(path))
    if list(violations(proof, PROOF, "proof")) or proof["manifest"] != digest:
        return {"taken": False}
    # Of files that were found bad, those elsewhere say nothing.
    if known and (known["at"] >= proof["at"] or known["outcome"] == "failed"):
        return {"taken": False}
    _write_proof(Path(path), proof)
    return {"taken": True}
