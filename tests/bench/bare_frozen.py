# SPDX-License-Identifier: GPL-3.0-or-later
"""bare_frozen.py UUID DIRECTORY: freeze, begin a backup, thaw, with the bare API; prints the frozen milliseconds."""

from __future__ import annotations

import sys
import time

import libvirt
from lxml import etree

uuid, directory = sys.argv[1:]
domain = libvirt.open("qemu:///system").lookupByUUIDString(uuid)
targets = [disk.find("target").get("dev") for disk in etree.fromstring(domain.XMLDesc()).findall("devices/disk")]
disks = "".join(
    f"<disk name='{name}' type='file'><target file='{directory}/{name}.qcow2'/><driver type='qcow2'/></disk>" for name in targets
)
xml = f"<domainbackup><disks>{disks}</disks></domainbackup>"
began = time.monotonic()
domain.fsFreeze()
domain.backupBegin(xml, None, 0)
domain.fsThaw()
print((time.monotonic() - began) * 1000)
