# SPDX-License-Identifier: GPL-3.0-or-later
"""What a test of a fault does: let a run die, let something happen beside it, bring all to rest, and look at everything."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ansible_collections.virtops.live_backup.plugins.module_utils._overlay.decide import Do
from tests.integration.conftest import KILLED, Backup, result_of
from tests.rig.guest import Guest
from tests.rig.hypervisor import Inside
from tests.rig.oracle import Verdict, judge
from tests.rig.shell import run as run_here, wait_until

from .points import FLOWS


@dataclass(frozen=True)
class Run:
    """A backup by one method, step by step; `server` and `vault` are where the sets go that are sent to another host."""

    backup: Backup
    method: str = "legacy"
    server: Mapping[str, Any] = field(default_factory=dict)
    vault: Path | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        return FLOWS[self.method]

    @property
    def place(self) -> Path:
        """Where the sets are seen."""
        return self.vault or self.backup.hypervisor.outside(self.backup.target)

    def options(self, module: str) -> dict[str, Any]:
        options: dict[str, Any] = {"domain": self.backup.guest.name, "backup_id": self.backup.backup_id}
        if module in (self.modules[0], self.modules[-1]):
            options.update(self.server or {"target": str(self.backup.target)})
        if module == self.modules[0] and self.server and self.method != "push":
            options["keep_formats"] = ["raw", "qcow2"]
        device = self.backup.guest.shape.disks == ("loop",)
        if module == "libvirt_disk_snapshot" and device:
            options["overlay_dir"] = str(self.backup.hypervisor.directory)
        if module == "libvirt_backup_begin" and self.method != "push":
            options.update(method=self.method, exclusive=device)
        return options

    def start(self, module: str, fault: str = "") -> Inside:
        return self.backup.start_module(module, fault=fault, **self.options(module))

    def until_killed(self, modules: Iterable[str], fault: str) -> None:
        """Up to the first of these modules that dies of the fault."""
        for module in self.modules:
            process = self.start(module, fault if module in modules else "")
            if died(process):
                return
            result = result_of(process)
            # That the far end has died is an error of the near end.
            if " far." in fault and "failed" in result:
                return
            assert "failed" not in result, result
        raise AssertionError(f"no module came to {fault}")

    def to_its_end(self) -> dict[str, Any]:
        """All of its steps; the result of the last."""
        for module in self.modules:
            result = result_of(self.start(module))
            assert "failed" not in result, result
        return result

    def follow(self, module: str, **options: Any) -> dict[str, Any]:
        """The result of a module that is about sets."""
        at = {key: value for key, value in self.server.items() if key != "staging_dir"} or {"target": str(self.backup.target)}
        return self.backup.module(module, **at, **options)


def died(process: Inside, seconds: float = 120) -> bool:
    """Wait for a module; whether it was killed."""
    return process.wait(timeout=seconds) in KILLED


def is_stopped(process: Inside) -> bool:
    """Whether a module has stopped, or ended."""
    try:
        return process.poll() is not None or Path(f"/proc/{process.command_pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        # It ended between these two.
        return False


def images_of(path: Path) -> list[tuple[Path, str]]:
    """The images of a set."""
    return [(path / disk["file"], disk["format"]) for disk in json.loads((path / "manifest.json").read_text())["disks"]]


def assert_sets_whole(run: Run) -> list[str]:
    """Every set that can be seen is one instant of the guest, by the oracle, and there is nothing else; their names."""
    seen = sorted(path for path in run.place.glob("*/*") if path.is_dir() and not path.name.startswith("."))
    for path in seen:
        images = images_of(path)
        verdict = judge(images)
        assert verdict.ok and len(images) == len(run.backup.guest.images), f"{path}: {verdict}"
    listed = run.follow("backup_set_info")
    assert [one["path"] for one in listed["sets"] if one["status"] == "damaged"] == []
    assert sorted(one["backup_id"] for one in listed["sets"] if one["status"] == "good") == sorted(path.name for path in seen)
    return [path.name for path in seen]


def happen(backup: Backup, what: str) -> None:
    """What a table names beside a death."""
    guest = backup.guest
    if what.startswith("libvirtd"):
        backup.hypervisor.restart_libvirtd(signal.SIGKILL)
    elif what == "libvirtd hangs for a while":
        hang_libvirtd(backup)
    elif what.startswith("QEMU"):
        guest.kill_qemu()
        wait_until(lambda: guest.state() in ("shut off", "undefined"), 60, "libvirt to notice")
        # Of a transient domain nothing is left to start: its owner creates it again, from his own XML, when the disks are in order.
        if guest.shape.persistent:
            guest.start()
    elif what.startswith("the guest"):
        guest.shutdown_inside()
        wait_until(lambda: guest.state() in ("shut off", "undefined"), 60, "the shutdown")


def hang_libvirtd(backup: Backup) -> None:
    """A recovery comes meanwhile: it waits, or is told that nothing answers."""
    daemon = backup.hypervisor.daemon_pid("libvirtd")
    assert daemon is not None
    os.kill(daemon, signal.SIGSTOP)
    try:
        recovering = backup.start_module("libvirt_backup_recover", domain=backup.guest.uuid)
        descriptors = Path(f"/proc/{recovering.command_pid}/fd")
        # It has called.
        wait_until(lambda: recovering.poll() is not None or any("socket:" in os.readlink(one) for one in descriptors.iterdir()), 60, "it")
    finally:
        os.kill(daemon, signal.SIGCONT)
    result_of(recovering)


def monitor(guest: Guest, command: str, **arguments: Any) -> Any:
    """QEMU's own answer to a command, of which libvirt learns nothing."""
    named = {name.replace("_", "-"): value for name, value in arguments.items()}
    text = guest.hypervisor.virsh("qemu-monitor-command", guest.uuid, json.dumps({"execute": command, "arguments": named}))
    answer = json.loads(text)
    assert "error" not in answer, text
    return answer["return"]


