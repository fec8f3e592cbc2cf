# SPDX-License-Identifier: GPL-3.0-or-later
"""Unit tests run on the fake libvirt, never on the real one."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

from .support.fake import libvirt

if sys.modules.setdefault("libvirt", libvirt) is not libvirt:
    raise pytest.UsageError("the unit tests need a process of their own: the real libvirt is loaded")
libvirt_qemu = ModuleType("libvirt_qemu")
libvirt_qemu.qemuMonitorCommand = libvirt.qemuMonitorCommand  # type: ignore[attr-defined]
sys.modules.setdefault("libvirt_qemu", libvirt_qemu)

# These import the plugins, and those import libvirt.
from ansible_collections.virtops.live_backup.plugins.module_utils._capture import capture as _capture, legacy as _snapshot
from ansible_collections.virtops.live_backup.plugins.module_utils._claim import places as _places
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor import processes as _process
from ansible_collections.virtops.live_backup.plugins.module_utils._operations import begin as _begin
from ansible_collections.virtops.live_backup.plugins.module_utils._overlay import look as _look, way_back as _commit
from ansible_collections.virtops.live_backup.plugins.module_utils._recovery import repairs as _undo

from .support.backup import UUID, Backup, Killed
from .support.clock import FakeClock

# A busy machine is no defect, and a run says the same as the one before, unless everything is to be tried.
settings.register_profile("sample", deadline=None, database=None, derandomize=True)
settings.register_profile("all", deadline=None, database=None, max_examples=2000)
set_hypothesis_home_dir(Path(__file__).parents[2] / ".build/hypothesis")
settings.load_profile("all" if os.environ.get("LIVE_BACKUP_TEST_ALL") else "sample")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the claims; not there yet, as on a new hypervisor."""
    directory = tmp_path / "claims"
    monkeypatch.setattr(_places, "CLAIMS", directory)
    return directory


@pytest.fixture
def outside_libvirt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Processes that a test starts get a libvirt that writes its calls to this file."""
    log = tmp_path / "libvirt-calls"
    monkeypatch.setenv("PYTHONPATH", str(Path(libvirt.__file__).with_name("outside")))
    monkeypatch.setenv("FAKE_LIBVIRT_LOG", str(log))
    return log


@pytest.fixture
def backup(tmp_path: Path, claims: Path, clock: FakeClock, outside_libvirt: Path, monkeypatch: pytest.MonkeyPatch) -> Backup:
    """A running domain without agent, and an empty target."""
    # A scope of systemd's would not change what is tested, and needs rights.
    which = shutil.which
    monkeypatch.setattr("shutil.which", lambda name: None if name == "systemd-run" else which(name))
    target = tmp_path / "target"
    target.mkdir()
    domain = libvirt.DomainState("db1", UUID)
    libvirt.host = libvirt.Host(domain, clock=clock)
    monkeypatch.setattr(_process, "RECORDS", tmp_path / "records")
    for module in (_capture, _commit, _look, _snapshot, _undo):
        monkeypatch.setattr(module, "qemu_instance", libvirt.host.instance)
    for module in (_commit, _look):
        monkeypatch.setattr(module, "daemon_instance", libvirt.host.daemon)
    # A process of its own would not know the fake. The guard has tests of its own.
    monkeypatch.setattr(_begin, "guard_overlays", lambda claim, clock: None)
    undo = _undo._undo
    monkeypatch.setattr(_undo, "_undo", lambda *run: None if isinstance(run[3], Killed) else undo(*run))
    return Backup(domain, target, claims, clock, outside_libvirt)


@pytest.fixture
def capture(backup: Backup) -> Backup:
    """A domain whose disks are small real images, and which can be put on overlays; its events come without delay."""
    images = backup.target.with_name("images")
    images.mkdir()
    for number, target in enumerate(("vda", "vdb")):
        backup.domain.disks[target] = str(images / f"{target}.raw")
        with open(backup.domain.disks[target], "wb") as image:
            image.truncate(backup.domain.capacity)
        backup.domain.write(target, 0, number + 1)
    return backup


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a shell script in ssh's place; `$command` is what the far shell is given."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def install(script: str) -> None:
        (programs / "ssh").write_text(f"#!/bin/sh\nfor command; do :; done\n{script}\n", encoding="utf-8")
        (programs / "ssh").chmod(0o755)

    install('eval "$command"')
    return install


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many inputs were generated."""
    # That a fixture was taken down well is of no category.
    reports = [report for category in terminalreporter.stats.values() for report in category if isinstance(report, pytest.TestReport)]
    tried = sum(int(str(value)) for one in reports if one.when == "teardown" for name, value in one.user_properties if name == "inputs")
    if tried:
        terminalreporter.write_line(f"{tried} generated inputs")
