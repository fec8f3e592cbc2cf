# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a hypervisor's log and its mounts say. Nothing here looks at the host."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

_AUDIT = re.compile(r"\baudit\((?P<time>[0-9]+)\.[0-9]+:[0-9]+\)")
_PATH = re.compile(r'\b(?P<key>path|name)=(?:"(?P<plain>[^"]*)"|(?P<hex>[0-9A-F]+)\b)')
# The profiles and types that QEMU, libvirt's daemons and AppArmor's helper have on Debian, Ubuntu and EL.
_APPARMOR = re.compile(r'apparmor="DENIED".*\bprofile="[^"]*(libvirt|virtqemud|virt-aa-helper)')
_SELINUX = re.compile(r"\bavc: +denied\b.*\bscontext=\S*:(svirt|virtd|virtqemud|qemu)\w*_t:")


@dataclass(frozen=True)
class Denial:
    """Something that QEMU or libvirt was not allowed. The path is all the log has: SELinux often gives the last part alone."""

    system: str
    path: str
    line: str


def denials(lines: Iterable[str], since: float, directories: list[str]) -> list[Denial]:
    """The denials after `since` that concern `directories`, or may: one for each path, the last."""
    found: dict[str, Denial] = {}
    for line in lines:
        audit = _AUDIT.search(line)
        system = "AppArmor" if _APPARMOR.search(line) else "SELinux" if _SELINUX.search(line) else ""
        if not system or not audit or int(audit["time"]) < since:
            continue
        path = _path(line)
        if path and (not path.startswith("/") or any(PurePosixPath(path).is_relative_to(one) for one in directories)):
            found[path] = Denial(system, path, line[audit.start() :].strip())
    return list(found.values())


def _path(line: str) -> str:
    """The path of an audit line, which gives odd ones in hexadecimal; `path` tells more than `name`."""
    paths = {one["key"]: one["plain"] or bytes.fromhex(one["hex"] or "").decode(errors="replace") for one in _PATH.finditer(line)}
    return paths.get("path") or paths.get("name", "")


def mounted_apart(mountinfo: str, path: str) -> str:
    """The mount point on which `path` is, if what is mounted anew there does not reach mount namespaces that exist; else nothing.

    It reaches them if the mount on which the mount point lies is shared. `path` has no links in it.
    """
    mounts: dict[str, tuple[str, str, bool]] = {}
    for line in mountinfo.splitlines():
        number, parent, _device, _root, point, _options, *fields = line.split(" ")
        decoded = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point)
        mounts[number] = (parent, decoded, any(field.startswith("shared:") for field in fields[: fields.index("-")]))
    above = [one for one in mounts.values() if PurePosixPath(path).is_relative_to(one[1])]
    # Of several on one mount point the last one is seen.
    parent, point, _shared = max(reversed(above), key=lambda one: len(one[1]))
    return point if parent in mounts and not mounts[parent][2] else ""
