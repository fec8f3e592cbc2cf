# SPDX-License-Identifier: GPL-3.0-or-later
"""What a restored domain and one that is booted for a proof are made of."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.proof_mark import proof_directory
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.stamp import set_of
from ansible_collections.virtops.live_backup.plugins.module_utils._proof.boot_xml import Size, boot_size, boot_xml
from ansible_collections.virtops.live_backup.plugins.module_utils._restore.domain_xml import Guest, Place, needs, reconnected, restored_xml

from ..support.raising import raises_code

UUID, OTHER = "5b1dcd43-5b5a-4bb6-9e2c-2f0f5a5f9d3e", "0c1c1c1c-5b5a-4bb6-9e2c-2f0f5a5f9d3e"
STAMP = {"uuid": UUID, "backup_id": "night-1", "instant": "2026-11-22T18:45:12.345Z"}
DISKS = {"vda": Place("/new/a & b.raw", "raw", False), "vdb": Place("/dev/vg/b", "raw", True)}
DOMAIN = f"""<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>db1</name><uuid>{UUID}</uuid><genid>11111111-5b5a-4bb6-9e2c-2f0f5a5f9d3e</genid>
  <metadata><app xmlns='urn:other'>mine</app></metadata>
  <memory unit='KiB'>1048576</memory><vcpu cpuset='0-3'>2</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><loader readonly='yes' type='pflash'>/ovmf/CODE.fd</loader>
    <nvram template='/ovmf/VARS.fd'>/nvram/db1_VARS.fd</nvram></os>
  <cpu mode='host-passthrough'/><features><acpi/></features><clock offset='utc'/>
  <devices>
    <emulator>/usr/libexec/qemu-kvm</emulator>
    <disk type='block' device='disk'><driver name='qemu' type='qcow2' cache='none' iothread='1'/><source dev='/dev/old'/>
      <backingStore type='file'><source file='/template'/></backingStore><target dev='vda' bus='virtio'/>
      <serial>S1</serial><boot order='1'/></disk>
    <disk type='file' device='disk'><source file='/old/b.qcow2'/><target dev='vdb' bus='scsi'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/old/scratch'/><target dev='vdc' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><source file='/iso/install.iso'/><target dev='sda' bus='sata'/><readonly/></disk>
    <controller type='scsi' index='0' model='virtio-scsi'/><controller type='usb' index='0'/>
    <filesystem type='mount'><source dir='/srv/shared'/><target dir='s'/></filesystem>
    <hostdev mode='subsystem' type='pci'/>
    <interface type='network'><mac address='52:54:00:00:00:01'/><source network='lan'/><target dev='vnet7'/></interface>
    <interface type='bridge'><mac address='52:54:00:00:00:02'/><source bridge='br0'/></interface>
    <serial type='file'><source path='/var/log/db1'/><target port='0'/></serial>
    <channel type='unix'><source mode='bind' path='/run/agent'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <graphics type='vnc' port='5901' autoport='no'/>
    <memory model='nvdimm'><source><path>/nvdimm</path></source></memory>
  </devices>
  <qemu:commandline><qemu:arg value='-drive'/></qemu:commandline>
