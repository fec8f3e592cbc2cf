# SPDX-License-Identifier: GPL-3.0-or-later
"""The XML of single disks that are restored: in the place of a domain's own, and under the next free name."""

from __future__ import annotations

import pytest
from lxml import etree

from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.stamp import set_of
from ansible_collections.virtops.live_backup.plugins.module_utils._restore.domain_xml import Place, disk_xml, with_disks

STAMP = {"uuid": "u", "backup_id": "n1", "instant": "t", "restore": "r", "disks": "vdb"}


def domain(*disks: tuple[str, str]) -> str:
    elements = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/><source file='/img/{name}'/>"
        f"<target dev='{name}' bus='{bus}'/><serial>{name}</serial></disk>"
        for name, bus in disks
    )
    return f"<domain><name>db1</name><uuid>u</uuid><devices>{elements}</devices></domain>"


def test_only_the_named_disks_are_replaced() -> None:
    text = domain(("vda", "virtio"), ("vdb", "virtio"))
    made = with_disks(text, STAMP, {"vdb": Place("/new/vdb.qcow2", "qcow2", False)})
    assert set_of(made) == STAMP
    was, now = (etree.fromstring(one).findall("devices/disk") for one in (text, made))
    assert etree.tostring(was[0]) == etree.tostring(now[0])
    assert now[1].find("source").get("file") == "/new/vdb.qcow2" and now[1].find("driver").attrib["type"] == "qcow2"
    # What else the user has set of it stays.
    assert now[1].find("driver").get("cache") == "none" and now[1].findtext("serial") == "vdb"


@pytest.mark.parametrize(
    ("own", "original", "name", "expected"),
    [
        ([("vda", "virtio")], "virtio", "vda", ("vdb", "virtio")),
        ([("vda", "virtio"), ("vdc", "virtio")], "virtio", "vda", ("vdb", "virtio")),
        ([("sda", "sata")], "scsi", "vda", ("sdb", "scsi")),
        ([("sda", "sata")], "usb", "vda", ("sdb", "usb")),
        # A running guest sees no new disk on these.
        ([("sda", "sata")], "sata", "vda", ("vda", "virtio")),
        ([("hda", "ide")], "ide", "vda", ("vda", "virtio")),
        # The set's definition does not have the disk.
        ([("vda", "virtio")], "scsi", "vdx", ("vdb", "virtio")),
        ([(f"vd{letter}", "virtio") for letter in "abcdefghijklmnopqrstuvwxyz"], "virtio", "vda", ("vdaa", "virtio")),
    ],
)
def test_the_next_free_name(own: list[tuple[str, str]], original: str, name: str, expected: tuple[str, str]) -> None:
    made = etree.fromstring(disk_xml([domain(*own)], name, Place("/x.raw", "raw", False), domain(("vda", original))))
    assert (made.find("target").get("dev"), made.find("target").get("bus")) == expected
    assert made.get("device") == "disk" and made.find("source").get("file") == "/x.raw" and made.find("driver").get("type") == "raw"


def test_a_name_that_only_one_of_its_xmls_has_is_not_free() -> None:
    made = disk_xml([domain(("vda", "virtio")), domain(("vdb", "virtio"))], "vda", Place("/x", "raw", False), domain(("vda", "virtio")))
    assert etree.fromstring(made).find("target").get("dev") == "vdc"


@pytest.mark.parametrize(
    ("place", "kind", "source"),
    [
        (Place("/dev/vg/a", "raw", True), "block", {"dev": "/dev/vg/a"}),
        (Place("/pool/a", "qcow2", False, ("fast", "a")), "volume", {"pool": "fast", "volume": "a"}),
    ],
)
def test_each_kind_of_place(place: Place, kind: str, source: dict[str, str]) -> None:
    made = etree.fromstring(disk_xml([domain()], "vda", place, domain(("vda", "virtio"))))
    assert made.get("type") == kind and dict(made.find("source").attrib) == source
