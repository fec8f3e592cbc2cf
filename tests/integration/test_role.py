# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook: many domains, one report; what fails is named and stops nothing else; a rerun heals and completes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import rfc3339
from tests.rig.fleet import PLAYBOOK
from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor, Inside
from tests.rig.oracle import judge
from tests.rig.shell import family, wait_until
from tests.rig.sshd import Sshd

from .conftest import CORES, REPOSITORY, Backup, at_length


@dataclass
class Play:
    """How a run of ansible-playbook ended: `rows` is what it has told a workflow, `recap` the counts by host."""

    status: int
    output: str
    rows: dict[str, dict[str, Any]]
    recap: dict[str, dict[str, int]]

    @property
    def changed(self) -> int:
        """How many tasks changed something, on all hosts."""
        return sum(counts["changed"] for counts in self.recap.values())

    @property
    def tasks(self) -> int:
        """How many tasks it has printed, skipped ones too."""
        return len(re.findall(r"^TASK \[", self.output, re.MULTILINE))


@dataclass
class Player:
    """Runs playbooks on the hypervisor, as its administrator would."""

    hypervisor: Hypervisor
    target: Path

    def start(
        self,
        *options: str,
        hosts: dict[str, dict[str, Any]] | None = None,
        book: str = "virtops.live_backup.backup",
        program: Path = PLAYBOOK,
        **variables: Any,
    ) -> Inside:
        variables = {"backup_target": str(self.target), **variables}
        inventory = self.target.with_suffix(".inventory.json")
        local = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
        named = {name: {**local, **more} for name, more in (hosts or {"hv": {}}).items()}
        inventory.write_text(json.dumps({"hypervisors": {"hosts": named}}), encoding="utf-8")
        # What runs the tests may have been started with SIGINT ignored, and ignored it would be here.
        return self.hypervisor.popen(
            ["env", "--default-signal=INT", program, "--inventory", inventory, book]
            + ["--extra-vars", json.dumps({name: value for name, value in variables.items() if value is not None}), *options],
            env={
                **os.environ,
                "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / ".build/tree"),
                "ANSIBLE_SHOW_CUSTOM_STATS": "1",
                # Ansible leaves it to Python when to write to a pipe.
                "PYTHONUNBUFFERED": "1",
                "LC_ALL": "C.UTF-8",
            },
            stdout=-1,
            stderr=-2,
        )

    def run(self, *options: str, **more: Any) -> Play:
        return ended(self.start(*options, **more))


# The most that a run prints for one domain.
TASKS = 20


def ended(process: Inside) -> Play:
    output, _none = process.communicate(timeout=600)
    rows = [row for stats in re.findall(r"RUN: (\{.*\})", output) for row in json.loads(stats).get("live_backup_results", [])]
    recap = {
        host: {key: int(number) for key, number in re.findall(r"(\w+)=(\d+)", counts)}
        for host, counts in re.findall(r"^(\S+) +: (ok=.*)$", output, re.MULTILINE)
    }
    return Play(process.returncode, output, {row["domain"]: row for row in rows}, recap)


@pytest.fixture
def player(everyday: Guest, backup_of: Callable[..., Backup]) -> Player:
    backup = backup_of(everyday)
    return Player(backup.hypervisor, backup.target)


def test_check_then_run_then_run_again(everyday: Guest, player: Player, backup_of: Callable[..., Backup]) -> None:
    domains = [everyday.name]
    planned = player.run("--check", backup_domains=domains)
    assert planned.status == 0, planned.output
    row = planned.rows[everyday.name]
    assert (row["status"], row["changed"], row["method"]) == ("planned", True, "push")
    for words in ("push, since the domain is running", "disks vda, vdb", "needs up to", "are free"):
        assert words in row["msg"], row
    assert list(player.target.iterdir()) == []

    before = everyday.durable()
    first = player.run(backup_domains=domains, backup_id="night-1")
    assert first.status == 0 and first.changed == 3, first.output
    assert first.tasks <= TASKS, first.output
    row = first.rows[everyday.name]
    assert (row["status"], row["changed"], row["hypervisor"], row["uuid"]) == ("published", True, "hv", everyday.uuid)
    assert row["path"] == str(player.target / everyday.name / "night-1") and row["bytes"] > 0 and row["seconds"] > 0
    backup = backup_of(everyday, player.target)
    assert backup.judge(backup.publish(), before).ok

    for options in ((), ("--check",)):
        again = player.run(*options, backup_domains=domains, backup_id="night-1")
        assert again.status == 0 and again.changed == 0, again.output
    assert "[WARNING]" not in first.output + again.output + planned.output


