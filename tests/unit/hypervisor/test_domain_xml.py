# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read from libvirt's domain XML."""

from __future__ import annotations

from typing import Any

import pytest
from lxml import etree

from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.domain_xml import (
    Domain,
    Image,
    VolumePlace,
    parse_domain,
    without_backing_stores,
)


def domain_of(devices: str = "", system: str = "", rest: str = "", volumes: VolumePlace | None = None) -> Domain:
    text = f"<domain><name>db1</name><uuid>u-1</uuid><os>{system}</os><devices>{devices}</devices>{rest}</domain>"
    return parse_domain(text, volumes)


def disk_xml(inner: str, attributes: str = "type='file' device='disk'", target: str = "dev='vda' bus='virtio'") -> str:
    return f"<disk {attributes}>{inner}<target {target}/></disk>"


QCOW2 = "<driver name='qemu' type='qcow2'/>"


def test_name_and_uuid() -> None:
    domain = parse_domain("<domain type='kvm'><name>a &amp; b</name><uuid>u-1</uuid></domain>")
    assert (domain.name, domain.uuid, domain.disks) == ("a & b", "u-1", ())


@pytest.mark.parametrize(
    ("attributes", "inner", "chain"),
    [
        ("type='file'", f"{QCOW2}<source file='/a.qcow2'/>", [("file", "/a.qcow2", "qcow2")]),
        ("type='file'", "<source file='/a b.img'/>", [("file", "/a b.img", "raw")]),
        ("type='file'", "<driver name='qemu'/><source file='/a'/>", [("file", "/a", "raw")]),
        ("", "<source file='/a'/>", [("file", "/a", "raw")]),
        ("type='block'", "<driver type='raw'/><source dev='/dev/vg/a'/>", [("block", "/dev/vg/a", "raw")]),
        ("type='network'", "<source protocol='rbd' name='pool/image'><host name='mon'/></source>", [("network", "", "raw")]),
        ("type='volume'", f"{QCOW2}<source pool='p' volume='v'/>", [("volume", "", "qcow2", ("p", "v"))]),
        ("type='nvme'", "<source type='pci' namespace='1'><address domain='0'/></source>", [("nvme", "", "raw")]),
        ("type='vhostuser'", "<source type='unix' path='/run/s'/>", [("vhostuser", "", "raw", None, (), ("path in <source>",))]),
        ("type='file' device='cdrom'", "", []),
        ("type='file' device='cdrom'", "<source/>", []),
        ("type='file' device='cdrom'", "<source file='/i.iso'/>", [("file", "/i.iso", "raw")]),
    ],
)
def test_source(attributes: str, inner: str, chain: list[Any]) -> None:
    [disk] = domain_of(disk_xml(inner, attributes)).disks
    assert disk.chain == tuple(Image(*image) for image in chain)


def test_backing_chain_is_read_to_its_end() -> None:
    inner = f"""{QCOW2}<source file='/top'/>
      <backingStore type='file'><format type='qcow2'/><source file='/middle'/>
        <backingStore type='block'><format type='raw'/><source dev='/dev/base'/><backingStore/></backingStore>
      </backingStore>"""
    [disk] = domain_of(disk_xml(inner)).disks
    assert disk.chain == (Image("file", "/top", "qcow2"), Image("file", "/middle", "qcow2"), Image("block", "/dev/base", "raw"))


def test_a_mirror_is_not_part_of_the_chain() -> None:
    inner = f"{QCOW2}<source file='/top'/><backingStore/><mirror type='file'><format type='raw'/><source file='/copy'/></mirror>"
    assert domain_of(disk_xml(inner)).disks[0].chain == (Image("file", "/top", "qcow2"),)


SOURCE = "<source file='/a'/>"


@pytest.mark.parametrize(
    ("attributes", "inner", "target", "skip_reason", "obstacle"),
    [
        ("type='file'", SOURCE, "dev='vda' bus='virtio'", "", ""),
        ("type='file' device='cdrom'", SOURCE, "dev='sda' bus='sata'", "cdrom", ""),
        ("type='file' device='cdrom'", "", "dev='sda' bus='sata'", "cdrom", ""),
        ("type='file' device='floppy'", SOURCE, "dev='fda' bus='fdc'", "floppy", ""),
        ("type='file' device='disk'", "", "dev='vdb' bus='virtio'", "empty", ""),
        ("type='file'", SOURCE + "<readonly/>", "dev='vdb' bus='virtio'", "read-only", ""),
        ("type='block' device='lun'", "<source dev='/dev/sg1'/>", "dev='sda' bus='scsi'", "", "lun"),
        ("type='file'", SOURCE, "dev='sdz' bus='sd'", "", "'sd'"),
        ("type='file'", SOURCE + "<transient/>", "dev='vda' bus='virtio'", "", "transient"),
        ("type='file'", SOURCE + "<shareable/>", "dev='vda' bus='virtio'", "", "shareable"),
        ("type='vhostuser'", "<source type='unix' path='/run/s'/>", "dev='vda' bus='virtio'", "", "vhostuser"),
    ],
)
def test_what_is_skipped_and_what_cannot_be_captured(attributes: str, inner: str, target: str, skip_reason: str, obstacle: str) -> None:
    [disk] = domain_of(disk_xml(inner, attributes, target)).disks
    assert disk.skip_reason == skip_reason
    assert obstacle in disk.obstacle and bool(obstacle) == bool(disk.obstacle)


