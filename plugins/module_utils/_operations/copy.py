# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copy an image, or the disks of a capture."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .._base.clock import Clock
from .._base.errors import LiveBackupError
from .._capture.methods import COPIED
from .._claim.claim import Claim
from .._claim.find import find_claim
from .._claim.lock import hold
from .._claim.owner import require_no_restore
from .._claim.step import require_claim, step
from .._copy.destination import place_of
from .._copy.disks import Copies, CopyOptions
from .._hypervisor.connection import explain
from .._image.key import Key
from .._recovery.repairs import undoing
from .._sets.layout import check_backup_id
from .._target.ssh.address import SCHEME
from .copy_image import copy_one, copying_of, status_of
from .key import key_of


def copy_capture(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Copy every disk of the capture `backup_id` that is not copied yet into its unfinished set."""
    check_backup_id(params["backup_id"])
    uuid, name, _claim = find_claim(params["uri"], params["domain"])
    if check_mode:
        claim = _captured(uuid, name, params["backup_id"])
        return {"changed": _is_missing(claim), "planned": True, "disks": _copied(claim)}
    with hold(uuid, clock):
        claim = _captured(uuid, name, params["backup_id"])
        possible = COPIED[claim.method].compressions
        if params["compress"] not in possible:
            raise LiveBackupError(
                f"A backup by {claim.method} cannot be compressed by {params['compress']}. Use {' or '.join(possible)}.",
                code="option_invalid",
            )
        key = _key_for(claim, params)
        if key and params["compress"] != "none":
            raise LiveBackupError("qcow2 images can be compressed or encrypted, not both. Use compress none.", code="option_invalid")
        if not _is_missing(claim):
            return {"changed": False, "planned": False, "disks": _copied(claim)}
        copies = Copies(
            claim,
            claim.to_copy(),
            CopyOptions(
                params["uri"],
                params["format"],
                params["compress"],
                params["bandwidth"] or 0,
                params["bandwidth_total"] or 0,
                params["latency_limit"],
                params["find_zeroes"],
                key,
            ),
            clock,
        )

        def in_words(error: BaseException) -> LiveBackupError:
            reason = explain(error, f"copy the disks of domain {name!r}")
            return reason.reworded(f"The backup of domain {name!r} was given up. {reason.msg} Nothing was published.")

        with undoing(params["uri"], claim, clock, in_words, copies.require_ended), step(claim, "copy", clock):
            copies.run()
        return {"changed": True, "planned": False, "disks": _copied(claim)}


def _key_for(claim: Claim, params: dict[str, Any]) -> Key | None:
    key, wanted = key_of(params), claim.plan.key_check
    if (key.check if key else "") != wanted:
        began = f"with the key {claim.plan.key_id!r}" if wanted else "without a key"
        raise LiveBackupError(
            f"Backup {claim.backup_id} of domain {claim.domain!r} was started {began}. Name the same key in each step.",
            code="options_differ",
        )
    return key


def _captured(uuid: str, name: str, backup_id: str) -> Claim:
    claim = require_claim(uuid, name, backup_id)
    if claim.progress.begin is None or claim.method not in COPIED:
        raise LiveBackupError(
            f"Backup {backup_id} of domain {name!r} has nothing to copy: its method is {claim.method}, "
            "or it was interrupted while it started.",
            code="step_out_of_order",
        )
    return claim


def _is_missing(claim: Claim) -> bool:
    """Whether there is still something to copy, or to end after that."""
    return COPIED[claim.method].missing_step(claim) == "sparse_copy"


def _copied(claim: Claim) -> list[dict[str, Any]]:
    copies = claim.progress.copies
    return [
        {"target": disk.target, "src": disk.source.path, "dest": disk.path, **copies[disk.target]}
        for disk in claim.plan.disks
        if disk.target in copies
    ]


def sparse_copy(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """Copy `src` to `dest`, or the disks of the capture `backup_id` into its unfinished set."""
    if params["compress"] != "none" and params["format"] == "raw":
        raise LiveBackupError("A raw image cannot be compressed: use format qcow2 with compress.", code="option_invalid")
    for name in ("bandwidth", "bandwidth_total", "latency_limit"):
        if (params[name] or 0) < 0:
            raise LiveBackupError(f"{name} must not be negative.", code="option_invalid")
    if not re.fullmatch("0?[0-7]{3,4}", params["mode"]):
        raise LiveBackupError(f"mode {params['mode']!r} is not an octal number such as 0600.", code="option_invalid")
    if params["domain"]:
        if params["ssh_key"] or params["ssh_options"]:
            raise LiveBackupError("ssh_key and ssh_options are for a dest that starts with ssh://.", code="option_invalid")
        return copy_capture(params, check_mode, clock)
    source, dest = Path(params["src"]), params["dest"]
    status = status_of(source)
    require_no_restore(f"copy {source}", "", "", [str(source), dest])
    copying = copying_of(params, source)
    if dest.startswith(SCHEME) and not copying.by_bytes:
        raise LiveBackupError(
            f"qemu-img would have to make this copy of {source} ({copying.source_format} to {copying.format}), and it cannot write over "
            "ssh. Copy it to a file on this host first, and that file to the other host.",
            code="ssh_cannot_convert",
        )
    with place_of(dest, params["ssh_key"], params["ssh_options"]) as place:
        return copy_one(copying, place, status, dest, check_mode, clock)