def test_nights_of_level_auto(everyday: Guest, player: Player) -> None:
    """A full backup, one of what changed, in check mode first, and no trace of it after untrack."""
    rows = []
    for night in ("one", "two"):
        wanted = {"backup_domains": [everyday.name], "backup_level": "auto", "backup_id": night, "backup_verify": "check"}
        if rows:
            checked = player.run("--check", **wanted)
            assert checked.rows[everyday.name]["level"] == "incremental" and checked.changed > 0, checked.output
        play = player.run(**wanted)
        assert play.status == 0 and play.tasks <= TASKS, play.output
        rows.append(play.rows[everyday.name])
    assert [row["level"] for row in rows] == ["full", "incremental"]
    assert rows[1]["level_reason"].startswith("builds on one") and "incremental on one" in rows[1]["msg"], rows[1]
    known = ["checkpoint-list", "--name", everyday.uuid]
    assert len(everyday.hypervisor.virsh(*known).split()) == 2
    for changed in (True, False):
        play = player.run(book="virtops.live_backup.untrack", untrack_domains=[everyday.name])
        assert play.status == 0 and (play.changed > 0) == changed, play.output
        assert everyday.hypervisor.virsh(*known).split() == []


def test_one_failure_leaves_the_others_to_finish(
    everyday: Guest, make_guest: Callable[..., Guest], player: Player, hypervisor: Hypervisor
) -> None:
    """One has a disk excluded that it does not have, one is shut off, one is well; the names need escaping, and each has its method."""
    odd, off = make_guest("odd-names", rate=100), make_guest("shut-off")
    played = player.run(
        backup_domains=[everyday.name, odd.name, off.name], backup_exclude_disks={everyday.name: ["vdz"], odd.name: ["vdb"]}
    )
    assert played.status == 2
    statuses = {name: row["status"] for name, row in played.rows.items()}
    assert statuses == {everyday.name: "failed", off.name: "published", odd.name: "published"}
    assert {name: row["method"] for name, row in played.rows.items()} == {everyday.name: "push", off.name: "offline", odd.name: "push"}
    assert "has no disk vdz" in played.rows[everyday.name]["msg"] and "the domain is shut off" in played.rows[off.name]["msg"]
    assert {name: row["code"] for name, row in played.rows.items()} == {everyday.name: "disk_unknown", off.name: "", odd.name: ""}
    [summary] = re.findall(r'"Failed: [^\n]*', played.output)
    assert "has no disk vdz" in summary and everyday.name in summary and off.name not in summary
    assert f"--limit 'hv,{everyday.name}@hv'" in played.output and "1 of 3 domains failed." in played.output
    assert "Traceback" not in played.output


def test_legacy_where_it_is_asked_for(
    everyday: Guest, make_guest: Callable[..., Guest], player: Player, backup_of: Callable[..., Backup]
) -> None:
    """A fleet: one that an interrupted run left on its overlays, one that is transient, one that is shut off."""
    transient, off = make_guest("transient", rate=100), make_guest("shut-off")
    options = {"backup_domains": [everyday.name, transient.name, off.name], "backup_id": "night-1", "backup_bandwidth": "500M"}
    refused = player.run(**{**options, "backup_domains": everyday.name}, backup_method="push")
    assert refused.status == 2 and "backup_bandwidth" in refused.rows[everyday.name]["msg"], refused.output
    backup = backup_of(everyday, player.target, "night-0")
    chains = backup.chain(), backup_of(transient, player.target).chain()
    backup.snapshot()
    dying = backup.start_module("sparse_copy", fault="KILL before _copy.disks.copy_image", domain=everyday.name, backup_id="night-0")
    dying.wait(timeout=60)
    assert chains[0] != backup.chain()

    planned = player.run("--check", backup_method="legacy", **options)
    assert planned.status == 0 and {row["status"] for row in planned.rows.values()} == {"planned"}, planned.output
    assert "overlay of disk vda" in planned.rows[everyday.name]["msg"], planned.output
    assert "legacy, since it was asked for" in planned.rows[transient.name]["msg"], planned.output
    assert chains[0] != backup.chain()

    before = everyday.durable(), transient.durable()
    played = player.run(backup_method="legacy", **options)
    assert {row["status"] for row in played.rows.values()} == {"published"}, played.output
    methods = {name: (row["method"], row["method_reason"]) for name, row in played.rows.items()}
    asked = "legacy", "it was asked for"
    assert methods == {everyday.name: asked, transient.name: asked, off.name: ("offline", "the domain is shut off")}
    for guest, durable, chain in zip((everyday, transient), before, chains):
        backup = backup_of(guest, player.target)
        published = backup.publish()
        assert published["manifest"]["method_reason"] == "it was asked for"
        verdict = backup.judge(published, durable)
        assert verdict.ok, str(verdict)
        assert backup.chain() == chain and backup.claims() == []
        backup.assert_at_rest()
    again = player.run(backup_method="legacy", **options)
    assert again.status == 0 and again.changed == 0, again.output


