# SPDX-License-Identifier: GPL-3.0-or-later
"""The XML of the backup job says exactly which file each disk is written to, whatever the names hold."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.backup_xml import (
    backup_files,
    pull_backup_xml,
    push_backup_xml,
)
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.domain_xml import parse_xml


def is_xml_character(character: str) -> bool:
    """By XML 1.0, section 2.2."""
    code = ord(character)
    return code in (0x9, 0xA, 0xD) or 0x20 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or code >= 0x10000


ODD = st.text(min_size=1)
XML_TEXT = ODD.filter(lambda text: all(map(is_xml_character, text)))


@given(st.dictionaries(XML_TEXT, XML_TEXT.map(lambda name: f"/srv/{name}"), min_size=1), XML_TEXT)
def test_names_survive_exactly(targets: dict[str, str], image_format: str) -> None:
    text = push_backup_xml(targets, image_format, {})
    assert backup_files(text) == targets
    assert {driver.get("type") for driver in parse_xml(text).findall("disks/disk/driver")} == {image_format}


@given(ODD.filter(lambda text: not all(map(is_xml_character, text))))
def test_what_xml_cannot_hold_is_refused_in_plain_words(name: str) -> None:
    with pytest.raises(LiveBackupError):
        push_backup_xml({"vda": f"/srv/{name}"}, "qcow2", {})


def test_every_disk_of_a_push_job_names_its_file_and_format() -> None:
    root = parse_xml(push_backup_xml({"vda": "/t/vda.raw", "vdb": "/t/vdb.raw"}, "raw", {}))
    assert (root.tag, dict(root.attrib)) == ("domainbackup", {"mode": "push"})
    found = [(disk.attrib, disk.find("target").attrib, disk.find("driver").attrib) for disk in root.findall("disks/disk")]
    assert found == [
        ({"name": "vda", "type": "file"}, {"file": "/t/vda.raw"}, {"type": "raw"}),
        ({"name": "vdb", "type": "file"}, {"file": "/t/vdb.raw"}, {"type": "raw"}),
    ]


def test_targets_of_a_job_as_libvirt_shows_it() -> None:
    """libvirt adds attributes, lists the disks that are not backed up, and names devices otherwise."""
    text = """<domainbackup mode='push'><disks>
      <disk name='vda' backup='yes' type='file' backupmode='full' index='5'><driver type='qcow2'/><target file='/t/vda'/></disk>
      <disk name='vdb' backup='yes' type='block'><driver type='raw'/><target dev='/dev/vg/b'/></disk>
      <disk name='vdc' backup='no'/></disks></domainbackup>"""
    assert backup_files(text) == {"vda": "/t/vda", "vdb": ""}


def test_a_pull_job_has_scratch_files() -> None:
    text = """<domainbackup mode='pull'><server transport='unix' socket='/s'/><disks>
      <disk name='vda' backup='yes' type='file'><driver type='qcow2'/><scratch file='/s/vda'/></disk></disks></domainbackup>"""
    assert backup_files(text) == {"vda": "/s/vda"}


def test_what_is_written_of_a_pull_is_read_again() -> None:
    text = pull_backup_xml({"vda": "/s/<a>", "vdb": "/s/b"}, "/run/nbd", {"vdb": "point"})
    root = parse_xml(text)
    assert backup_files(text) == {"vda": "/s/<a>", "vdb": "/s/b"}
    assert root.get("mode") == "pull" and root.find("server").attrib == {"transport": "unix", "socket": "/run/nbd"}
    assert [(disk.get("backupmode"), disk.get("incremental")) for disk in root.iter("disk")] == [("full", None), ("incremental", "point")]
