# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks of a hypervisor find each trouble that the rig can make, and nothing where there is none."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor

from .conftest import REPOSITORY, Backup, result_of
from .test_role import Player

DENIED = (
    'audit: type=1400 audit({time}.768:170): apparmor="DENIED" operation="open" profile="libvirt-dba8a0f2-29f4-4043-8357-b58458282000" '
    'name="{path}" pid=11689 comm="qemu-system-x86" requested_mask="r" denied_mask="r" fsuid=0 ouid=0'
)


@pytest.fixture(scope="module")
def quiet_guest(make_shared_guest: Callable[..., Guest]) -> Guest:
    """A running guest without an agent, the one flaw."""
    return make_shared_guest("no-agent")


@pytest.fixture
def backup(quiet_guest: Guest, backup_of: Callable[..., Backup]) -> Backup:
    return backup_of(quiet_guest)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a shell script before the host's commands."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")

    def add(name: str, script: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)

    return add


def findings(backup: Backup, **options: Any) -> list[dict[str, str]]:
    given = {"target": str(backup.target), "domains": [backup.guest.name], "quiesce": "never", **options}
    result = backup.module("hypervisor_check", **given)
    assert "failed" not in result and not result["changed"], result
    return result["findings"]


def only(found: list[dict[str, str]], check: str, severity: str, words: str) -> None:
    assert [(one["check"], one["severity"]) for one in found] == [(check, severity)] and words in found[0]["msg"], found


@pytest.mark.parametrize("check", [False, True])
def test_nothing_is_found_where_all_is_well(check: bool, backup: Backup) -> None:
    assert findings(backup, check=check) == []
    assert list(backup.target.iterdir()) == [] and backup.claims() == []


def test_a_guest_without_an_agent(backup: Backup) -> None:
    only(findings(backup, quiesce="auto"), "agent", "warning", "has no channel for a guest agent")
    only(findings(backup, quiesce="require"), "backup", "error", "quiesce is 'require'")


def test_a_name_that_nobody_has(backup: Backup) -> None:
    only(findings(backup, domains=[backup.guest.name, "db[1-9]"]), "domains", "warning", "That is fine if another hypervisor has it")


def test_a_target_that_is_not_there_is_told_once(backup: Backup, make_guest: Callable[..., Guest]) -> None:
    domains = [backup.guest.name, make_guest("shut-off").name]
    only(findings(backup, target="/nowhere/at/all", domains=domains), "target", "error", "does not exist")


def test_a_server_that_does_not_answer_is_told_once(backup: Backup, make_guest: Callable[..., Guest]) -> None:
    """Each domain's backup would wait for it, and say the same."""
    domains = [backup.guest.name, make_guest("shut-off").name]
    server = {"target": "ssh://127.0.0.1:1/srv/backup", "domains": domains}
    only(findings(backup, staging_dir=str(backup.target), **server), "target", "error", "127.0.0.1")
    only(findings(backup, **server), "target", "error", "127.0.0.1")


def test_a_target_out_of_reach_for_qemu(backup: Backup) -> None:
    backup.target.chmod(0o700)
    only(findings(backup), "backup", "error", "is not writable for QEMU's user")


def test_a_target_without_inodes(backup: Backup) -> None:
    """It has free bytes, and no file can be created there."""
    backup.hypervisor.run(["mount", "-t", "tmpfs", "-o", "mode=755,nr_inodes=1", "none", backup.target])
    try:
        for check in (True, False):
            only(findings(backup, check=check), "target", "error", "has 0 free inodes")
    finally:
        backup.hypervisor.run(["umount", backup.target])


@pytest.fixture
def small(hypervisor: Hypervisor) -> Iterator[Path]:
    place = hypervisor.small_filesystem("check", 128 << 20)
    yield place
    hypervisor.remove_filesystem(place)


def test_too_little_space_for_one_and_for_all(backup: Backup, make_guest: Callable[..., Guest], small: Path) -> None:
    """The guest stands still, lest it takes more room from one look to the next."""
    hypervisor, other = backup.hypervisor, make_guest("shut-off")
    hypervisor.virsh("suspend", backup.guest.uuid)
    try:
        plans = [backup.begin(check=True), backup.begin(check=True, domain=other.name, method="offline")]
        both = sum(plan["bytes_needed"] for plan in plans)
        domains = {"target": str(small), "domains": [backup.guest.name, other.name]}

        def leave(room: int) -> None:
            (hypervisor.outside(small) / "filler").unlink(missing_ok=True)
            free = os.statvfs(hypervisor.outside(small))
            hypervisor.run(["fallocate", "--length", str(free.f_bavail * free.f_frsize - room), small / "filler"])

        leave(both + (2 << 20))
        assert findings(backup, **domains) == []
        leave(both - (64 << 10))
        only(findings(backup, **domains), "space", "error", "Each domain alone fits, all together may not")
        leave(plans[0]["bytes_needed"] - (64 << 10))
        found = findings(backup, **{**domains, "domains": [backup.guest.name]})
        only(found, "backup", "error", "is too small")
    finally:
        hypervisor.virsh("resume", backup.guest.uuid)