@pytest.mark.parametrize(
    ("attributes", "inner", "obstacle", "copy_obstacle"),
    [
        ("type='file'", "<source file='/a' startupPolicy='optional' index='1'><seclabel model='dac'/></source>", "", ""),
        ("type='file'", "<driver name='qemu' type='raw' cache='none' discard='unmap' iothread='1'/><source file='/a'/>", "", ""),
        ("type='file'", "<source file='/a'><slices/></source>", "", "its <source> has slices"),
        ("type='file'", "<source file='/a'><dataStore/></source>", "", "its <source> has dataStore"),
        ("type='file'", "<source file='/a' fdgroup='g'/>", "", "its <source> has fdgroup"),
        ("type='block'", "<source dev='/dev/a'><reservations managed='yes'/></source>", "", "its <source> has reservations"),
        ("type='file'", "<source file='/a' window='8'/>", "its XML has window in <source>", ""),
        ("type='file'", "<source file='/a'><layers/></source>", "its XML has layers in <source>", ""),
        ("type='file'", "<driver type='raw' offset='8'/><source file='/a'/>", "its XML has offset in <driver>", ""),
        ("type='file'", "<driver type='raw'><parts/></driver><source file='/a'/>", "its XML has parts in <driver>", ""),
        (
            "type='file'",
            "<driver type='qcow2'/><source file='/a'/><backingStore type='file'><source file='/b' x='1'/></backingStore>",
            "x in",
            "",
        ),
        ("type='dir'", "<source dir='/a'/>", "type 'dir'", "which only push"),
        (
            "type='network'",
            "<source protocol='rbd' name='p/i'><host name='m'/><auth/></source>",
            "",
            "it is of type network, which only push",
        ),
        ("type='file'", "<encryption format='luks'/><source file='/a'/>", "libvirt encrypts it", ""),
        ("type='volume'", "<source pool='p' volume='v'/>", "", "its volume 'v' is not found in pool 'p': start the pool"),
    ],
)
def test_what_says_which_bytes_are_the_disk(attributes: str, inner: str, obstacle: str, copy_obstacle: str) -> None:
    """What is not understood is refused by its name; what QEMU alone understands only QEMU copies."""
    [disk] = domain_of(disk_xml(inner, attributes)).disks
    assert obstacle in disk.obstacle and bool(obstacle) == bool(disk.obstacle), disk.obstacle
    assert copy_obstacle in disk.copy_obstacle and bool(copy_obstacle) <= bool(disk.copy_obstacle), disk.copy_obstacle


@pytest.mark.parametrize("place", [("file", "/pool/v"), ("block", "/dev/vg/v"), ("volume", "")])
def test_a_volume_is_where_libvirt_says(place: tuple[str, str]) -> None:
    [disk] = domain_of(disk_xml("<source pool='p' volume='v'/>", "type='volume'"), volumes=lambda *_names: place).disks
    assert disk.chain == (Image(*place, "raw", ("p", "v")),)
    assert bool(disk.copy_obstacle) == (not place[1])


def test_disk_fields_and_lookup_by_target() -> None:
    domain = domain_of(disk_xml(SOURCE) + disk_xml(SOURCE + "<readonly/><shareable/><transient/>", "type='file' device='lun'", "dev='sda'"))
    disk = domain.disk("sda")
    assert disk is not None
    assert (disk.device, disk.bus, disk.readonly, disk.shareable, disk.transient) == ("lun", "", True, True, True)
    assert domain.disk("vda") == domain.disks[0] and domain.disk("vdz") is None


@pytest.mark.parametrize(
    ("system", "path"),
    [
        ("", ""),
        ("<nvram template='/t.fd'/>", ""),
        ("<nvram>/var/lib/libvirt/qemu/nvram/a b.fd</nvram>", "/var/lib/libvirt/qemu/nvram/a b.fd"),
        ("<nvram template='/t.fd'>\n /n.fd\n</nvram>", "/n.fd"),
        ("<nvram type='file'><source file='/n.fd'/></nvram>", "/n.fd"),
    ],
)
def test_nvram_in_both_spellings(system: str, path: str) -> None:
    assert domain_of(system=system).nvram == path


