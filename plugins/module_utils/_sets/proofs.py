# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The record of a set's last proof, beside the sets."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, TypedDict, cast

from .._base.files import read_small
from .._base.schema import MOST, TEXT, violations
from .layout import MANIFEST
from .read import read_json

PROOFS = ".proofs"


class Proof(TypedDict):
    """How the last proof of a set went; `manifest` is the digest that ties it to the set."""

    backup_id: str
    manifest: str
    level: str
    verified: bool
    outcome: str
    at: str
    rto_ms: int | None
    findings: list[str]


PROOF: dict[str, Any] = {
    "type": "object",
    "required": ["backup_id", "manifest", "level", "verified", "at", "rto_ms", "findings"],
    "properties": {
        "backup_id": TEXT,
        "manifest": TEXT,
        "level": {"enum": ["check", "deep", "boot"]},
        "verified": {"enum": [True, False]},
        # Since 1.0.0; what is older has only succeeded or failed.
        "outcome": {"enum": ["verified", "failed", "timed out"]},
        "at": TEXT,
        "rto_ms": {"type": ["integer", "null"], "minimum": 0, "maximum": MOST},
        "findings": {"type": "array", "items": TEXT},
    },
}


def proof_file(path: Path) -> Path:
    """Where the last proof of a set is recorded: beside the sets, since nothing is written into one."""
    return path.parent / PROOFS / f"{path.name}.json"


def manifest_digest(path: Path) -> str:
    """What ties a proof to the set that it proved."""
    return hashlib.sha256(read_small(path / MANIFEST)).hexdigest()


def read_proof(path: Path) -> Proof | None:
    """The last proof of a set as it is now."""
    if proof_file(path).parent.is_symlink():
        return None
    try:
        proof = read_json(proof_file(path))
        of_this = not list(violations(proof, PROOF, "proof")) and proof["manifest"] == manifest_digest(path)
    except ValueError:
        return None
    return cast(Proof, {"outcome": "verified" if proof["verified"] else "failed", **proof}) if of_this else None
