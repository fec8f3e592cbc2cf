# SPDX-License-Identifier: GPL-3.0-or-later
"""overlay_watch.py UUID: until its input ends, look which disks are on an overlay; then print for how long each was, in seconds."""

from __future__ import annotations

import json
import select
import sys
import time
from xml.etree import ElementTree

import libvirt

domain = libvirt.openReadOnly("qemu:///system").lookupByUUIDString(sys.argv[1])
seen: dict[str, list[float]] = {}
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0.02)[0]:
    # The time before a disk is seen there, and the one before it is seen away, are added: rather too long than too short.
    before = time.monotonic()
    for disk in ElementTree.fromstring(domain.XMLDesc(0)).iterfind("devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        if source is not None and target is not None and source.get("file", "").endswith(".overlay"):
            seen.setdefault(target.get("dev", ""), [before - 0.02, 0.0])[1] = time.monotonic() + 0.02
print(json.dumps({target: last - first for target, (first, last) in seen.items()}))
