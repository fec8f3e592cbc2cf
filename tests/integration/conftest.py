# SPDX-License-Identifier: GPL-3.0-or-later
"""Run modules and playbooks on a hypervisor of the rig, as Ansible would."""

from __future__ import annotations

import importlib
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.faults import faulty
from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor, Inside
from tests.rig.oracle import Verdict, judge
from tests.rig.shell import wait_until

pytest_plugins = ["tests.rig.fixtures"]

REPOSITORY = Path(__file__).parents[2]
_numbers = count(1)

# What a large guest's disks hold: enough to hold its backup back before it ends.
FILL = 384 << 20
# A sample of the sweeps and repetitions, or all of them.
ALL = bool(os.environ.get("LIVE_BACKUP_TEST_ALL"))
REPETITIONS = 20 if ALL else 2
# What "make sanity" has made of other versions of ansible-core.
CORES = [path.parent for path in (REPOSITORY / ".build").glob("venv-core-*/made")]
# How a module ends that was killed: itself, or seen through what runs it inside a hypervisor.
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
at_length = pytest.mark.skipif(not ALL, reason="only by make test-all: it takes long")

# One process, ready before the job begins: on a busy machine a job can be over before a virsh has started.
_HOLD_BACK = """
import sys, time, libvirt
libvirt.registerErrorHandler(lambda context, error: None, None)
domain = libvirt.open("qemu:///system").lookupByUUIDString(sys.argv[1])
print("ready", flush=True)
while True:
    try:
        domain.blockJobSetSpeed("vda", 128 << 10, libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES)
        break
    except libvirt.libvirtError:
        time.sleep(0.001)
"""


