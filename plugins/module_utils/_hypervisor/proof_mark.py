# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which domains are the guests of proofs. They boot a backup set, and are nobody's domains."""

from __future__ import annotations

from typing import Any

from .bindings import etree, libvirt
from .domain_xml import parse_xml
from .numbers import VIR_ERR_NO_DOMAIN

# How the names of these domains begin; the name of the directory of their servers follows.
PROOF_NAME = "live-backup-proof-"
# What says that one is: a user's domain may have any name.
_NAMESPACE = "https://github.com/virtops/live_backup/proof/1"
_PROOF = f"{{{_NAMESPACE}}}proof"


def is_proof(domain: libvirt.virDomain) -> bool:
    """Whether a domain is the guest of a proof. Its XML is only read where its name may be that of one."""
    if not domain.name().startswith(PROOF_NAME):
        return False
    try:
        return proof_directory(domain.XMLDesc(0)) != ""
    except libvirt.libvirtError as error:
        if error.get_error_code() != VIR_ERR_NO_DOMAIN:
            raise
        # It has just ended, as they do.
        return True


def proof_directory(text: str) -> str:
    """The directory of the proof whose guest has this XML; empty for any other domain."""
    element = parse_xml(text).find(f"metadata/{_PROOF}")
    return "" if element is None else element.get("directory", "")


def put_mark(metadata: Any, directory: str) -> None:
    """Say in a domain's metadata that it is one."""
    metadata.append(etree.Element(_PROOF, {"directory": directory}, nsmap={"live_backup": _NAMESPACE}))
