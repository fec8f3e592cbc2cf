# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Find the claim on a domain."""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from .._base.errors import LiveBackupError
from .._hypervisor.connection import connect, find_domain
from .._hypervisor.domain_xml import Domain, parse_domain
from . import places
from .claim import Claim, parse_claim, read_claim
from .places import claim_copy


def claim_of(domain: Domain) -> Claim | None:
    """The claim on a domain, or, where this host has none, the copy beside the overlay that one of its disks is on."""
    claim = read_claim(domain.uuid)
    for disk in domain.disks:
        path = Path(disk.chain[0].path) if disk.chain else Path()
        parts = re.fullmatch(rf"{re.escape(domain.uuid)}\.{re.escape(disk.target)}\.(.+)\.overlay", path.name)
        if claim is None and parts:
            claim = _copied_claim(claim_copy(path.parent, domain.uuid, parts[1]), domain.uuid)
    return claim


def _copied_claim(copy: Path, uuid: str) -> Claim | None:
    """A copy, if we wrote it: the directory of an image may be another user's, and a claim says what is to be deleted."""
    try:
        descriptor = os.open(copy, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 1 and not status.st_mode & 0o077
        claim = parse_claim(file.read(), copy) if ours else None
    return claim if claim is not None and claim.uuid == uuid and str(copy) in claim.copies else None


def all_claims() -> list[Claim]:
    """Every readable claim on this hypervisor. A damaged one is an error for its own domain, and stops no other."""
    claims = []
    for path in sorted(places.CLAIMS.glob("*.json")):
        with suppress(LiveBackupError):
            claims.append(read_claim(path.stem))
    return [claim for claim in claims if claim is not None]


def find_claim(uri: str, domain: str) -> tuple[str, str, Claim | None]:
    """UUID and name of a domain, and the claim on it, which may outlive a transient domain, and libvirtd."""
    try:
        with connect(uri, readonly=True) as connection:
            found = find_domain(connection, domain)
            uuid, name, xml = found.UUIDString(), found.name(), found.XMLDesc(0)
        claim = claim_of(parse_domain(xml))
    except LiveBackupError:
        claim = next((one for one in all_claims() if domain == one.domain or domain.lower() == one.uuid), None)
        if claim is None:
            raise
        uuid, name = claim.uuid, claim.domain
    if claim is not None:
        require_same_uri(claim.uri, uri, f"backup {claim.backup_id} of domain {claim.domain!r}")
    return uuid, name, claim


def require_same_uri(began: str, uri: str, what: str) -> None:
    """Fail where another libvirt was asked when this began: its domain would look as if it were gone. Older claims do not say."""
    if began and began.replace("+unix:", ":") != uri.replace("+unix:", ":"):
        raise LiveBackupError(f"The libvirt URI of {what} is {began}, not {uri}. Use uri={began}.", code="options_differ")
