# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What of a domain's XML is the guest's own: an allow-list. What it does not name may reach a device, file or network of its host.

A rule has the parts of an element: `@name` an attribute, `#` its text, anything else a child with its own rule. A child whose name
follows a `!` is one without which the element does not stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Union

from .._base.text import foreign
from .bindings import etree

# What an attribute or a text may be: `OWN` names no place on the host; `NAMED` may. `NEW` goes without a word, since the copy gets
# another. A tuple has the only values with which the element stays, a set those with which the attribute stays.
OWN, NAMED, NEW = "own", "named", "new"
Rule = Mapping[str, Union[str, tuple[str, ...], set[str], "Rule"]]
# An element with all that is in it, if it names no place on the host; or, `AS_IS`, whatever it names.
ANY: Rule = {"*": OWN}
AS_IS: Rule = {"*": NAMED}
_PLACE = re.compile(r"(?:^|[^\w.-])/")
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_LIBOSINFO = "{http://libosinfo.org/xmlns/libvirt/domain/1.0}libosinfo"
_TEXT: Rule = {"#": OWN}
# Not the UUID, which is the domain's.
_ENTRIES = ("vendor", "version", "date", "release", "manufacturer", "product", "serial", "sku", "family", "asset", "location")


def _attributes(*names: str) -> Rule:
    return {f"@{name}": OWN for name in names}


def _children(rule: Rule, *tags: str) -> Rule:
    return dict.fromkeys(tags, rule)


_VIRTIO: Rule = _attributes("iommu", "ats", "packed", "page_per_vq")
# What most devices have.
_DEVICE: Rule = {"address": ANY, "alias": NEW, "acpi": ANY, "boot": ANY}
_CHARACTER: Rule = {"@type": OWN, "@tty": NEW, "source": {"@channel": OWN, "@path": NEW, "clipboard": ANY, "mouse": ANY}, **_DEVICE}
_DISK: Rule = {
    **_attributes("type", "device", "model", "snapshot"),
    # It was given its place in the copy before.
    "source": AS_IS,
    "driver": ANY,
    "target": ANY,
    **_children(ANY, "iotune", "throttlefilters", "serial", "wwn", "product", "vendor", "blockio", "geometry", "readonly"),
    "transient": ANY,
    # It names the secret that opens it.
    "encryption": AS_IS,
    "backingStore": NEW,
    "mirror": NEW,
    **_DEVICE,
}
_INTERFACE: Rule = {
    "@type": ("network", "bridge", "user"),
    "source": {**_attributes("network", "bridge", "portgroup"), "@portid": NEW},
    # An Open vSwitch gives it a new port.
    "virtualport": {"@type": ("openvswitch",)},
    "mac": NEW,
    "target": NEW,
    "model": {"@type": OWN},
    "driver": {
        "@name": {"qemu", "vhost"},
        **_attributes("queues", "rx_queue_size", "tx_queue_size", "txmode", "ioeventfd", "event_idx", "rss", "rss_hash_report"),
        **_VIRTIO,
        "host": ANY,
        "guest": ANY,
    },
    "rom": _attributes("bar", "enabled"),
    "filterref": {"@filter": OWN},
    **_children(ANY, "bandwidth", "vlan", "mtu", "link", "coalesce", "port", "tune"),
    **_DEVICE,
}
_GRAPHICS: Rule = {
    "@type": ("vnc", "spice"),
    **_attributes("autoport", "keymap", "defaultMode", "sharePolicy", "powerControl", "passwdValidTo", "connected"),
    "@passwd": NAMED,
    "audio": NEW,
    "@listen": _LOOPBACK,
    "listen": {"@type": ("network", "address", "none"), "@address": _LOOPBACK, "@network": OWN},
    "gl": {"@enable": OWN},
    **{f"@{port}": NEW for port in ("port", "tlsPort", "websocket")},
    **_children(ANY, "channel", "image", "jpeg", "zlib", "playback", "streaming", "clipboard", "mouse", "filetransfer"),
}
_VIDEO: Rule = {
    "model": {
        **_attributes("type", "vram", "vram64", "vgamem", "ram", "heads", "primary", "blob"),
        "acceleration": _attributes("accel3d", "accel2d"),
        "resolution": ANY,
    },
    "driver": {"@vgaconf": OWN, **_VIRTIO},
    **_DEVICE,
}
_DEVICES: Rule = {
    # It is one of this host's, or was removed before.
    "emulator": AS_IS,
    "disk": _DISK,
    "controller": {
        **_attributes("type", "index", "model", "ports", "vectors", "maxGrantFrames", "maxEventChannels"),
        **_children(ANY, "driver", "master", "target", "model", "pcihole64"),
        **_DEVICE,
    },
    "interface": _INTERFACE,
    "input": {"@type": ("mouse", "tablet", "keyboard"), **_attributes("bus", "model"), "driver": _VIRTIO, **_DEVICE},
    "hub": {"@type": OWN, **_DEVICE},
    "graphics": _GRAPHICS,
    "video": _VIDEO,
    "sound": {**_attributes("model", "multichannel", "streams"), "codec": ANY, "audio": NEW, **_DEVICE},
    "audio": {"@id": OWN, "@type": ("none", "spice"), "input": ANY, "output": ANY},
    "watchdog": {**_attributes("model", "action"), **_DEVICE},
    "rng": {
        "@model": OWN,
        "!backend": {"@model": ("random", "builtin"), "#": ("/dev/urandom", "/dev/random", "")},
        "rate": ANY,
        "driver": _VIRTIO,
        **_DEVICE,
    },
    "tpm": {
        "@model": OWN,
        "!backend": {"@type": ("emulator",), **_attributes("version", "persistent_state"), "active_pcr_banks": ANY, "profile": ANY},
        **_DEVICE,
    },
    "memballoon": {**_attributes("model", "autodeflate", "freePageReporting"), "stats": ANY, "driver": _VIRTIO, **_DEVICE},
    "panic": {"@model": OWN, **_DEVICE},
    "iommu": {"@model": OWN, "driver": ANY, **_DEVICE},
    "vsock": {"@model": OWN, "cid": {"@auto": OWN}, "driver": _VIRTIO, **_DEVICE},
    "crypto": {**_attributes("model", "type"), "!backend": {"@model": ("builtin",), "@queues": OWN}, "driver": _VIRTIO, **_DEVICE},
    "memory": {
        "@model": ("dimm", "virtio-mem"),
        **_attributes("access", "discard"),
        "source": {"pagesize": ANY},
        "target": ANY,
        **_DEVICE,
    },
    "nvram": _DEVICE,
    **_children({**_CHARACTER, "target": ANY}, "serial", "parallel", "console"),
    "channel": {**_CHARACTER, "!target": {"@type": ("virtio", "xen"), "@name": OWN, "@state": NEW}},
}
_TUNED = ("shares", "period", "quota")
DOMAIN: Rule = {
    "@type": OWN,
    "name": {"#": NAMED},
    "uuid": _TEXT,
    "genid": _TEXT,
    "metadata": {_LIBOSINFO: AS_IS},
    "os": {
        "@firmware": OWN,
        # Firmware and a kernel are only read.
        **_children(AS_IS, "loader", "nvram", "kernel", "initrd", "cmdline", "dtb"),
        **_children(ANY, "type", "firmware", "boot", "bootmenu", "bios"),
        "smbios": {"@mode": ("emulate", "sysinfo")},
    },
    "sysinfo": {
        "@type": ("smbios",),
        **_children({"!entry": {"@name": _ENTRIES, "#": OWN}}, "bios", "system", "baseBoard", "chassis", "oemStrings"),
    },
    "vcpu": {"@current": OWN, "@placement": NEW, "#": OWN},
    "cputune": {f"{whose}{what}": _TEXT for whose in ("", "global_", "emulator_", "iothread_") for what in _TUNED},
    "blkiotune": {"weight": _TEXT},
    "devices": _DEVICES,
    **_children(ANY, "memory", "currentMemory", "maxMemory", "memtune", "memoryBacking", "cpu", "vcpus", "features", "clock", "pm"),
    **_children(ANY, "iothreads", "iothreadids", "defaultiothread", "throttlegroups", "keywrap"),
    **_children(ANY, "on_poweroff", "on_reboot", "on_crash"),
}