@pytest.mark.parametrize("excluded", ['{"NAME": ["vdb"]}', {"copy": ["vdx"], "NAME": ["vdb"]}], ids=str)
def test_exclusions_as_text_and_as_mapping(excluded: Any, everyday: Guest, player: Player) -> None:
    given = json.loads(json.dumps(excluded).replace("NAME", everyday.name))
    played = player.run("--check", backup_domains=everyday.name, backup_exclude_disks=given)
    assert played.status == 0, played.output
    assert "disks vda; skipped vdb: excluded;" in played.rows[everyday.name]["msg"]
    assert "backup_exclude_disks names" not in played.output, "it is limited to other domains"


def test_exclusions_for_a_domain_that_nobody_has_are_reported_once(player: Player) -> None:
    played = player.run("--check", hosts={"hv": {}, "hv2": {}}, backup_exclude_disks={"copy": ["vdx"]}, backup_exclude_domains=["g*"])
    assert played.output.count("backup_exclude_disks names copy. No hypervisor of this run has such a domain.") == 1, played.output


@pytest.mark.parametrize("wrong", ["db1=vdb", ["vdb"]])
def test_exclusions_that_nothing_would_heed_are_refused(wrong: Any, everyday: Guest, player: Player) -> None:
    played = player.run(backup_domains=everyday.name, backup_exclude_disks=wrong)
    assert played.status == 2 and "backup_exclude_disks" in played.output, played.output
    assert list(player.target.iterdir()) == []


def test_empty_answers_of_a_survey_are_the_defaults(everyday: Guest, player: Player) -> None:
    played = player.run("--check", backup_domains="", backup_exclude_domains="", backup_id="", live_backup_hosts="", backup_timeout="3600")
    assert played.rows[everyday.name]["status"] == "planned", played.output


@at_length
def test_each_use_of_the_role_takes_a_backup_of_its_own(everyday: Guest, player: Player) -> None:
    """As around an upgrade; and a play in check mode only plans."""
    book = player.target.with_suffix(".yml")
    use = {"hosts": "hypervisors", "gather_facts": False, "roles": ["virtops.live_backup.backup"]}
    named = {**use, "vars": {"backup_id": "after"}}
    imported = {"import_playbook": "virtops.live_backup.backup"}
    pause = {"hosts": "hypervisors", "gather_facts": False, "tasks": [{"ansible.builtin.wait_for": {"timeout": 2}}]}
    book.write_text(json.dumps([imported, pause, use, {**use, "check_mode": True}, named]), encoding="utf-8")
    played = player.run(book=str(book), backup_domains=[everyday.name])
    assert played.status == 0, played.output
    published = sorted(path.name for path in (player.target / everyday.name).iterdir() if not path.name.startswith("."))
    assert len(published) == 3 and published[-1] == "after", published


@pytest.mark.parametrize("core", CORES, ids=lambda path: path.name)
def test_numbers_are_numbers_on_every_core(core: Path, everyday: Guest, player: Player) -> None:
    played = player.run(program=core / "bin/ansible-playbook", backup_domains=[everyday.name])
    assert played.status == 0, played.output
    row = played.rows[everyday.name]
    assert {name: type(row[name]) for name in ("bytes", "seconds", "changed", "msg")} == {
        "bytes": int, "seconds": float, "changed": bool, "msg": str
    }, row  # fmt: skip


