# SPDX-License-Identifier: GPL-3.0-or-later
"""Overlays, active commit and pivot: what the collection relies on; the fake of the unit tests and the real libvirt say the same."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._claim.overlays import Overlay
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor import numbers as _numbers, qemu_monitor as _monitor
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.domain_xml import (
    Image,
    Mirror,
    parse_domain,
    with_disk_source,
)
from ansible_collections.virtops.live_backup.plugins.module_utils._overlay import in_qemu as _in_qemu
from ansible_collections.virtops.live_backup.plugins.module_utils._overlay.decide import InQemu

from .conftest import Lab

INVALID_ARG, DENIED, UNSUPPORTED_CONFIG, NO_FILE = 8, 29, 67, 38
ACTIVE, SHALLOW, PIVOT = 4, 1, 2
DISK_ONLY, NO_METADATA, ATOMIC = 16, 4, 128
INACTIVE, SECURE = 2, 1
DISK = "vda"


def snapshot_xml(overlays: dict[str, str]) -> str:
    disks = "".join(
        f"<disk name='{disk}' snapshot='external' type='file'><driver type='qcow2'/><source file='{overlays[disk]}'/></disk>"
        if disk in overlays
        else f"<disk name='{disk}' snapshot='no'/>"
        for disk in ("vda", "vdb", "vdc")
    )
    return f"<domainsnapshot><disks>{disks}</disks></domainsnapshot>"


def put(lab: Lab, overlays: dict[str, str]) -> None:
    lab.domain.snapshotCreateXML(snapshot_xml(overlays), DISK_ONLY | NO_METADATA | ATOMIC)


def element(text: str, disk: str = DISK) -> Any:
    [found] = [one for one in ElementTree.fromstring(text).iterfind("devices/disk") if one.find("target").get("dev") == disk]  # type: ignore[union-attr]
    return found


def shape(text: str, disk: str = DISK) -> list[Any]:
    """What matters of a disk's chain in the XML: each image with its format and number, and whether the chain has an end."""
    one = element(text, disk)
    found: list[Any] = [(one.find("source").get("file"), one.find("driver").get("type"), one.find("source").get("index") is not None)]
    store = one.find("backingStore")
    while store is not None and store.find("source") is not None:
        source = store.find("source")
        found.append((source.get("file"), store.find("format").get("type"), store.get("index") is not None))
        store = store.find("backingStore")
    return [*found, "end" if store is not None else "open"]


def disks(lab: Lab) -> tuple[Any, Any]:
    live, inactive = (parse_domain(lab.domain.XMLDesc(flags)).disk(DISK) for flags in (0, INACTIVE))
    return live, inactive


@pytest.fixture
def base(lab: Lab) -> Iterator[str]:
    """The raw base of vda; whatever a test leaves on it is committed."""
    yield parse_domain(lab.domain.XMLDesc(0)).disks[0].chain[0].path
    for disk in ("vda", "vdb"):
        while len(parse_domain(lab.domain.XMLDesc(0)).disk(disk).chain) > lab.depth[disk]:  # type: ignore[union-attr]
            if not lab.domain.blockJobInfo(disk):
                chain = parse_domain(lab.domain.XMLDesc(0)).disk(disk).chain  # type: ignore[union-attr]
                lab.domain.blockCommit(disk, chain[1].path, None, 0, ACTIVE | SHALLOW)
            lab.wait_ready(disk)
            lab.domain.blockJobAbort(disk, PIVOT)


@pytest.fixture
def overlay(lab: Lab, base: str) -> str:
    """vda runs on this overlay."""
    overlays = lab.files(DISK)
    put(lab, overlays)
    return overlays[DISK]


# The snapshot


def test_at_rest_the_live_xml_tells_the_end_of_the_chain_and_the_definition_does_not(lab: Lab, base: str) -> None:
    assert shape(lab.domain.XMLDesc(0)) == [(base, "raw", True), "end"]
    assert shape(lab.domain.XMLDesc(INACTIVE)) == [(base, "raw", False), "open"]


def test_an_overlay_in_live_xml_and_definition(lab: Lab, base: str, overlay: str) -> None:
    assert shape(lab.domain.XMLDesc(0)) == [(overlay, "qcow2", True), (base, "raw", True), "end"]
    assert shape(lab.domain.XMLDesc(INACTIVE)) == [(overlay, "qcow2", False), (base, "raw", False), "open"]
    live, inactive = disks(lab)
    assert live.chain == inactive.chain == (Image("file", overlay, "qcow2"), Image("file", base, "raw"))
    assert live.mirror is inactive.mirror is None
    assert stat.S_ISREG(Path(overlay).stat().st_mode) and not Path(overlay).stat().st_mode & 0o077


