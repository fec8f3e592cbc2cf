# SPDX-License-Identifier: GPL-3.0-or-later
"""A backup of a domain of the fake hypervisor, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.virtops.live_backup.plugins.module_utils._operations.abort import abort_job
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.begin import begin_backup, snapshot_disks
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.commit import commit_overlays
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.copy import sparse_copy
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.publish import publish_set
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.recover import recover
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.wait import wait_for_job

from .clock import FakeClock
from .fake import libvirt

UUID = "8e6d5a2e-6c44-4c8d-9d3c-0e1f8a6f7b11"

# What only a target on another host needs.
REMOTE: dict[str, Any] = {"staging_dir": None, "ssh_key": None, "ssh_options": [], "keep_formats": ["raw", "qcow2"]}

# The plan in a claim, of a backup of no disks.
PLAN: dict[str, Any] = {
    **dict.fromkeys(["disks", "not_captured", "skipped", "sources"], []),
    **dict.fromkeys(["method_reason", "nvram", "agent", "state"], ""),
    **{"device": 1, "bytes_needed_here": 0, "freezes": False, "versions": {"libvirt": "9.0.0", "qemu": "7.2.0"}},
    "server": {"target": "/t", "ssh_key": None, "ssh_options": []},
}


class Killed(BaseException):
    """Nothing of the run goes on after this."""


@dataclass
class Backup:
    """A domain, a target, and the operations as the modules call them."""

    domain: libvirt.DomainState
    target: Path
    claims: Path
    clock: FakeClock
    thaws: Path

    def begin(self, check: bool = False, **options: Any) -> dict[str, Any]:
        defaults = {
            "method": "push",
            "overlay_dir": None,
            "exclusive": False,
            "exclude_disks": [],
            "format": "qcow2",
            "quiesce": "auto",
            "freeze_timeout": 5,
            "hook_timeout": None,
            "parallel": 0,
            "at": None,
            "target": str(self.target),
            **REMOTE,
        }
        return begin_backup(self._params(defaults, options), check, self.clock)

    def snapshot(self, check: bool = False, **options: Any) -> dict[str, Any]:
        defaults = {
            "exclude_disks": [],
            "quiesce": "auto",
            "freeze_timeout": 5,
            "hook_timeout": None,
            "parallel": 0,
            "at": None,
            "target": str(self.target),
            "overlay_dir": None,
            **REMOTE,
        }
        return snapshot_disks(self._params(defaults, options), check, self.clock)

    def copy(self, check: bool = False, **options: Any) -> dict[str, Any]:
        defaults = {
            "format": "keep",
            "compress": "none",
            "find_zeroes": False,
            "bandwidth": None,
            "bandwidth_total": None,
            "latency_limit": 0,
        }
        defaults |= {"src": None, "src_format": None, "dest": None, "ssh_key": None, "ssh_options": [], "mode": "0600"}
        return sparse_copy(self._params(defaults, options), check, self.clock)

    def commit(self, check: bool = False, **options: Any) -> dict[str, Any]:
        return commit_overlays(self._params({"disks": None, "timeout": 60}, options), check, self.clock)

    def wait(self, check: bool = False, **options: Any) -> dict[str, Any]:
        return wait_for_job(self._params({"timeout": 100, "on_timeout": "fail"}, options), check, self.clock)

    def publish(self, check: bool = False, **options: Any) -> dict[str, Any]:
        remote = {"staging_dir": None, "ssh_key": None, "ssh_options": [], "group": None, "consolidate_at": 0}
        return publish_set(self._params({"target": str(self.target), **remote}, options), check, self.clock)

    def recover(self, check: bool = False, **options: Any) -> dict[str, Any]:
        return recover(self._params({"backup_id": None, "take_over": False, "base_untouched": False}, options), check, self.clock)

    def abort(self, check: bool = False, **options: Any) -> dict[str, Any]:
        return abort_job(self._params({"timeout": 60}, options), check, self.clock)

    def _params(self, defaults: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        return {"uri": "qemu:///system", "domain": self.domain.name, "backup_id": "night-1", **defaults, **options}

    def finished(self) -> dict[str, Any]:
        """Begun, ended well, and waited for."""
        self.begin()
        self.domain.end_job()
        return self.wait()

    @property
    def partial(self) -> Path:
        return self.target / self.domain.name / ".night-1.partial"

    @property
    def final(self) -> Path:
        return self.target / self.domain.name / "night-1"

    def tree(self) -> set[str]:
        """Everything below the target."""
        return {str(path.relative_to(self.target)) for path in self.target.rglob("*")}

    def claim_files(self) -> list[str]:
        return sorted(path.name for path in self.claims.iterdir()) if self.claims.exists() else []

    def watchdog_calls(self) -> list[str]:
        """What the watchdogs, which are processes of their own, asked of libvirt."""
        return self.thaws.read_text(encoding="utf-8").splitlines() if self.thaws.exists() else []

    def connection(self) -> libvirt.virConnect:
        """Somebody else's connection."""
        return libvirt.open("qemu:///system")

    def images(self) -> list[str]:
        """What lies beside the disks, and in their directory."""
        return sorted(path.name for path in self.target.with_name("images").iterdir())

    def assert_on_bases(self) -> None:
        """Every disk is on its base, live and defined; no job and no overlay is left, nor a copy of a claim that has ended."""
        domain = self.domain
        for target, path in domain.disks.items():
            assert domain.chain(target) == domain.chain(target, inactive=True) == [(path, "raw")]
        copies = [f"{domain.uuid}.night-1.claim"] if self.claim_files() else []
        assert not domain.commits and self.images() == sorted([*copies, *(Path(path).name for path in domain.disks.values())])

    def assert_nothing_left(self) -> None:
        assert self.tree() == set() and self.claim_files() == []
        assert self.domain.job is None and not self.domain.frozen