@pytest.mark.parametrize("source", ["type='block'><source dev='/dev/vg/n'/>", "type='network'><source protocol='iscsi' name='n'/>"])
def test_nvram_that_is_no_file_is_captured_or_told(source: str) -> None:
    domain = domain_of(system=f"<nvram {source}</nvram>")
    assert domain.nvram or any("nvram" in missing.lower() for missing in domain.secrets)


CHANNEL = "<channel type='unix'><target type='virtio' name='{}'{}/></channel>"
GA = "org.qemu.guest_agent.0"


@pytest.mark.parametrize(
    ("channels", "agent"),
    [
        ([], "absent"),
        ([("com.redhat.spice.0", " state='connected'")], "absent"),
        ([(GA, "")], "disconnected"),
        ([(GA, " state='disconnected'")], "disconnected"),
        ([(GA, " state='connected'")], "connected"),
        ([("com.redhat.spice.0", " state='disconnected'"), (GA, " state='connected'")], "connected"),
    ],
)
def test_agent(channels: list[tuple[str, str]], agent: str) -> None:
    assert domain_of("".join(CHANNEL.format(*channel) for channel in channels)).agent == agent


@pytest.mark.parametrize(
    ("labels", "user"),
    [
        ("", None),
        ("<seclabel type='dynamic' model='dac'><label>+64055:+106</label></seclabel>", (64055, 106)),
        ("<seclabel model='apparmor'><label>+1:+1</label></seclabel><seclabel model='dac'><label>+0:+0</label></seclabel>", (0, 0)),
        ("<seclabel model='dac' relabel='yes'/>", None),
        ("<seclabel type='none' model='dac'/>", None),
        ("<seclabel model='dac'><label>libvirt-qemu:kvm</label></seclabel>", None),
        ("<seclabel model='dac'><label>+64055:kvm</label></seclabel>", None),
    ],
)
def test_qemu_user(labels: str, user: Any) -> None:
    assert domain_of(rest=labels).qemu_user == user


TPM = "<tpm model='tpm-crb'><backend type='{}'/></tpm>"
LUKS = "<encryption format='luks'><secret type='passphrase' {}/></encryption>"


@pytest.mark.parametrize(
    ("devices", "parts"),
    [
        ("", []),
        (TPM.format("passthrough"), ["what its TPM holds, which is outside"]),
        (TPM.format("external"), ["what its TPM holds, which is outside"]),
        ("<hostdev type='mdev' mode='subsystem'/>", ["passed-through device (mdev)"]),
        ("<interface type='hostdev'/><interface type='network'/>", ["passed-through network card"]),
        ("<filesystem><source dir='/srv'/></filesystem>", ["shared folder /srv"]),
        ("<memory model='nvdimm'/>", ["persistent memory"]),
        (TPM.format("emulator"), ["virtual TPM"]),
        (disk_xml(SOURCE + LUKS.format("uuid='s-1'")), ["secret s-1"]),
        (disk_xml("<source file='/a'>" + LUKS.format("usage='luks/db1'") + "</source>"), ["secret luks/db1"]),
        (TPM.format("emulator") + disk_xml(SOURCE + LUKS.format("uuid='s-2'")), ["virtual TPM", "secret s-2"]),
    ],
)
def test_what_a_backup_of_the_disks_lacks(devices: str, parts: list[str]) -> None:
    secrets = domain_of(devices).secrets
    assert len(secrets) == len(parts)
    assert all(part in secret for part, secret in zip(parts, secrets))


def test_entities_are_not_resolved(tmp_path: Any) -> None:
    (tmp_path / "secret").write_text("leaked", encoding="utf-8")
    text = f"<!DOCTYPE d [<!ENTITY e SYSTEM 'file://{tmp_path}/secret'>]><domain><name>&e;</name><uuid>u</uuid></domain>"
    assert "leaked" not in (parse_domain(text).name or "")


def test_what_is_no_xml_is_an_error() -> None:
    with pytest.raises(etree.XMLSyntaxError):
        parse_domain("<domain>")


def test_a_saved_definition_names_no_backing_stores() -> None:
    inner = (
        f"{QCOW2}<source file='/top'/><backingStore type='file'><format type='raw'/><source file='/base'/><backingStore/></backingStore>"
    )
    devices = disk_xml(inner) + disk_xml(SOURCE, target="dev='vdb'")
    text = without_backing_stores(f"<domain><name>ö &amp; b</name><uuid>u</uuid><devices>{devices}</devices></domain>")
    domain = parse_domain(text)
    assert domain.name == "ö & b" and "backingStore" not in text
    assert [disk.chain for disk in domain.disks] == [(Image("file", "/top", "qcow2"),), (Image("file", "/a", "raw"),)]