@dataclass
class Backup:
    """A guest and a target, and the steps of its backup as module calls."""

    hypervisor: Hypervisor
    guest: Guest
    target: Path
    backup_id: str

    def module(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        """The result of a module, as Ansible would see it."""
        return result_of(self.start_module(name, **arguments))

    def start_module(self, name: str, /, *, check: bool = False, fault: str = "", as_user: str = "root", **arguments: Any) -> Inside:
        """A module under way; `fault` is one of tests/faults/faulty.py."""
        module = f"ansible_collections.virtops.live_backup.plugins.modules.{name}"
        # Most of a module's time is that of its imports.
        importlib.import_module(module)

        def run() -> None:
            os.setgroups([])
            os.setresuid(*[pwd.getpwnam(as_user).pw_uid] * 3)
            faulty.run(fault, module)

        process = self.hypervisor.fork(run, {"PYTHONPATH": str(REPOSITORY / ".build/tree")}, stdin=-1, stdout=-1, stderr=-1)
        assert process.stdin is not None
        process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check}}))
        process.stdin.close()
        process.stdin = None
        return process

    def begin(self, **options: Any) -> dict[str, Any]:
        return self.module("libvirt_backup_begin", **{**self.asked, **options})

    def wait(self, **options: Any) -> dict[str, Any]:
        return self.module("libvirt_job_wait", **{"domain": self.guest.name, "backup_id": self.backup_id, **options})

    def publish(self, **options: Any) -> dict[str, Any]:
        return self.module("backup_set_publish", **{**self.asked, **options})

    def snapshot(self, **options: Any) -> dict[str, Any]:
        return self.module("libvirt_disk_snapshot", **{**self.asked, **options})

    def copy(self, **options: Any) -> dict[str, Any]:
        return self.module("sparse_copy", **{"domain": self.guest.name, "backup_id": self.backup_id, **options})

    def commit(self, **options: Any) -> dict[str, Any]:
        return self.module("libvirt_blockcommit", **{"domain": self.guest.name, "backup_id": self.backup_id, **options})

    def run_legacy(self, **options: Any) -> dict[str, Any]:
        """All four steps; the result of the last."""
        for result in (self.snapshot(**options), self.copy(), self.commit()):
            assert "failed" not in result, result
        result = self.publish()
        assert "failed" not in result, result
        return result

    @property
    def asked(self) -> dict[str, Any]:
        """What a step is told of the backup and its target."""
        return {"domain": self.guest.name, "backup_id": self.backup_id, "target": str(self.target)}

    def recover(self, **options: Any) -> dict[str, Any]:
        return self.module("libvirt_backup_recover", **{"domain": self.guest.name, **options})

    def run(self, **options: Any) -> dict[str, Any]:
        """All three steps; the result of the last."""
        for result in (self.begin(**options), self.wait()):
            assert "failed" not in result, result
        result = self.publish()
        assert "failed" not in result, result
        return result

    def slowly(self) -> Inside:
        """From now on: as soon as a job of this guest begins, hold it back, so that it does not end."""
        process = self.hypervisor.popen([sys.executable, "-c", _HOLD_BACK, self.guest.uuid], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def quickly(self) -> None:
        """Let the job that was held back go on."""
        self.hypervisor.virsh("blockjob", self.guest.uuid, "vda", "--bandwidth", "0")
        # A job that sleeps for its limit sleeps on without one, maybe for minutes. A pause wakes it (backup_pause in QEMU's backup.c).
        for job in self._monitor({"execute": "query-jobs"})["return"]:
            for command in ("job-pause", "job-resume"):
                # It may have ended by now.
                self._monitor({"execute": command, "arguments": {"id": job["id"]}})

    def _monitor(self, command: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.hypervisor.virsh("qemu-monitor-command", self.guest.uuid, json.dumps(command)))
        return answer

    def judge(self, published: dict[str, Any], at_least: int) -> Verdict:
        """The oracle's word on a published set, that it is whole and not older than the number."""
        manifest = published["manifest"]
        images = [(Path(published["path"]) / disk["file"], disk["format"]) for disk in manifest["disks"]]
        return judge(images, at_least)

    def files(self) -> list[str]:
        """The files below the target, which may be mounted in the hypervisor alone."""
        target = self.hypervisor.outside(self.target)
        return sorted(str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir())

    def claims(self) -> list[Path]:
        return sorted(path for path in self.hypervisor.outside("/var/lib/live_backup").iterdir() if path.name != "staging")

    def chain(self) -> str:
        """What the guest's disks are on, live and as defined."""
        definition = self.hypervisor.virsh("dumpxml", "--inactive", self.guest.uuid) if self.guest.shape.persistent else ""
        return self.hypervisor.virsh("domblklist", "--details", self.guest.uuid) + definition

    def overlays(self) -> list[str]:
        """Overlays, scratch files and copies of claims, near the disks or elsewhere below the hypervisor."""
        return sorted(str(path) for path in self.hypervisor.directory.rglob("*") if path.suffix in (".overlay", ".scratch", ".claim"))

    def assert_nothing_left(self) -> None:
        """No claim, no job, no file at the target, no watchdog; the guest runs, thawed, and writes."""
        assert self.claims() == []
        assert self.files() == []
        self.assert_at_rest()

    def assert_at_rest(self) -> None:
        assert "None" in self.hypervisor.virsh("domjobinfo", self.guest.uuid)
        wait_until(lambda: self.watchdogs() == [], 10, "the watchdogs to end")
        assert self.overlays() == []
        assert self.hypervisor.virsh("snapshot-list", "--name", self.guest.uuid).strip() == ""
        assert self.guest.state() == self.guest.state_when_up
        if self.guest.shape.agent and self.guest.shape.channel:
            assert not self.guest.frozen()
        self.guest.wait_durable(self.guest.durable() + 10)

    def watchdogs(self) -> list[str]:
        """The watchdogs of this guest that are alive."""
        done = self.hypervisor.run(["pgrep", "--full", f"armed.*{self.guest.uuid}"], check=False)
        return done.stdout.split()


def result_of(process: Inside) -> dict[str, Any]:
    """What a module printed; a module that printed no result has crashed."""
    out, err = process.communicate(timeout=300)
    try:
        result = json.loads(out)
    except ValueError:
        raise AssertionError(f"no result, status {process.returncode}: {out}{err}") from None
    assert "Traceback" not in json.dumps(result), result
    assert "Traceback" not in err, err
    return result


@pytest.fixture
def make_guest(hypervisor: Hypervisor) -> Iterator[Callable[..., Guest]]:
    """Makes guests that write all the time, and live until the test is done. As fast as they can, each takes most of a processor."""
    yield from _guests(hypervisor, rate=None if ALL else 200)


@pytest.fixture(scope="module")
def make_shared_guest(hypervisor: Hypervisor) -> Iterator[Callable[..., Guest]]:
    """Makes guests that write at leisure, and live until the module's tests are done."""
    yield from _guests(hypervisor, rate=50)


def _guests(hypervisor: Hypervisor, **defaults: Any) -> Iterator[Callable[..., Guest]]:
    made: list[Guest] = []

    def make(shape: str, **options: Any) -> Guest:
        made.append(hypervisor.guest(f"g{next(_numbers)}", shape, **{**defaults, **options}))
        return made[-1]

    yield make
    for guest in made:
        if guest.directory.exists():
            guest.remove()


@pytest.fixture
def backup_of(hypervisor: Hypervisor, request: pytest.FixtureRequest) -> Iterator[Callable[..., Backup]]:
    """A backup of a guest, with a target of its own; what a failed test leaves does not meet the next one."""
    name = re.sub(r"[^a-zA-Z0-9]+", "-", request.node.name)
    made: list[Backup] = []
    targets: list[Path] = []

    def make(guest: Guest, target: Path | None = None, backup_id: str = "night-1") -> Backup:
        if target is None:
            target = hypervisor.directory / "targets" / f"{name}-{next(_numbers)}"
            target.mkdir(parents=True)
            targets.append(target)
        made.append(Backup(hypervisor, guest, target, backup_id))
        return made[-1]

    yield make
    for backup in made:
        if backup.claims():
            backup.hypervisor.run(
                ["sh", "-c", 'virsh domjobabort "$1"; rm -rf /var/lib/live_backup/*', "sh", backup.guest.uuid], check=False
            )
    for target in targets:
        shutil.rmtree(target)


@pytest.fixture(scope="module")
def everyday(make_shared_guest: Callable[..., Guest]) -> Guest:
    """A running guest with two disks."""
    return make_shared_guest("two-disks")


@pytest.fixture(scope="module")
def frozen_guest(make_shared_guest: Callable[..., Guest]) -> Guest:
    """A running guest with a mounted file system, which can be frozen."""
    return make_shared_guest("several")


@pytest.fixture(scope="module")
def shared_large(make_shared_guest: Callable[..., Guest]) -> Guest:
    """What `large` gives, in whatever state a test has left it."""
    return make_shared_guest("several", size=512 << 20, fill=FILL)


@pytest.fixture
def large(shared_large: Guest) -> Guest:
    """A running guest whose backup takes long enough to be held back; started again if a failed test has left it off."""
    if shared_large.state() == "shut off":
        shared_large.start()
    return shared_large