def test_a_hypervisor_that_cannot_be_listed_has_a_row(player: Player, tmp_path: Path) -> None:
    """And the report is written, or yesterday's would go on to say that all is well."""
    played = player.run(backup_libvirt_uri="qemu:///system?socket=/nonexistent", status_report_directory=str(tmp_path))
    assert played.status == 2 and "/nonexistent" in played.rows[""]["msg"] and played.rows[""]["hypervisor"] == "hv", played.output
    [problem] = json.loads((tmp_path / "live_backup.json").read_text(encoding="utf-8"))["problems"]
    assert problem["hypervisor"] == "hv" and problem["what"][0].startswith("The backup failed."), problem


def test_a_domain_that_is_nowhere(player: Player) -> None:
    played = player.run(backup_domains=["nobody"])
    assert played.status == 2 and played.rows == {} and "No hypervisor that was reached has nobody" in played.output, played.output


def test_hosts_share_the_name_of_the_backup(everyday: Guest, make_guest: Callable[..., Guest], player: Player) -> None:
    other = make_guest("one-raw", rate=100)
    hosts = {"one": {"backup_domains": [everyday.name]}, "two": {"backup_domains": [other.name]}}
    played = player.run(hosts=hosts)
    assert played.status == 0, played.output
    ids = {row["backup_id"] for row in played.rows.values()}
    assert len(played.rows) == 2 and len(ids) == 1 and re.fullmatch(r"\d{8}T\d{6}Z", ids.pop())


@pytest.mark.parametrize("wrong", [{"backup_target": None}, {"backup_quiesce": "maybe"}, {"backup_format": "vmdk"}])
def test_a_wrong_variable_is_named(wrong: dict[str, Any], player: Player) -> None:
    played = player.run(**wrong)
    assert played.status == 2 and next(iter(wrong)) in played.output and "Traceback" not in played.output, played.output


def test_interrupted_and_run_again(make_guest: Callable[..., Guest], player: Player, backup_of: Callable[..., Backup]) -> None:
    """Ctrl-C reaches Ansible and the module; the next run, under another name, heals and completes."""
    guest = make_guest("several", size=192 << 20, fill=128 << 20, rate=100)
    backup = backup_of(guest, player.target)
    slow = backup.slowly()
    running = player.start(backup_domains=[guest.name], backup_id="night-1", backup_progress_interval=1, backup_timeout=600)
    assert slow.wait(timeout=120) == 0 and running.stdout is not None
    # What is told while the job lasts also shows that it is waited for.
    told = next((line for line in running.stdout if re.search(r": backup job \d+ %, \S+ \S+ of ", line)), "")
    assert told.startswith(f"[hv] {guest.name}: "), told
    interrupt(running)
    # What Ansible's status is then depends on where the signal met it.
    assert running.poll() is not None
    planned = player.run("--check", backup_domains=[guest.name], backup_id="night-2")
    assert planned.status == 0 and "backup job" in planned.rows[guest.name]["msg"], planned.output
    again = player.run(backup_domains=[guest.name], backup_id="night-2")
    assert again.status == 0 and again.rows[guest.name]["status"] == "published", again.output
    assert sorted(path.name for path in (player.target / guest.name).iterdir()) == [".domain.json", "night-2"]
    assert backup.claims() == []
    backup.assert_at_rest()


