# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The XML that a backup set is booted with: from the set's own XML only what an allow-list names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._base.errors import LiveBackupError
from .._hypervisor.bindings import etree
from .._hypervisor.domain_xml import AGENT_CHANNEL, parse_domain, parse_xml
from .._hypervisor.own_xml import ANY, keep_own
from .._hypervisor.proof_mark import PROOF_NAME, put_mark

# Nothing here names a network, a device, a folder or a file of the host, but for firmware and a kernel, which are only read.
_WHOLE = ("cpu", "clock", "features")
_OS = ("type", "loader", "firmware", "kernel", "initrd", "cmdline", "boot", "bios")
_CONTROLLERS = ("scsi", "sata", "ide", "virtio-serial", "pci")
_OF_DISK = ("serial", "wwn", "product", "vendor", "boot")


@dataclass(frozen=True)
class Size:
    """The memory, in bytes, and the processors of a guest."""

    memory: int
    vcpus: int


def boot_size(text: str, max_memory: int | None, max_vcpus: int) -> Size:
    """What a domain gets for a proof: what it has, and no more than these."""
    original = parse_xml(text)
    memory = original.find("memory")
    # libvirt itself always writes KiB.
    amount, processors = ("" if memory is None else memory.text or "").strip(), original.findtext("vcpu", "1").strip()
    if memory is None or memory.get("unit", "KiB") != "KiB" or not (_is_number(amount) and _is_number(processors)):
        raise LiveBackupError(
            "The set's domain.xml does not have memory in KiB and a number of processors, as libvirt writes them.", code="set_not_bootable"
        )
    had = int(amount) * 1024
    return Size(min(had, max_memory or had), min(int(processors), max_vcpus))


def _is_number(text: str) -> bool:
    return re.fullmatch("[0-9]{1,18}", text) is not None


def boot_xml(text: str, disks: dict[str, str], directory: Path, size: Size, *, kvm: bool) -> str:
    """The XML of a transient domain without network whose disks are NBD exports, by target dev at these sockets.

    In the directory are its first serial port, the pipe `console`, and its NVRAM, if it has one, the file `nvram`.
    """
    original = parse_xml(text)
    domain = etree.Element("domain", type=original.get("type", "kvm") if kvm else "qemu")
    etree.SubElement(domain, "name").text = f"{PROOF_NAME}{directory.name}"
    metadata = etree.SubElement(domain, "metadata")
    put_mark(metadata, str(directory))
    etree.SubElement(domain, "memory", unit="KiB").text = str(size.memory // 1024)
    for tag in _WHOLE:
        element = original.find(tag)
        # Without KVM QEMU knows no processor but its own.
        if element is not None and (kvm or tag != "cpu") and keep_own(element, ANY, []):
            domain.append(element)
    # They would have to fit the memory and the processors.
    for cpu in domain.findall("cpu"):
        for element in [*cpu.findall("topology"), *cpu.findall("numa")]:
            cpu.remove(element)
    etree.SubElement(domain, "vcpu").text = str(size.vcpus)
    _boot_from(original, domain, str(directory / "nvram"))
    etree.SubElement(domain, "on_poweroff").text = "destroy"
    # One that cannot boot would do so for ever.
    etree.SubElement(domain, "on_reboot").text = "destroy"
    etree.SubElement(domain, "on_crash").text = "destroy"
    devices = etree.SubElement(domain, "devices")
    for controller in original.findall("devices/controller"):
        if controller.get("type") in _CONTROLLERS:
            kept = ("type", "index", "model")
            etree.SubElement(devices, "controller", {key: controller.get(key) for key in kept if controller.get(key)})
    found = {disk.find("target").get("dev"): disk for disk in original.findall("devices/disk")}
    for target, socket in disks.items():
        if target not in found:
            raise LiveBackupError(f"The set's domain.xml has no disk {target}.", code="set_not_bootable")
        _add_disk(devices, found[target], target, socket)
    serial = etree.SubElement(devices, "serial", type="pipe")
    etree.SubElement(serial, "source", path=str(directory / "console"))
    if parse_domain(text).agent != "absent":
        channel = etree.SubElement(devices, "channel", type="unix")
        etree.SubElement(channel, "target", type="virtio", name=AGENT_CHANNEL)
    etree.SubElement(devices, "memballoon", model="none")
    return etree.tostring(domain, encoding="unicode")


def _boot_from(original: Any, domain: Any, nvram: str) -> None:
    old = original.find("os")
    if old is None or old.findtext("type") != "hvm":
        raise LiveBackupError(
            "The set's domain.xml is not that of a full virtual machine, so it cannot be booted.", code="set_not_bootable"
        )
    system = etree.SubElement(domain, "os", {key: old.get(key) for key in ("firmware",) if old.get(key)})
    for tag in _OS:
        for element in old.findall(tag):
            system.append(element)
    for loader in system.findall("loader"):
        # Whatever it names is a file of this host.
        loader.set("readonly", "yes")
    if old.find("nvram") is not None:
        template = old.find("nvram").get("template")
        etree.SubElement(system, "nvram", {"template": template} if template else {}).text = nvram


def _add_disk(devices: Any, original: Any, target: str, socket: str) -> None:
    disk = etree.SubElement(devices, "disk", type="network", device="disk")
    # What it writes is thrown away.
    etree.SubElement(disk, "driver", name="qemu", type="raw", cache="unsafe")
    source = etree.SubElement(disk, "source", protocol="nbd", name="")
    etree.SubElement(source, "host", transport="unix", socket=socket)
    etree.SubElement(disk, "target", dev=target, bus=original.find("target").get("bus", "virtio"))
    for tag in _OF_DISK:
        if original.find(tag) is not None:
            disk.append(original.find(tag))