def test_only_the_named_disk_is_taken_and_no_metadata_is_kept(lab: Lab, overlay: str) -> None:
    others = [disk for disk in parse_domain(lab.domain.XMLDesc(0)).disks if disk.target != DISK]
    assert all(len(disk.chain) == lab.depth[disk.target] for disk in others)
    assert lab.domain.listAllSnapshots() == []


def test_qemu_itself_tells_which_images_its_disks_write_to(lab: Lab, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_monitor, "libvirt_qemu", lab.libvirt_qemu)
    overlays = lab.files(DISK)
    ours = Overlay(DISK, base, "raw", "file", overlays[DISK])
    assert _in_qemu.in_qemu(lab.domain, ours) == InQemu(writes=False)
    assert base in _monitor.images_of_disks(lab.domain)
    put(lab, overlays)
    seen = _in_qemu.in_qemu(lab.domain, ours)
    assert (seen.writes, seen.job, len(seen.nodes)) == (True, "", 2) and seen.nodes[0].endswith("-format")
    assert overlays[DISK] in _monitor.images_of_disks(lab.domain) and base not in _monitor.images_of_disks(lab.domain)
    assert lab.code(_in_qemu.in_qemu, lab.read_only_domain(), ours) == DENIED


def test_a_file_that_is_there_is_no_place_for_an_overlay(lab: Lab, base: str) -> None:
    overlays = lab.files("vda", "vdb")
    Path(overlays["vdb"]).write_bytes(b"mine")
    assert lab.code(put, lab, overlays) == UNSUPPORTED_CONFIG
    assert Path(overlays["vdb"]).read_bytes() == b"mine" and not Path(overlays["vda"]).exists()
    assert disks(lab)[0].chain[0].path == base


def test_a_directory_that_is_not_there(lab: Lab, base: str) -> None:
    assert lab.code(put, lab, {DISK: str(lab.directory / "no" / "vda")}) == NO_FILE
    assert disks(lab)[0].chain[0].path == base


# The commit


def test_a_commit_from_begin_to_pivot(lab: Lab, base: str, overlay: str) -> None:
    assert lab.domain.blockJobInfo(DISK) == {}
    assert lab.commit_slowly(DISK, base) == 0
    job = lab.domain.blockJobInfo(DISK)
    assert (job["type"], set(job)) == (4, {"type", "bandwidth", "cur", "end"}) and 0 <= job["cur"] < job["end"]
    live, inactive = disks(lab)
    assert live.mirror == Mirror("active-commit", "", base) and inactive.mirror is None
    mirror = element(lab.domain.XMLDesc(0)).find("mirror")
    source = mirror.find("source")
    assert (mirror.get("type"), mirror.find("format").get("type"), source.get("file")) == ("file", "raw", base)
    assert source.get("index") == element(lab.domain.XMLDesc(0)).find("backingStore").get("index")
    # What the commit does to the chain is not seen before the pivot.
    assert live.chain == inactive.chain == (Image("file", overlay, "qcow2"), Image("file", base, "raw"))
    assert lab.code(lab.domain.blockJobAbort, DISK, PIVOT) == _numbers.VIR_ERR_BLOCK_COPY_ACTIVE
    assert lab.code(lab.domain.blockCommit, DISK, base, None, 0, ACTIVE | SHALLOW) == _numbers.VIR_ERR_BLOCK_COPY_ACTIVE
    lab.wait_ready(DISK)
    job = lab.domain.blockJobInfo(DISK)
    assert job["cur"] == job["end"] and disks(lab)[0].mirror == Mirror("active-commit", "yes", base)
    assert lab.code(lab.domain.blockCommit, DISK, base, None, 0, ACTIVE | SHALLOW) == _numbers.VIR_ERR_BLOCK_COPY_ACTIVE
    assert lab.domain.blockJobAbort(DISK, PIVOT) == 0
    assert lab.domain.blockJobInfo(DISK) == {}
    assert shape(lab.domain.XMLDesc(0)) == [(base, "raw", True), "end"]
    assert shape(lab.domain.XMLDesc(INACTIVE)) == [(base, "raw", False), "open"]
    assert Path(overlay).exists(), "libvirt leaves the overlay"