def claim_of(backup: Backup) -> dict[str, Any]:
    """The claim of a domain that has one."""
    [claim] = [json.loads(path.read_text()) for path in backup.claims() if path.suffix == ".json"]
    return claim


def kill_watchdogs(backup: Backup) -> None:
    for watchdog in backup.watchdogs():
        os.kill(backup.hypervisor.outside_pid(int(watchdog)), signal.SIGKILL)


def kill_with_watchdogs(run: Run, module: str, at: str) -> None:
    """Let a module die at a call, and whoever watches it."""
    process = run.start(module, f"STOP {at}")
    wait_until(lambda: is_stopped(process), 60, f"{module} to stop {at}")
    kill_watchdogs(run.backup)
    process.kill()
    os.kill(process.pid, signal.SIGCONT)
    assert died(process), f"{module} never came to {at}"


def end_lease(backup: Backup) -> None:
    """It may have died between two steps, when its lease still runs. Within a step it has none: that is dead at once."""
    for path in backup.claims():
        if path.suffix == ".json" and not json.loads(path.read_text())["in_step"]:
            path.write_text(path.read_text().replace('"lease_until": ', '"lease_until": -'))


def obey(backup: Backup) -> None:
    """Do what a recovery asks for that cannot go on before libvirt and QEMU are of one mind again."""
    guest = backup.guest
    for _attempt in range(3):
        planned = backup.recover(check=True)
        # That libvirt never comes to the end of a pivot shows when it is waited for.
        looks = any(repair["action"] == Do.LOOK_AGAIN.value for repair in planned.get("repairs", []))
        message = (backup.recover() if looks else planned).get("msg", "")
        print(message)
        if "as docs/troubleshooting.md shows" in message:
            status = backup.hypervisor.outside(f"/run/libvirt/qemu/{guest.name}.xml")
            backup.hypervisor.stop_libvirtd()
            noted = status.read_text().replace(" job=''", " job='active-commit'").replace(" async='backup'", " async='none'")
            status.write_text(noted)
            backup.hypervisor.start_libvirtd()
        elif "libvirt has lost sight of what the block job" in message:
            guest.kill_qemu()
            # The end of that job can be the end of libvirtd.
            backup.hypervisor.start_libvirtd()
            wait_until(lambda: guest.state() == "shut off", 60, "libvirt to notice")
            guest.start()
        elif "start it, and recover again" in message:
            guest.shutdown_inside()
            wait_until(lambda: guest.state() == "shut off", 60, "the shutdown")
            guest.start()
        else:
            return


def judge_disks(guest: Guest, at_least: int, scratch: Path) -> Verdict:
    """The oracle's word on the guest's own disks. One that runs stands still meanwhile: QEMU has written out all by then."""
    if guest.shape.still and guest.state() == guest.state_when_up:
        guest.destroy()
    if guest.state() == "shut off":
        return judge(guest.images, at_least)
    guest.hypervisor.virsh("suspend", guest.uuid)
    try:
        copies = [(scratch / f"own{number}.raw", "raw") for number in range(len(guest.images))]
        for (image, image_format), (copy, _raw) in zip(guest.images, copies):
            run_here(["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", image, copy])
    finally:
        guest.hypervisor.virsh("resume", guest.uuid)
    return judge(copies, at_least)


def contents(backup: Backup) -> dict[str, str]:
    """The digests of a domain's images and overlays."""
    paths = [str(path) for path, _format in backup.guest.images] + [path for path in backup.overlays() if path.endswith(".overlay")]
    return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths}


def assert_refused(backup: Backup, message: str) -> None:
    """It is said again, with both files, and nothing is touched."""
    overlays = [path for path in backup.overlays() if path.endswith(".overlay")]
    before = contents(backup)
    assert "Neither is touched" in message and any(path in message for path in overlays), message
    assert any(str(path) in message for path, _format in backup.guest.images), message
    assert backup.recover()["msg"] == message
    assert contents(backup) == before


