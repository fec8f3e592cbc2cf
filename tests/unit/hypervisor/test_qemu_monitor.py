# SPDX-License-Identifier: GPL-3.0-or-later
"""What QEMU's answers at its monitor mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.overlays import Overlay
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor import qemu_monitor as _monitor
from ansible_collections.virtops.live_backup.plugins.module_utils._overlay import in_qemu as _in_qemu
from ansible_collections.virtops.live_backup.plugins.module_utils._overlay.decide import InQemu

OVERLAY = Overlay("vda", "/images/base.raw", "raw", "file", "/images/uuid.vda.n1.overlay")
COPY_ON_READ = "json:" + json.dumps(
    {"driver": "copy-on-read", "file": {"driver": "qcow2", "file": {"driver": "file", "filename": OVERLAY.path}}}
)


class Domain:
    """Of a domain its name is wanted."""

    def name(self) -> str:
        return "db1"


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Sets what QEMU answers to each command; gives what it was asked."""
    asked: list[dict[str, Any]] = []

    def install(**given: Any) -> list[dict[str, Any]]:
        def command(domain: Domain, text: str, flags: int) -> str:
            asked.append(json.loads(text))
            return json.dumps(given[asked[-1]["execute"].replace("-", "_")])

        monkeypatch.setattr(_monitor.libvirt_qemu, "qemuMonitorCommand", command)
        return asked

    return install


def drives(*images: str) -> dict[str, Any]:
    """An empty drive, and one on each image."""
    return {"return": [{"device": ""}, *({"inserted": {"image": {"filename": image}}} for image in images)]}


def nodes(*named: tuple[str, str, str]) -> dict[str, Any]:
    return {"return": [{"node-name": name, "drv": driver, "file": file} for name, driver, file in named]}


@pytest.mark.parametrize("image", [OVERLAY.path, COPY_ON_READ])
def test_an_overlay_that_a_disk_is_on(image: str, answers: Callable[..., Any]) -> None:
    named = nodes(("s", "file", OVERLAY.path), ("f", "qcow2", image), ("#block7", "qcow2", OVERLAY.path), ("b", "raw", OVERLAY.base))
    jobs = {"return": [{"device": "live-backup-vda", "ready": True}, {"device": "live-backup-vdb", "ready": False}]}
    answers(query_block=drives("/images/other.raw", image), query_block_jobs=jobs, query_named_block_nodes=named)
    assert _in_qemu.in_qemu(Domain(), OVERLAY) == InQemu(True, "ready", ("f", "s"))


def test_a_format_that_qemu_describes_without_its_end_is_closed_before_its_file(answers: Callable[..., Any]) -> None:
    cut = "json:" + json.dumps({"backing": {"driver": "raw"}, "driver": "qcow2"})[:30]
    named = nodes(
        ("libvirt-21-storage", "file", OVERLAY.path), ("libvirt-21-format", "qcow2", cut), ("libvirt-2-format", "raw", OVERLAY.base)
    )
    answers(query_named_block_nodes=named)
    assert _monitor.open_nodes(Domain(), OVERLAY.path) == ("libvirt-21-format", "libvirt-21-storage")


@pytest.mark.parametrize("image", ["/images/elsewhere.raw", COPY_ON_READ[:60]])
def test_nothing_is_decided_where_it_is_on_neither(image: str, answers: Callable[..., Any]) -> None:
    answers(query_block=drives(image))
    with pytest.raises(LiveBackupError, match="Neither is touched"):
        _in_qemu.in_qemu(Domain(), OVERLAY)


def test_the_commit_names_both_ends(answers: Callable[..., Any]) -> None:
    """Without a base QEMU would commit down to the bottom of a chain, which others may share."""
    named = nodes(("s", "file", OVERLAY.path), ("f", "qcow2", OVERLAY.path), ("b", "file", OVERLAY.base), ("r", "raw", OVERLAY.base))
    asked = answers(query_named_block_nodes=named, block_commit={"return": {}})
    _in_qemu.commit_in_qemu(Domain(), OVERLAY)
    assert asked[-1] == {"execute": "block-commit", "arguments": {"job-id": "live-backup-vda", "device": "f", "base-node": "r"}}
    answers(query_named_block_nodes=nodes(("f", "qcow2", OVERLAY.path)))
    with pytest.raises(LiveBackupError, match="by no name"):
        _in_qemu.commit_in_qemu(Domain(), OVERLAY)


def test_what_qemu_refuses_is_an_error(answers: Callable[..., Any]) -> None:
    answers(block_job_complete={"error": {"class": "DeviceNotActive", "desc": "Block job 'live-backup-vda' not found"}})
    with pytest.raises(LiveBackupError, match="QEMU of domain 'db1' refuses block-job-complete: Block job 'live-backup-vda' not found"):
        _in_qemu.pivot_in_qemu(Domain(), OVERLAY)
