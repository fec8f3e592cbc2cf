# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The domain.xml of a set. Anybody may have written to a target, so what others rely on is checked where it is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .._base.errors import LiveBackupError
from .._hypervisor.bindings import etree
from .._hypervisor.domain_xml import parse_xml
from .._image.key import Key
from .._sets.layout import DOMAIN_XML
from .._sets.secret_files import read_secret


def read_definition(path: Path, key: Key | None = None) -> str:
    """The definition in a set's directory; an encrypted one needs its key."""
    try:
        text = read_secret(path / DOMAIN_XML, key).decode()
    except ValueError as error:
        if key and isinstance(error, UnicodeDecodeError):
            # openssl knows a wrong key by its padding only, which is right once in 256 times.
            raise LiveBackupError("The key does not open the set. Name the right one.", code="key_wrong") from error
        raise LiveBackupError(f"{path / 'domain.xml'} {error}.", code="set_damaged") from error
    require_definition(text, str(path / "domain.xml"))
    return text


def require_definition(text: str, where: str) -> None:
    """Fail unless a text is the XML of a domain, as far as restore and proof rely on it. The rest is for libvirt to judge."""
    try:
        problem = next(_problems(parse_xml(text)), "")
    except (etree.XMLSyntaxError, ValueError) as error:
        problem = f"it is not XML ({error})"
    if problem:
        raise LiveBackupError(f"{where} is damaged: {problem}. Restore another set.", code="set_damaged")


def _problems(root: Any) -> Iterator[str]:
    if root.tag != "domain":
        yield "it does not describe a domain"
    # A restore writes the first of each. libvirt writes one only, and another one would go on to the new definition.
    for path in ("name", "uuid", "os", "os/type", "devices"):
        if len(root.findall(path)) != 1:
            yield f"it has {len(root.findall(path))} elements {path}, not one"
    for path in ("name", "uuid", "os/type"):
        if not root.findtext(path):
            yield f"it has no {path}"
    for disk in root.findall("devices/disk"):
        if disk.find("target") is None or not disk.find("target").get("dev"):
            yield "it has a disk without a target"