def heal_and_check(run: Run, before: str, durable: int, scratch: Path, may_refuse: bool = False) -> None:
    """Recover as the next run does, go on with a backup, a retention and a start, and look at everything."""
    backup, guest = run.backup, run.backup.guest
    assert_sets_whole(run)
    if guest.state() == "undefined" and not any(claim.suffix == ".json" for claim in backup.claims()):
        # It died before its claim or after: nothing here tells of a transient domain that has ended since.
        assert "There is no domain" in backup.recover()["msg"]
        guest.start()
    planned = backup.recover(check=True)
    word = word_of_user(backup, planned)
    if word:
        assert backup.recover()["msg"] == planned["msg"]
        planned = backup.recover(check=True, **word)
    recovered = backup.recover(**word)
    if recovered.get("failed") and may_refuse:
        assert_refused(backup, recovered["msg"])
        return
    assert "failed" not in recovered, recovered
    # A server that is stopped takes its socket with it.
    found, done = (list(dict.fromkeys(repair["what"] for repair in result["repairs"])) for result in (planned, recovered))
    # The watchdog of a pull may have ended the job in between. What QEMU keeps open then is seen only after that.
    of_job = ("backup job", "open file") if "backup job" in found else ()
    assert [what for what in done if what not in of_job] == [what for what in found if what not in of_job], (found, done)
    # Of a transient domain that has ended nothing is left to be found.
    assert not backup.recover().get("changed")
    assert_at_rest(run, before, durable)
    carry_on(run, max(durable, guest.durable()), scratch)


def word_of_user(backup: Backup, planned: dict[str, Any]) -> dict[str, Any]:
    """When QEMU ended in a commit that nobody watched, nothing proves that a device was not used since; here nobody used it."""
    return {"base_untouched": True} if "base_untouched" in planned.get("msg", "") and backup.guest.shape.disks == ("loop",) else {}


def run_again(run: Run, durable: int) -> None:
    """The same backup once more, as its own role does it: it goes on with what is captured, or begins anew."""
    backup, guest = run.backup, run.backup.guest
    word = word_of_user(backup, backup.recover(check=True, backup_id=backup.backup_id))
    recovered = backup.recover(backup_id=backup.backup_id, **word)
    assert "failed" not in recovered, recovered
    up = guest.state() == guest.state_when_up
    if backup.claims() == [] and up == (run.method == "offline"):
        (guest.destroy if up else guest.start)()
    for module in run.modules:
        result = result_of(run.start(module))
        assert "failed" not in result, result
        if result.get("published"):
            break
    assert backup.backup_id in assert_sets_whole(run)
    verdict = judge(images_of(run.place / guest.name / backup.backup_id), durable)
    assert verdict.ok, f"the backup that was run again: {verdict}"


def assert_at_rest(run: Run, before: str, durable: int) -> None:
    """Nothing of ours is left, and the guest goes on, from the disks that it had."""
    backup, guest = run.backup, run.backup.guest
    if guest.state() != guest.state_when_up:
        verdict = judge(guest.images, durable)
        assert verdict.ok, f"the guest's own disks: {verdict}"
        guest.start()
    assert backup.chain() == before
    files = [node["file"] for node in monitor(guest, "query-named-block-nodes")]
    assert [file for file in files if any(word in file for word in (".scratch", ".overlay", ".partial"))] == [], "QEMU has them open"
    assert backup.claims() == []
    assert list(backup.hypervisor.outside("/var/lib/libvirt/qemu").glob("*/live_backup.nbd")) == []
    backup.assert_at_rest()
    places = {run.place, backup.hypervisor.outside(backup.target)}
    left = {path for place in places for path in place.rglob("*") if path.name.startswith(".")}
    if run.vault is not None:
        # What its far end was writing when it was killed is removed when the next set needs its room.
        left -= {path for path in left if path.name == ".sender" or any(part.endswith(".partial") for part in path.parts)}
    assert {path for path in left if path.name not in (".domain.json", ".proofs")} == set()


def assert_as_captured(guest: Guest, captured: list[tuple[Path, str]]) -> None:
    """By QEMU's word too, not the oracle's alone: a guest that stands still has what was captured, block by block."""
    for (own, own_format), (copy, copy_format) in zip(guest.images, captured):
        run_here(["qemu-img", "compare", "-U", "-f", own_format, "-F", copy_format, own, copy])


def carry_on(run: Run, durable: int, scratch: Path) -> None:
    """The next backup is right, retention keeps it, and the domain starts from what it had."""
    backup, guest = run.backup, run.backup.guest
    if run.method == "offline":
        guest.destroy()
    following = replace(run, backup=replace(backup, backup_id="next"))
    result = following.to_its_end()
    assert_sets_whole(run)
    images = [(Path(result["path"]) / disk["file"], disk["format"]) for disk in result["manifest"]["disks"]]
    verdict = judge(images, durable)
    assert verdict.ok, str(verdict)
    if guest.shape.still:
        assert_as_captured(guest, images)
    pruned = run.follow("backup_set_prune", keep_last=1)
    assert "failed" not in pruned, pruned
    assert assert_sets_whole(run) == ["next"]
    verdict = judge_disks(guest, durable, scratch)
    assert verdict.ok, f"the guest's own disks: {verdict}"
    if guest.state() != guest.state_when_up:
        guest.start()
