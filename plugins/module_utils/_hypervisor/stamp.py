# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a restored domain says in its metadata: which set it came from."""

from __future__ import annotations

from typing import Any

from .bindings import etree
from .domain_xml import parse_xml

NAMESPACE = "https://github.com/virtops/live_backup/1"
SET = f"{{{NAMESPACE}}}set"


def set_of(text: str) -> dict[str, str]:
    """Which set a domain was restored from, as its metadata tells; empty if from none."""
    element = parse_xml(text).find(f"metadata/{SET}")
    return {} if element is None else dict(element.attrib)


def without_stamp(text: str) -> str:
    """The XML without the note of what the domain was restored from: what is restored later is another set."""
    root = parse_xml(text)
    for old in root.findall(f"metadata/{SET}"):
        old.getparent().remove(old)
    return etree.tostring(root, encoding="unicode")


def put_stamp(root: Any, stamp: dict[str, str]) -> None:
    metadata = root.find("metadata")
    if metadata is None:
        metadata = etree.Element("metadata")
        root.insert(list(root).index(root.find("uuid")) + 1, metadata)
    for old in metadata.findall(SET):
        metadata.remove(old)
    metadata.append(etree.Element(SET, stamp, nsmap={"live_backup": NAMESPACE}))