def test_a_commit_that_is_given_up_leaves_the_disk_on_its_overlay(lab: Lab, base: str, overlay: str) -> None:
    lab.commit_slowly(DISK, base)
    assert lab.domain.blockJobAbort(DISK, 0) == 0
    assert lab.domain.blockJobInfo(DISK) == {}
    assert shape(lab.domain.XMLDesc(0)) == [(overlay, "qcow2", True), (base, "raw", True), "end"]
    assert disks(lab)[0].mirror is None


def test_what_is_no_commit(lab: Lab, base: str) -> None:
    assert lab.code(lab.domain.blockCommit, DISK, base, None, 0, ACTIVE | SHALLOW) == INVALID_ARG  # it is on its base
    assert lab.code(lab.domain.blockCommit, "vdz", base, None, 0, ACTIVE | SHALLOW) == INVALID_ARG
    assert lab.code(lab.domain.blockJobAbort, DISK, PIVOT) == lab.code(lab.domain.blockJobAbort, DISK, 0) == INVALID_ARG


def test_a_commit_names_its_base_and_that_it_is_active(lab: Lab, base: str, overlay: str) -> None:
    assert lab.code(lab.domain.blockCommit, DISK, "/elsewhere", None, 0, ACTIVE | SHALLOW) == INVALID_ARG
    assert lab.code(lab.domain.blockCommit, DISK, base, None, 0, SHALLOW) == INVALID_ARG
    assert lab.domain.blockJobInfo(DISK) == {}


def test_no_second_snapshot_during_a_commit(lab: Lab, base: str, overlay: str) -> None:
    lab.commit_slowly(DISK, base)
    overlays = lab.files(DISK)
    assert lab.code(put, lab, overlays) == _numbers.VIR_ERR_BLOCK_COPY_ACTIVE
    assert not Path(overlays[DISK]).exists()


def test_a_snapshot_on_top_of_an_overlay(lab: Lab, base: str, overlay: str) -> None:
    users = lab.files(DISK)
    put(lab, users)
    assert shape(lab.domain.XMLDesc(0)) == [(users[DISK], "qcow2", True), (overlay, "qcow2", True), (base, "raw", True), "end"]


def test_a_domain_that_is_shut_off(lab: Lab) -> None:
    # libvirt 9.0 looks for the base before it looks whether the domain runs.
    assert lab.code(lab.inactive.blockCommit, DISK, "/base", None, 0, ACTIVE | SHALLOW) in (INVALID_ARG, _numbers.VIR_ERR_OPERATION_INVALID)
    assert lab.code(lab.inactive.blockJobAbort, DISK, PIVOT) == _numbers.VIR_ERR_OPERATION_INVALID
    assert lab.code(lab.inactive.blockJobInfo, DISK) == _numbers.VIR_ERR_OPERATION_INVALID
    assert lab.inactive.listAllSnapshots() == []


@pytest.mark.parametrize("kind", ["domain", "inactive"])
def test_no_memory_is_saved(lab: Lab, kind: str) -> None:
    domain = getattr(lab, kind)
    assert domain.hasManagedSaveImage() == 0
    assert lab.code(domain.managedSaveGetXMLDesc) == _numbers.VIR_ERR_OPERATION_INVALID


# The definition


def test_a_definition_can_be_put_back_on_its_base(lab: Lab, base: str) -> None:
    original = lab.domain.XMLDesc(INACTIVE | SECURE)
    put(lab, lab.files(DISK))
    on_overlay = lab.domain.XMLDesc(INACTIVE | SECURE)
    lab.connection.defineXML(with_disk_source(on_overlay, DISK, original))
    live, inactive = disks(lab)
    assert inactive.chain == (Image("file", base, "raw"),) and len(live.chain) == 2
    assert shape(lab.domain.XMLDesc(INACTIVE)) == shape(original)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("snapshotCreateXML", ("<domainsnapshot/>", DISK_ONLY | NO_METADATA)),
        ("blockCommit", (DISK, None, None, 0, ACTIVE | SHALLOW)),
        ("blockJobAbort", (DISK, PIVOT)),
    ],
)
def test_a_read_only_connection_changes_nothing(lab: Lab, method: str, arguments: tuple[Any, ...]) -> None:
    assert lab.code(getattr(lab.read_only_domain(), method), *arguments) == DENIED


def test_a_read_only_connection_sees_what_check_mode_looks_at(lab: Lab) -> None:
    domain = lab.read_only_domain()
    assert domain.hasManagedSaveImage() == 0 and domain.listAllSnapshots() == []
    assert "<domain" in domain.XMLDesc(INACTIVE)