def test_recover_alone(large: Guest, player: Player, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(large, player.target)
    process = backup.start_module(
        "libvirt_backup_begin", fault="KILL before fsThaw", domain=large.name, backup_id="night-1", target=str(player.target)
    )
    process.wait(timeout=60)
    assert backup.claims()
    for options, changed in ((("--check",), 1), ((), 1), ((), 0)):
        played = player.run(*options, book="virtops.live_backup.recover")
        assert played.status == 0 and played.recap["hv"]["changed"] == changed, played.output
    wait_until(lambda: not backup.watchdogs(), 30, "the watchdog to end")
    backup.assert_nothing_left()


def interrupt(process: Inside) -> None:
    """Press Ctrl-C; and once more where Ansible does not end, as it may not when the first comes while it prints."""
    for _press in range(2):
        for pid in family(process.command_pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        try:
            process.wait(timeout=20)
            return
        except subprocess.TimeoutExpired:
            pass


def test_proof_retention_and_restore(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], tmp_path: Path) -> None:
    """The nightly playbook with everything, and then the bad day."""
    guest = make_guest("two-disks", rate=200)
    backup = backup_of(guest)
    player = Player(backup.hypervisor, backup.target)
    options = {"backup_domains": [guest.name], "backup_keep": {"last": 2}}
    command = {guest.name: ["/bin/sh", "-c", "exit 0"], "another": ["/no/such/program"]}
    for number in range(1, 4):
        # Of the first three days by check, only the first night has a proof.
        level, every = ("boot", 0) if number == 3 else ("check", 3 * (number - 1))
        how = {"backup_verify": level, "backup_verify_every": every, "backup_verify_command": command}
        played = player.run(backup_id=f"night-{number}", **how, **options)
        assert played.rows[guest.name]["proof"] == ("" if number == 2 else level), played.output
        assert played.rows[guest.name]["status"] == "published", played.output
        assert played.tasks <= TASKS, played.output
    assert sorted(path.name for path in (backup.target / guest.name).glob("night-*")) == ["night-2", "night-3"]
    assert sorted(path.name for path in (backup.target / guest.name / ".proofs").iterdir()) == ["night-3.json"]

    seen = {"status_report_directory": str(tmp_path), "status_metrics_directory": str(tmp_path)}
    told = player.run(book="virtops.live_backup.status", backup_domains=[guest.name], **seen)
    assert told.status == 0 and "night-3" in told.output and "proven by boot" in told.output, told.output
    [row] = json.loads((tmp_path / "live_backup.json").read_text(encoding="utf-8"))["hypervisors"][0]["domains"]
    assert row["ok"] and row["proof"] == "boot" and [one["backup_id"] for one in row["sets"]] == ["night-2", "night-3"]
    assert "All is well" in (tmp_path / "live_backup.html").read_text(encoding="utf-8")
    exposed = (tmp_path / "live_backup.prom").read_text(encoding="utf-8")
    assert f'live_backup_last_success_proof{{domain="{guest.name}",proof="boot"}} 1' in exposed, exposed
    late = player.run(book="virtops.live_backup.status", backup_domains=[guest.name], status_max_age="0s")
    assert late.status != 0 and f"An objective is missed by {guest.name}" in late.output, late.output
    proven = player.run(book="virtops.live_backup.verify", backup_domains=[guest.name])
    assert proven.status == 0 and proven.recap["hv"]["changed"] == 0, proven.output

    guest.destroy()
    guest.undefine()
    for image, _format in guest.images:
        image.unlink()
    book = {"book": "virtops.live_backup.restore", "restore_domain": guest.name, "restore_target": str(backup.target)}
    planned = player.run("--check", **book)
    assert planned.status == 0 and "would be restored from backup night-3" in planned.output, planned.output
    assert "the digests of its images were not compared" in planned.output, planned.output
    printed = guest.console()
    at_once = {"restore_live": True, "restore_format": "qcow2", "restore_bandwidth": "64M"}
    restored = player.run(**at_once, **book)
    assert restored.status == 0 and restored.recap["hv"]["changed"] == 1, restored.output
    guest.wait_writes_after(printed)
    again = player.run(**at_once, **book)
    assert again.status == 0 and again.recap["hv"]["changed"] == 0, again.output

    refused = player.run(book="virtops.live_backup.prune", backup_keep={"last": 1, "montly": 12})
    assert refused.status != 0 and "backup_keep must map last" in refused.output, refused.output
    pruned = player.run("--check", book="virtops.live_backup.prune", backup_keep={"last": 1})
    assert pruned.status == 0 and pruned.recap["hv"]["changed"] == 1 and "night-3: kept" in pruned.output, pruned.output
    pruned = player.run(book="virtops.live_backup.prune", backup_keep='{"last": 1}')
    assert [path.name for path in (backup.target / guest.name).glob("night-*")] == ["night-3"], pruned.output


def forge(one: Path, backup_id: str, seconds: int) -> Path:
    """A set like another, which seems to be so much newer than now."""
    forged = one.with_name(backup_id)
    shutil.copytree(one, forged)
    manifest = json.loads((one / "manifest.json").read_text(encoding="utf-8"))
    manifest["backup_id"] = backup_id
    manifest["consistency"]["instant"] = rfc3339(time.time() + seconds)
    (forged / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return forged


def test_a_backup_server(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], tmp_path: Path) -> None:
    """Nothing stays on the hypervisor, whoever dies, and the domain comes back from the server alone."""
    guest = make_guest("two-disks", rate=200)
    backup = backup_of(guest)
    staging = backup.target
    vault = tmp_path / "vault"
    vault.mkdir()
    player = Player(backup.hypervisor, backup.target)
    with Sshd(tmp_path / "sshd", backup.hypervisor) as sshd:
        ssh = {"ssh_key": sshd.options["ssh_key"], "ssh_options": sshd.options["ssh_options"]}
        server = {"backup_target": f"{sshd.url}{vault}", **{f"backup_{name}": value for name, value in ssh.items()}}
        options = {**server, "backup_domains": [guest.name], "backup_id": "night-1", "backup_staging_dir": str(staging)}
        planned = player.run("--check", **options)
        assert planned.status == 0 and planned.rows[guest.name]["status"] == "planned", planned.output
        to_server = {"domain": guest.name, "target": server["backup_target"], **ssh}

        def die_sending(backup_id: str) -> None:
            sent = {**to_server, "backup_id": backup_id, "staging_dir": str(staging)}
            for step in (backup.begin(backup_id=backup_id), backup.wait(backup_id=backup_id)):
                assert "failed" not in step, step
            backup.start_module("backup_set_publish", fault="KILL after _target.ssh.client.FarEnd.write", **sent).wait(timeout=60)
            assert list(staging.iterdir()) != []
            # The far end sees that the near end is gone.
            wait_until(lambda: not (vault / guest.name / f".{backup_id}.partial").exists(), 30, "the server to remove what is unfinished")

        durable = guest.durable()
        die_sending("night-1")
        played = player.run(backup_verify="check", **options)
        row = played.rows[guest.name]
        assert (row["status"], row["changed"], row["path"]) == ("published", True, str(vault / guest.name / "night-1")), played.output
        assert list(staging.iterdir()) == [] and backup.claims() == []
        assert sorted(path.name for path in (vault / guest.name).iterdir()) == [".domain.json", ".proofs", "night-1"]
        # Two sets that make it look older than it is: by a clock that was a little ahead, and by one that was far ahead.
        newer = forge(vault / guest.name / "night-1", "night-0", 200)
        forge(vault / guest.name / "night-1", "future", 7200)
        again = player.run(**options, backup_keep={"last": 1})
        assert again.status == 0 and again.changed == 0, again.output
        shutil.rmtree(newer)
        # Sent straight: what would be made here finds no room.
        tiny = str(backup.hypervisor.small_filesystem("tiny", 1 << 20))
        legacy = {**options, "backup_id": "straight", "backup_method": "legacy", "backup_staging_dir": tiny}
        staged = player.run("--check", **legacy)
        assert staged.status != 0 and "is too small" in staged.output, staged.output
        straight = player.run("--check", **legacy, backup_format="keep")
        assert straight.rows[guest.name]["status"] == "planned", straight.output
        die_sending("night-1-again")
        refused = player.run(**{**options, "backup_id": "night-2", "backup_target": f"{sshd.url}/no/where"})
        assert refused.status != 0 and "does not exist" in refused.output, refused.output
        assert list(staging.iterdir()) == [] and backup.claims() == []

        guest.destroy()
        guest.undefine()
        for image, _format in guest.images:
            image.unlink()
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        fault = "KILL before _target.ssh.target.sync_path"
        lost = {**to_server, "backup_id": "night-1", "directory": str(elsewhere)}
        backup.start_module("libvirt_domain_restore", fault=fault, **lost).wait(timeout=60)
        assert [path.name for path in elsewhere.rglob("*.qcow2")], "what it has fetched"
        book = {"book": "virtops.live_backup.restore", "restore_domain": guest.name, "restore_target": server["backup_target"]}
        book |= {f"restore_{name}": value for name, value in ssh.items()}
        restored = player.run(**book)
        assert restored.status == 0 and restored.recap["hv"]["changed"] == 1, restored.output
        verdict = judge(guest.images, durable)
        assert verdict.ok, str(verdict)
        assert list(guest.directory.rglob(".live_backup*")) == list(elsewhere.iterdir()) == backup.claims() == []
        pruned = player.run("--check", book="virtops.live_backup.prune", backup_keep={"last": 1}, **server)
        assert pruned.status == 0 and "night-1: kept" in pruned.output, pruned.output
        told = player.run(book="virtops.live_backup.status", backup_domains=[guest.name], **server)
        assert told.status == 0 and "proven by check" in told.output and "since from the future: future" in told.output, told.output


def test_what_a_set_lacks_is_told_by_backup_and_restore(make_guest: Callable[..., Guest], player: Player, tmp_path: Path) -> None:
    """Here it is a shared folder. A virtual TPM is the worse case, but a domain that has one is not even defined without swtpm."""
    guest = make_guest("shut-off")
    shared = tmp_path / "filesystem.xml"
    shared.write_text("<filesystem type='mount'><source dir='/srv/shared'/><target dir='shared'/></filesystem>", encoding="utf-8")
    guest.hypervisor.virsh("attach-device", "--config", guest.uuid, shared)
    lacks = ["shared folder /srv/shared"]
    for options in (("--check",), ()):
        played = player.run(*options, backup_domains=guest.name)
        assert played.status == 0 and played.tasks <= TASKS, played.output
        row = played.rows[guest.name]
        assert row["not_captured"] == lacks and f"; not in the set: {lacks[0]}" in row["msg"], row
        assert "  " not in row["msg"] and " ;" not in row["msg"], row
        # In the list of results and in the custom stats.
        assert played.output.count(row["msg"]) == 2, played.output
    place = tmp_path / "copy"
    place.mkdir()
    book = {"book": "virtops.live_backup.restore", "restore_domain": guest.name, "restore_target": str(player.target)}
    for options in (("--check",), ()):
        restored = player.run(*options, restore_name=f"{guest.name}-copy", restore_directory=str(place), **book)
        assert restored.status == 0, restored.output
        [told] = set(re.findall(rf'"msg": "({guest.name}-copy: [^"]*)"', restored.output))
        assert f"; not in the set: {lacks[0]}" in told and "  " not in told and " ;" not in told, restored.output
    guest.hypervisor.virsh("undefine", f"{guest.name}-copy")


def test_recover_says_what_it_leaves_to_a_run_that_may_live(everyday: Guest, player: Player, backup_of: Callable[..., Backup]) -> None:
    """The controller is gone between two tasks. A timer's run leaves the guest on its overlays, and says so; who knows better does not."""
    chain = (backup := backup_of(everyday, player.target)).chain()
    assert backup.snapshot()["changed"]
    book: dict[str, Any] = {"book": "virtops.live_backup.recover", "backup_target": None}
    timed = player.run(**book)
    assert timed.status == 0 and timed.changed == 0 and backup.overlays(), timed.output
    left = rf"{everyday.name} is not recovered: backup night-1 .* holds it for another \d+ s\. .* recover_take_over=true"
    assert re.search(left, timed.output), timed.output
    assert timed.output.index("is not recovered: ") > timed.output.index("Repair what each dead backup or restore has left")
    taken = player.run(recover_take_over=True, **book)
    assert taken.status == 0 and taken.changed == 1 and "is not recovered: " not in taken.output, taken.output
    assert backup.chain() == chain
    backup.assert_nothing_left()
    night = backup_of(everyday, player.target, backup_id="night-2")
    assert night.judge(night.run_legacy(), 0).ok


def test_an_unfinished_restore_is_shown_and_recovered(
    make_guest: Callable[..., Guest], player: Player, backup_of: Callable[..., Backup], tmp_path: Path
) -> None:
    """Its domain is not even defined yet."""
    guest = make_guest("shut-off")
    backup = backup_of(guest, player.target)
    for done in (backup.begin(method="offline"), backup.copy(), backup.publish()):
        assert "failed" not in done, done
    copy = {"domain": guest.name, "target": str(player.target), "name": f"{guest.name}-copy", "directory": str(tmp_path)}
    backup.start_module("libvirt_domain_restore", fault="KILL before defineXML", **copy).wait(timeout=60)
    unfinished = f"the restore of domain '{guest.name}-copy' from backup night-1 is not finished"
    reported = player.run(book="virtops.live_backup.report", backup_domains=[guest.name], status_report_directory=str(tmp_path))
    [problem] = json.loads((tmp_path / "live_backup.json").read_text(encoding="utf-8"))["problems"]
    assert problem["domain"] == f"{guest.name}-copy" and unfinished in problem["what"][0], reported.output
    checked = player.run(book="virtops.live_backup.check", backup_domains=[guest.name])
    assert checked.status != 0 and unfinished in checked.output, checked.output
    for changed in (1, 0):
        recovered = player.run(book="virtops.live_backup.recover", backup_target=None)
        assert recovered.status == 0 and recovered.changed == changed, recovered.output
    guest.hypervisor.virsh("undefine", f"{guest.name}-copy")
    assert backup.claims() == []