</domain>"""


def restore(*, is_copy: bool, there: list[str]) -> tuple[ElementTree.Element, list[str]]:
    name, uuid, nvram = ("copy", OTHER, "/nvram/copy_VARS.fd") if is_copy else ("db1", UUID, "/nvram/db1_VARS.fd")
    made = restored_xml(DOMAIN, Guest(name, uuid, is_copy, STAMP), disks=DISKS, nvram=nvram, there=there)
    assert set_of(made.xml) == STAMP
    return ElementTree.fromstring(made.xml), made.removed


def sources(root: ElementTree.Element) -> dict[str, dict[str, str]]:
    found = {}
    for disk in root.findall("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        assert target is not None
        found[target.get("dev", "")] = {} if source is None else dict(source.attrib)
    return found


def test_in_its_own_place_only_the_disks_change() -> None:
    root, removed = restore(is_copy=False, there=["/iso/install.iso", "/old/scratch", "/usr/libexec/qemu-kvm"])
    assert removed == []
    places = {
        "vda": {"file": "/new/a & b.raw"},
        "vdb": {"dev": "/dev/vg/b"},
        "vdc": {"file": "/old/scratch"},
        "sda": {"file": "/iso/install.iso"},
    }
    assert sources(root) == places
    assert root.findtext("uuid") == UUID and root.get("id") is None and root.findtext("devices/emulator") == "/usr/libexec/qemu-kvm"
    disk = root.find("devices/disk")
    assert disk is not None and disk.find("backingStore") is None and disk.get("type") == "file"
    driver = disk.find("driver")
    assert driver is not None and driver.attrib == {"name": "qemu", "type": "raw", "cache": "none", "iothread": "1"}
    assert [mac.get("address") for mac in root.iter("mac")] == ["52:54:00:00:00:01", "52:54:00:00:00:02"]
    assert root.find("devices/filesystem") is not None and root.find("metadata/{urn:other}app") is not None


def test_a_medium_that_is_gone_leaves_the_drive_empty_and_a_disk_that_is_gone_stays_named() -> None:
    root, removed = restore(is_copy=False, there=[])
    assert removed == ["the medium /iso/install.iso of drive sda"]
    assert sources(root)["sda"] == {} and sources(root)["vdc"] == {"file": "/old/scratch"}
    assert root.find("devices/emulator") is None


def test_a_copy_reaches_nothing_of_the_original() -> None:
    root, removed = restore(is_copy=True, there=["/iso/install.iso", "/old/scratch"])
    text = ElementTree.tostring(root, encoding="unicode")
    for path in (
        "/old/",
        "/iso/",
        "/srv/shared",
        "/var/log",
        "/run/agent",
        "/nvdimm",
        "db1",
        "52:54:00",
        "vnet7",
        "qemu:arg",
        "5901",
        "/template",
    ):
        assert path not in text.replace(STAMP["uuid"], ""), path
    assert root.findtext("uuid") == OTHER and not root.findtext("genid")
    assert root.findtext("os/nvram") == "/nvram/copy_VARS.fd"
    told = "; ".join(removed)
    for what in (
        "disk vdc (/old/scratch)",
        "install.iso of drive sda",
        "filesystem",
        "hostdev",
        "memory",
        "/var/log/db1",
        "qemu:commandline",
    ):
        assert what in told, what
    assert len(root.findall("devices/interface")) == 2 and root.find("devices/channel") is not None


def test_restored_again_it_names_the_last_set() -> None:
    made = restored_xml(DOMAIN, Guest("db1", UUID, False, STAMP), disks=DISKS, nvram="", there=[])
    newer = {**STAMP, "backup_id": "night-2"}
    again = restored_xml(made.xml, Guest("db1", UUID, False, newer), disks=DISKS, nvram="", there=[])
    assert set_of(again.xml) == newer and again.xml.count("night-") == 1


def test_networks_and_bridges_have_the_names_of_this_host() -> None:
    made = reconnected(DOMAIN, {"lan": "default", "br0": "wrong", "absent": "x"}, {"br0": "br1", "lan": "wrong"})
    assert (needs(made)["network"], needs(made)["bridge"]) == (["default"], ["br1"])
    assert reconnected(DOMAIN, {}, {}) == DOMAIN


def test_what_follows_from_the_old_network_goes() -> None:
    running = DOMAIN.replace("<source network='lan'", "<source network='lan' portid='5' bridge='virbr7' portgroup='dmz'")
    assert running != DOMAIN
    for bridges in ({}, {"virbr7": "br1"}):
        source = ElementTree.fromstring(reconnected(running, {"lan": "default"}, bridges)).find("devices/interface/source[@network]")
        assert source is not None and source.attrib == {"network": "default", "portgroup": "dmz"}


def test_what_a_host_needs() -> None:
    assert needs(DOMAIN) == {
        "network": ["lan"],
        "bridge": ["br0"],
        "pool": [],
        "file": ["/ovmf/CODE.fd"],
        "machine": ["pc-q35-7.2"],
        "arch": ["x86_64"],
        "type": ["kvm"],
    }


def test_a_proof_boots_with_the_sets_disks_and_nothing_else() -> None:
    sockets = {"vda": "/run/x/0.socket", "vdb": "/run/x/1.socket"}
    root = ElementTree.fromstring(boot_xml(DOMAIN, sockets, Path("/run/x"), Size(1 << 30, 2), kvm=True))
    assert {child.tag for child in root.find("devices") or []} == {"disk", "controller", "serial", "channel", "memballoon"}
    assert [host.get("socket") for host in root.iter("host")] == list(sockets.values())
    text = ElementTree.tostring(root, encoding="unicode")
    for path in (
        "/old/",
        "/dev/",
        "/iso/",
        "/srv/",
        "/var/log",
        "/run/agent",
        "/nvram/db1",
        "lan",
        "br0",
        UUID,
        "iothread",
        "cpuset",
        "qemu:",
    ):
        assert path not in text, path
    assert root.find("uuid") is None and root.findtext("os/nvram") == "/run/x/nvram"
    assert [bus.get("bus") for bus in root.iter("target") if bus.get("bus")] == ["virtio", "scsi"]
    assert root.get("type") == "kvm" and root.find("cpu") is not None


def test_without_kvm_it_boots_all_the_same() -> None:
    root = ElementTree.fromstring(boot_xml(DOMAIN, {"vda": "/s"}, Path("/run/x"), Size(1 << 30, 2), kvm=False))
    assert root.get("type") == "qemu" and root.find("cpu") is None


def test_what_cannot_be_booted() -> None:
    with raises_code("set_not_bootable"):
        boot_xml(DOMAIN, {"vdz": "/s"}, Path("/run/x"), Size(1 << 30, 2), kvm=True)
    with raises_code("set_not_bootable"):
        boot_xml(DOMAIN.replace(">hvm<", ">exe<"), {"vda": "/s"}, Path("/run/x"), Size(1 << 30, 2), kvm=True)


def test_a_proof_gets_what_it_may_and_says_what_it_is() -> None:
    numa = "<cpu mode='host-model'><topology sockets='1' cores='8' threads='1'/><numa><cell id='0' cpus='0-7' memory='8'/></numa></cpu>"
    text = re.sub("<cpu.*?(/>|</cpu>)", numa, DOMAIN, count=1, flags=re.DOTALL)
    assert numa in text
    text = text.replace("<devices>", "<memoryBacking><hugepages/></memoryBacking><devices>", 1)
    root = ElementTree.fromstring(boot_xml(text, {"vda": "/s"}, Path("/run/x/abc"), Size(1 << 30, 2), kvm=True))
    assert root.findtext("name") == "live-backup-proof-abc" and proof_directory(ElementTree.tostring(root, "unicode")) == "/run/x/abc"
    assert (root.findtext("memory"), root.findtext("vcpu")) == (str(1 << 20), "2")
    assert list(root.iter("numa")) == list(root.iter("topology")) == list(root.iter("memoryBacking")) == []
    assert root.find("cpu") is not None and proof_directory(text) == ""


@pytest.mark.parametrize(
    ("max_memory", "max_vcpus", "size"), [(None, 99, Size(8 << 30, 6)), (1 << 30, 4, Size(1 << 30, 4)), (1 << 50, 1, Size(8 << 30, 1))]
)
def test_the_size_of_a_proof(max_memory: int | None, max_vcpus: int, size: Size) -> None:
    text = f"<domain><memory unit='KiB'>{8 << 20}</memory><vcpu placement='static' current='2'>6</vcpu></domain>"
    assert boot_size(text, max_memory, max_vcpus) == size


@pytest.mark.parametrize("memory", ["", "<memory unit='GiB'>8</memory>", "<memory>much</memory>", "<memory/>"])
def test_a_memory_that_libvirt_would_not_write(memory: str) -> None:
    with raises_code("set_not_bootable"):
        boot_size(f"<domain>{memory}<vcpu>1</vcpu></domain>", None, 4)
