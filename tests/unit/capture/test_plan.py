# SPDX-License-Identifier: GPL-3.0-or-later
"""Which method, which disks, how much room."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._base.space import bytes_needed
from ansible_collections.virtops.live_backup.plugins.module_utils._capture.choice import choose_method
from ansible_collections.virtops.live_backup.plugins.module_utils._capture.plan import choose_disks, occupied_by
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.domain_xml import Disk, Domain, Image
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.versions import HostVersions, version_text


def disk(target: str, device: str = "disk", *, readonly: bool = False, shareable: bool = False, empty: bool = False) -> Disk:
    chain = () if empty else (Image("file", f"/{target}", "raw"),)
    return Disk(target, device, "virtio", chain, readonly=readonly, shareable=shareable, transient=False)


def domain(*disks: Disk) -> Domain:
    return Domain("db1", "u-1", disks, nvram="", agent="absent", qemu_user=None, secrets=())


@pytest.mark.parametrize(("number", "text"), [(9_000_000, "9.0.0"), (7_002_019, "7.2.19"), (11_010_000, "11.10.0"), (1_002_009, "1.2.9")])
def test_version_text(number: int, text: str) -> None:
    assert version_text(number) == text


@pytest.mark.parametrize(
    ("libvirt", "qemu", "active", "method"),
    [
        (9_000_000, 7_002_000, True, "push"),
        (7_002_000, 4_002_000, True, "push"),
        (7_001_999, 4_002_000, True, "legacy"),
        (7_002_000, 4_001_999, True, "legacy"),
        (7_000_000, 5_002_000, True, "legacy"),
        (9_000_000, 7_002_000, False, "offline"),
        (7_000_000, 5_002_000, False, "offline"),
    ],
)
def test_method_by_version(libvirt: int, qemu: int, active: bool, method: str) -> None:
    chosen, reason = choose_method(HostVersions(libvirt, qemu), active=active)
    assert chosen == method
    assert ("shut off" in reason) == (not active)
    if active:
        assert version_text(libvirt) in reason and version_text(qemu) in reason


@pytest.mark.parametrize(
    ("disks", "exclude", "chosen", "skipped"),
    [
        ([disk("vda"), disk("vdb")], [], ["vda", "vdb"], {}),
        ([disk("vda"), disk("vdb")], ["vda"], ["vdb"], {"vda": "excluded"}),
        ([disk("vda"), disk("sda", "cdrom"), disk("fda", "floppy")], [], ["vda"], {"sda": "cdrom", "fda": "floppy"}),
        ([disk("vda"), disk("vdb", readonly=True), disk("vdc", empty=True)], [], ["vda"], {"vdb": "read-only", "vdc": "empty"}),
        ([disk("vda"), disk("sda", "lun")], ["sda"], ["vda"], {"sda": "excluded"}),
        ([disk("vda"), disk("sda", "cdrom")], ["sda"], ["vda"], {"sda": "excluded"}),
    ],
)
def test_chosen_and_skipped_disks(disks: list[Disk], exclude: list[str], chosen: list[str], skipped: dict[str, str]) -> None:
    taken, left = choose_disks(domain(*disks), exclude, [])
    assert [one.target for one in taken] == chosen
    assert {one["target"]: one["reason"] for one in left} == skipped


def test_the_metadatas_exclusions_count_where_nothing_else_is_excluded() -> None:
    both = domain(disk("vda"), disk("vdb"), disk("vdc"))
    taken, left = choose_disks(both, None, ["vdb"])
    assert [one.target for one in taken] == ["vda", "vdc"] and left == [{"target": "vdb", "reason": "excluded by the domain's metadata"}]
    assert choose_disks(both, [], ["vdb"])[1] == []
    taken, left = choose_disks(both, ["vdc"], ["vdb"])
    assert [one.target for one in taken] == ["vda", "vdb"] and left == [{"target": "vdc", "reason": "excluded"}]
    with pytest.raises(LiveBackupError, match="has no disk vdz to exclude"):
        choose_disks(both, None, ["vdz"])


@pytest.mark.parametrize(
    ("disks", "exclude", "parts"),
    [
        ([disk("vda")], ["vdb"], ["no disk vdb", "it has vda"]),
        ([], ["vdb"], ["no disk vdb", "no disks"]),
        ([], [], ["No disk", "it has none"]),
        ([disk("sda", "cdrom")], [], ["No disk", "sda is cdrom"]),
        ([disk("vda")], ["vda"], ["No disk", "vda is excluded"]),
        ([disk("vda"), disk("sda", "lun")], [], ["sda", "lun", "exclude_disks"]),
        ([disk("vda", shareable=True)], [], ["vda", "shareable", "exclude_disks"]),
    ],
)
def test_disks_that_fail_the_domain(disks: list[Disk], exclude: list[str], parts: list[str]) -> None:
    with pytest.raises(LiveBackupError) as caught:
        choose_disks(domain(*disks), exclude, [])
    assert all(part in caught.value.msg for part in [*parts, "'db1'"]), caught.value.msg


@pytest.mark.parametrize(("capacity", "allocation", "needed"), [(100, 0, 0), (100, 50, 55), (100, 91, 100), (100, 300, 100), (100, 9, 9)])
def test_bytes_needed(capacity: int, allocation: int, needed: int) -> None:
    assert bytes_needed(capacity, allocation) == needed


@given(st.integers(0, 2**60), st.integers(0, 2**60))
def test_bytes_needed_is_at_least_the_data_and_at_most_the_capacity(capacity: int, allocation: int) -> None:
    needed = bytes_needed(capacity, allocation)
    assert min(capacity, allocation) <= needed <= capacity
    assert needed == capacity or needed * 10 > allocation * 11 - 10


@pytest.mark.parametrize(
    ("job", "block_jobs", "parts"),
    [
        (None, [], []),
        ({"operation": "outgoing migration"}, [], ["outgoing migration"]),
        (None, [{"type": "copy", "disk": "vda"}, {"type": "commit", "disk": "vdb"}], ["copy on vda", "commit on vdb"]),
        ({"operation": "save"}, [{"type": "copy", "disk": "vda"}], ["save"]),
    ],
)
def test_occupied_by(job: Any, block_jobs: list[dict[str, Any]], parts: list[str]) -> None:
    said = occupied_by(job, block_jobs)
    assert bool(said) == bool(parts) and all(part in said for part in parts)