def test_a_mount_that_libvirt_does_not_see(backup: Backup) -> None:
    """As where the daemon has a mount namespace of its own."""
    module = [sys.executable, "-m", "ansible_collections.virtops.live_backup.plugins.modules.hypervisor_check"]
    arguments = {"target": str(backup.target), "domains": [backup.guest.name], "quiesce": "never"}
    process = backup.hypervisor.popen(
        ["unshare", "--mount", "sh", "-ec", 'mount -t tmpfs -o mode=755 none "$1"; shift; exec "$@"', "sh", backup.target, *module],
        env={"PYTHONPATH": str(REPOSITORY / ".build/tree")},
        stdin=-1,
        stdout=-1,
        stderr=-1,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
    process.stdin.close()
    process.stdin = None
    found = result_of(process)["findings"]
    told = {(one["check"], one["severity"]): one["msg"] for one in found}
    assert "daemon does not see" in told["mounts", "error"] and "QEMU does not see target" in told["backup", "error"], found
    # unshare makes every mount private.
    assert "do not reach domains" in told["mounts", "warning"] and len(found) == 3, found


def test_what_was_denied_at_the_target(backup: Backup, commands: Callable[[str, str], None]) -> None:
    # As journald's, which is asked since when.
    script = r"""for argument; do case $argument in --since=@*) since=${argument#--since=@};; esac; done
echo '%s'
echo '%s'"""
    paths = [str(backup.target / "db1/.night-1.partial/vda.qcow2"), "/etc/shadow"]
    commands("journalctl", script.replace("%s", DENIED).replace("{time}", "'$((since + 60))'").replace("{path}", "%s") % tuple(paths))
    only(findings(backup), "denials", "error", f"AppArmor has denied QEMU or libvirt {paths[0]}")


def test_a_clock_that_nobody_sets(backup: Backup, commands: Callable[[str, str], None]) -> None:
    commands("timedatectl", "echo no")
    only(findings(backup), "clock", "warning", "is not synchronized")


@pytest.mark.parametrize(
    ("offset", "error", "severity", "words"),
    [
        (1100, 200, "", ""),
        (-1300, 200, "error", "is 1.300 s behind"),
        (0, 1100, "warning", "only to 1.100 s"),
    ],
)
def test_a_clock_that_is_apart(offset: int, error: int, severity: str, words: str, backup: Backup) -> None:
    found = findings(backup, target="", clock={"offset_ms": offset, "error_ms": error})
    assert [one["severity"] for one in found] == [severity] * bool(severity) and words in "".join(one["msg"] for one in found), found


def test_what_an_interrupted_backup_left(backup: Backup) -> None:
    options = {"domain": backup.guest.name, "backup_id": "night-1", "target": str(backup.target)}
    dying = backup.start_module("libvirt_backup_begin", fault="KILL before backupBegin", **options)
    dying.wait(timeout=60)
    assert backup.claims()
    only(findings(backup), "claim", "warning", "the playbook virtops.live_backup.recover")
    assert backup.recover()["changed"]
    assert findings(backup) == []


def test_the_playbook(backup: Backup, commands: Callable[[str, str], None]) -> None:
    """A warning does not fail it; a clock that is a minute ahead does, and what it is ahead by is measured."""
    player = Player(backup.hypervisor, backup.target)
    book = {"book": "virtops.live_backup.check", "backup_domains": [backup.guest.name]}
    warned = player.run(**book)
    assert warned.status == 0 and warned.recap["hv"]["changed"] == 0 and "warning: Domain" in warned.output, warned.output
    assert '"hypervisor": "hv"' in warned.output and "has no channel" in warned.output, warned.output

    commands("date", 'exec /usr/bin/date --date="60 seconds" "$@"')
    late = player.run(**book)
    seconds, exact = map(float, re.findall(r"The clock is ([0-9.]+) s ahead of the controller's, give or take ([0-9.]+) s", late.output)[0])
    assert late.status == 2 and abs(seconds - 60) <= exact + 0.05 < 1, late.output
    told = player.run("--check", hypervisor_fail_on="none", backup_libvirt_uri="qemu+ssh://elsewhere/system", **book)
    assert told.status == 0 and "is a remote libvirt URI" in told.output, told.output


def test_the_role_installs_and_makes_what_is_missing(backup: Backup) -> None:
    """No package is missing on this system."""
    player = Player(backup.hypervisor, backup.target)
    staging = backup.target / "staging"
    book = backup.target.with_suffix(".role.yml")
    role = {"role": "virtops.live_backup.hypervisor", "hypervisor_directories": [str(staging)], "hypervisor_domains": [backup.guest.name]}
    book.write_text(json.dumps([{"hosts": "hypervisors", "gather_facts": False, "roles": [role]}]), encoding="utf-8")
    played = player.run(book=str(book), hypervisor_packages=[])
    assert played.status == 0 and played.recap["hv"]["changed"] == 1, played.output
    assert staging.stat().st_mode & 0o7777 == 0o711
    again = player.run("--check", book=str(book), hypervisor_fail_on="warning")
    assert again.status == 2 and again.recap["hv"]["changed"] == 0 and "has no channel" in again.output, again.output