def keep_own(element: Any, rule: Rule, removed: list[str], what: str = "") -> bool:
    """Take from an element what its rule does not name; False where the element itself cannot stay. `removed` is told in words."""
    lost: list[str] = []
    every = rule.get("*")
    for name, value in list(element.attrib.items()):
        allowed = every or rule.get(f"@{name}")
        if isinstance(allowed, tuple) and value not in allowed:
            return False
        if not _may_stay(value, allowed):
            del element.attrib[name]
            lost += [] if allowed == NEW else [_of(f"{name} {value}", what)]
    text = (element.text or "").strip()
    allowed = every or rule.get("#")
    if isinstance(allowed, tuple) and text not in allowed:
        return False
    if text and not _may_stay(text, allowed):
        element.text = None
        lost.append(_of(text, what))
    for child in list(element):
        below = rule if every else rule.get(child.tag, rule.get(f"!{child.tag}"))
        # A comment has no name.
        if not isinstance(child.tag, str) or below == NEW:
            element.remove(child)
        elif not isinstance(below, Mapping) or not keep_own(child, below, lost, _named(child, what)):
            lost.append(_named(child, what))
            element.remove(child)
    if any(part.startswith("!") and element.find(part[1:]) is None for part in rule):
        return False
    removed += lost
    return True


def _may_stay(value: str, allowed: Any) -> bool:
    if isinstance(allowed, (tuple, set)):
        return value in allowed
    return allowed == NAMED or allowed == OWN and not _PLACE.search(value)


def _of(part: str, whole: str) -> str:
    return foreign(f"{part} of {whole}" if whole else part)


def _named(element: Any, whole: str) -> str:
    """An element by its name and by what tells it from others."""
    if element.tag == "devices":
        return "device"
    name = f"{element.prefix}:{etree.QName(element).localname}" if element.prefix else element.tag
    kind = next((element.get(key) for key in ("type", "model", "name", "dev", "file") if element.get(key)), "")
    shown = f"{name} ({kind})" if kind else name
    return foreign(f"device {shown}") if whole == "device" else _of(shown, whole)
