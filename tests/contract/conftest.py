# SPDX-License-Identifier: GPL-3.0-or-later
"""The same lab twice: the fake libvirt, and the real one of a rig hypervisor."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import libvirt
import libvirt_qemu
import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.domain_xml import parse_domain
from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor
from tests.rig.shell import wait_until
from tests.unit.support.fake import libvirt as fake_libvirt

_numbers = count(1)

# The disks of the real domain, how much of each holds data, and what must be left to copy of one that is held back.
SIZE, FILL, HELD_BACK = 512 << 20, 384 << 20, 256 << 20


class Lab:
    """A hypervisor with one running domain whose agent answers, and one that is shut off."""

    libvirt: Any
    libvirt_qemu: Any
    uuid: str
    inactive_uuid: str
    uri: str
    readonly_uri: str

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.connection = self.libvirt.open(self.uri)
        self.domain = self.connection.lookupByUUIDString(self.uuid)
        self.inactive = self.connection.lookupByUUIDString(self.inactive_uuid)
        # How many images each disk has at rest.
        self.depth = {disk.target: len(disk.chain) for disk in parse_domain(self.domain.XMLDesc(0)).disks}

    def read_only_domain(self) -> Any:
        return self.libvirt.openReadOnly(self.readonly_uri).lookupByUUIDString(self.uuid)

    def files(self, *disks: str) -> dict[str, str]:
        """Files that do not exist, for these disks."""
        number = next(_numbers)
        return {disk: str(self.directory / f"{number}-{disk}") for disk in disks}

    def code(self, call: Any, *arguments: Any) -> int:
        """The number of the error that a call raises."""
        with pytest.raises(self.libvirt.libvirtError) as caught:
            call(*arguments)
        return caught.value.get_error_code()

    def begin_slowly(self, targets: dict[str, str]) -> None:
        """Begin a backup of vda, and perhaps others, that does not end before it is told to."""
        raise NotImplementedError

    def end_job(self) -> None:
        """Let the running job complete, and wait until it has."""
        raise NotImplementedError

    def commit_slowly(self, disk: str, base: str) -> int:
        """Begin an active commit that does not become ready before it is waited for."""
        raise NotImplementedError

    def wait_ready(self, disk: str) -> None:
        """Let a commit go on, and wait until it can be pivoted."""
        raise NotImplementedError

    def wait_idle(self) -> None:
        """Wait until no job runs."""
        raise NotImplementedError

    def vanished_domain(self) -> Any:
        """A handle on a domain that is there no more."""
        raise NotImplementedError

    def pause(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.connection.close()


class FakeLab(Lab):
    """The fake."""

    libvirt = libvirt_qemu = fake_libvirt
    uri = readonly_uri = "qemu:///system"

    def __init__(self, directory: Path) -> None:
        self.uuid, self.inactive_uuid = str(uuid4()), str(uuid4())
        disks = {disk: str(directory / f"{disk}.raw") for disk in ("vda", "vdb", "vdc")}
        for path in disks.values():
            with open(path, "wb") as image:
                image.truncate(1 << 20)
        fake_libvirt.host = fake_libvirt.Host(
            fake_libvirt.DomainState("running", self.uuid, disks, agent="answers"),
            fake_libvirt.DomainState("off", self.inactive_uuid, state=fake_libvirt.VIR_DOMAIN_SHUTOFF, reason=0),
        )
        super().__init__(directory)

    def _state(self) -> fake_libvirt.DomainState:
        return fake_libvirt.host.domains[self.uuid]

    def begin_slowly(self, targets: dict[str, str]) -> None:
        self.domain.backupBegin(push_xml(targets), None, 0)

    def end_job(self) -> None:
        self._state().end_job()

    def commit_slowly(self, disk: str, base: str) -> int:
        return self.domain.blockCommit(disk, base, None, 0, 5)

    def wait_ready(self, disk: str) -> None:
        while not self._state().commits[disk].ready:
            fake_libvirt.host.turn()

    def wait_idle(self) -> None:
        fake_libvirt.host.turn()
        assert self.domain.jobStats() == {"type": 0}

    def vanished_domain(self) -> Any:
        gone = fake_libvirt.DomainState("gone", str(uuid4()))
        fake_libvirt.host.domains[gone.uuid] = gone
        domain = self.connection.lookupByUUIDString(gone.uuid)
        del fake_libvirt.host.domains[gone.uuid]
        return domain

    def pause(self) -> None:
        self._state().state = fake_libvirt.VIR_DOMAIN_PAUSED


class RealLab(Lab):
    """libvirt and QEMU."""

    libvirt, libvirt_qemu = libvirt, libvirt_qemu

    def __init__(self, hypervisor: Hypervisor, running: Guest, off: Guest) -> None:
        self.hypervisor, self.running = hypervisor, running
        self.uuid, self.inactive_uuid = running.uuid, off.uuid
        self.uri = hypervisor.libvirt_uri_outside
        self.readonly_uri = f"{self.uri}-ro"
        directory = hypervisor.directory / "targets"
        directory.mkdir()
        libvirt.registerErrorHandler(lambda context, error: None, None)
        super().__init__(directory)

    def begin_slowly(self, targets: dict[str, str]) -> None:
        # A job cannot be slow from its beginning, so a fast machine may win the race; vda holds the most data.
        for _attempt in range(10):
            self.domain.backupBegin(push_xml(targets), None, 0)
            with contextlib.suppress(libvirt.libvirtError):
                self.domain.blockJobSetSpeed("vda", 1, libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES)
                info = self.domain.blockJobInfo("vda")
                # QEMU still copies what it has in hand, at most 64 MiB.
                if info and info["end"] - info["cur"] > HELD_BACK:
                    return
                self.domain.abortJob()
            self.wait_idle()
            self.domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
            for path in targets.values():
                Path(path).unlink(missing_ok=True)
        raise AssertionError("every job was over before it could be held back")

    def end_job(self) -> None:
        with contextlib.suppress(libvirt.libvirtError):  # it is over already
            self.domain.blockJobSetSpeed("vda", 0, 0)
        self.wait_idle()

    def commit_slowly(self, disk: str, base: str) -> int:
        # The guest's writes wait in the overlay until the bandwidth allows them.
        target = self.running.durable() + 100
        self.running.wait_durable(target)
        return self.domain.blockCommit(disk, base, None, 1, 5 | self.libvirt.VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES)

    def wait_ready(self, disk: str) -> None:
        self.domain.blockJobSetSpeed(disk, 0, 0)
        wait_until(lambda: "ready='yes'" in self.domain.XMLDesc(0), 60, "the commit to be ready")

    def wait_idle(self) -> None:
        wait_until(lambda: self.domain.jobStats() == {"type": 0}, 60, "the end of the job")

    def vanished_domain(self) -> Any:
        guest = self.hypervisor.guest(f"gone{next(_numbers)}", "shut-off")
        domain = self.connection.lookupByUUIDString(guest.uuid)
        guest.remove()
        return domain

    def pause(self) -> None:
        self.domain.suspend()


def push_xml(targets: dict[str, str]) -> str:
    disks = "".join(
        f"<disk name='{disk}' type='file'><target file='{path}'/><driver type='qcow2'/></disk>" for disk, path in targets.items()
    )
    return f"<domainbackup mode='push'><disks>{disks}</disks></domainbackup>"


@pytest.fixture(scope="module", params=["fake", "real"])
def shared_lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One lab for all tests of a module."""
    if request.param == "fake":
        fake = FakeLab(tmp_path_factory.mktemp("targets"))
        yield fake
        fake.close()
        return
    made = Hypervisor(f"contract-{os.getpid()}")
    try:
        hypervisor = Hypervisor.up(made.name)
        # Large enough that a backup can be held back before it is over.
        running = hypervisor.guest("running", "several", rate=50, size=SIZE, fill=FILL)
        real = RealLab(hypervisor, running, hypervisor.guest("off", "shut-off"))
        yield real
        real.close()
    finally:
        made.down()


@pytest.fixture
def lab(shared_lab: Lab) -> Iterator[Lab]:
    """The lab at rest, before a test and after it."""
    domain, names = shared_lab.domain, shared_lab.libvirt
    yield shared_lab
    if domain.state()[0] == names.VIR_DOMAIN_PAUSED:
        domain.resume()
    domain.fsThaw()
    if domain.jobStats() != {"type": 0}:
        domain.abortJob()
        shared_lab.wait_idle()
    domain.jobStats(names.VIR_DOMAIN_JOB_STATS_COMPLETED)
