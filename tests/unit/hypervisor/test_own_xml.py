# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy beside the original has what is the guest's own, and nothing else; what it has not is told."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from ansible_collections.virtops.live_backup.plugins.module_utils._restore.domain_xml import Guest, Place, Restored, restored_xml
from tests.fuzz.domains import NUMBERS, OWN, REACHING, UUID, Part, domain_xml

OTHER = "0c1c1c1c-5b5a-4bb6-9e2c-2f0f5a5f9d3e"


def copy_of(text: str) -> Restored:
    disks = {"vda": Place("/new/vda", "qcow2", False)}
    return restored_xml(text, Guest("copy", OTHER, True, {"backup_id": "n1"}), disks=disks, nvram="", there=[])


def assert_apart(copy: Restored) -> None:
    """It names nothing of the original's."""
    for sign in ("orig", UUID, *NUMBERS):
        assert sign not in copy.xml, sign


@pytest.mark.parametrize("part", REACHING, ids=lambda part: part.told)
def test_what_reaches_out_is_left_out_and_told(part: Part) -> None:
    copy = copy_of(domain_xml([part]))
    assert_apart(copy)
    assert any(part.told in one for one in copy.removed), copy.removed


@pytest.mark.parametrize("part", OWN, ids=lambda part: part.kept)
def test_what_is_the_guests_own_stays(part: Part) -> None:
    copy = copy_of(domain_xml([part]))
    assert_apart(copy)
    assert part.kept in copy.xml
    # Beside what the domain without that part loses.
    told = [one for one in copy.removed if one not in copy_of(domain_xml([])).removed]
    assert told == ([f"the state of its {part.told}"] if part.told else [])


def test_what_every_domain_has_is_no_news() -> None:
    """Nothing is told of what libvirt makes itself for every domain that runs."""
    plain = [
        Part("<seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+64055</label></seclabel>", on_domain=True),
        Part("<resource><partition>/machine</partition></resource>", on_domain=True),
        Part("<serial type='pty'><source path='/dev/pts/3'/><target port='0'/><alias name='serial0'/></serial>"),
        Part("<graphics type='vnc' port='5900' autoport='yes' listen='127.0.0.1'><listen type='address' address='127.0.0.1'/></graphics>"),
    ]
    removed = copy_of(domain_xml(plain)).removed
    assert removed == ["disk vdb (/orig/vdb), which is not in the set", "the medium /orig/iso of drive sda"]


@given(st.lists(st.sampled_from(OWN + REACHING), max_size=12))
def test_any_mix_of_devices_is_apart(parts: list[Part]) -> None:
    copy = copy_of(domain_xml(parts, cpuset=" cpuset='0-3'"))
    assert_apart(copy)
    assert "cpuset 0-3 of vcpu" in copy.removed
    for part in parts:
        assert not part.told or any(part.told in one for one in copy.removed)
        assert part.told or part.kept in copy.xml


def test_what_nobody_knows_yet_is_left_out() -> None:
    """A release of libvirt that comes after this may have new ways out."""
    new = [
        Part("<teleporter to='/orig'><deep at='orig'/></teleporter>"),
        Part("<beam xmlns:new='urn:new' new:at='orig' at='orig'/>", on_domain=True),
        Part("<video to='/orig'><model type='virtio' at='orig'><socket path='/orig'/></model></video>"),
        Part("<watchdog model='/orig/x' action='reset'/>"),
    ]
    copy = copy_of(domain_xml(new))
    assert_apart(copy)
    for told in ("device teleporter", "beam", "to /orig of device video", "socket of model (virtio) of device video", "model /orig/x of"):
        assert any(told in one for one in copy.removed), (told, copy.removed)


def test_firmware_is_read_only_and_an_nvram_that_is_not_in_the_set_is_not_shared() -> None:
    text = domain_xml([]).replace("</os>", "<loader type='pflash'>/ovmf/CODE.fd</loader><nvram>/orig/VARS.fd</nvram></os>")
    copy = copy_of(text)
    assert_apart(copy)
    assert 'readonly="yes"' in copy.xml and "/ovmf/CODE.fd" in copy.xml
