# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever dies, whenever: after the recovery no write of the guest is lost, nothing of ours is left, and the next backup is right."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._overlay import Do
from tests.integration.conftest import Backup, result_of
from tests.rig.guest import Guest
from tests.rig.oracle import Verdict, judge
from tests.rig.shell import run, wait_until

from .points import BESIDE, FLOW, SAMPLE, SHAPES, TABLE, WITHIN, Point

ALL = bool(os.environ.get("LIVE_BACKUP_TEST_ALL"))
_numbers = count(1)


@pytest.fixture(scope="module")
def guests(make_shared_guest: Callable[..., Guest]) -> Iterator[Callable[[str], Guest]]:
    """A guest of each shape, made anew where a test has spoiled it."""
    made: dict[str, tuple[Guest, str]] = {}

    def get(shape: str) -> Guest:
        if shape in made:
            guest, disks = made[shape]
            left = [path for path in guest.hypervisor.directory.rglob("*") if path.suffix in (".overlay", ".claim")]
            if guest.state() == "running" and guest.hypervisor.virsh("domblklist", guest.uuid) == disks and not left:
                return guest
            # What it has left would be found beside the guests that come after.
            guest.remove()
            for path in left:
                path.unlink(missing_ok=True)
        guest = make_shared_guest(shape)
        made[shape] = guest, guest.hypervisor.virsh("domblklist", guest.uuid)
        return guest

    yield get
    for guest, _disks in made.values():
        if guest.state() == "running":
            durable = guest.durable()
            guest.destroy()
            verdict = judge(guest.images, durable)
            assert verdict.ok, f"the disks of a guest after all tests: {verdict}"


def options_of(backup: Backup, module: str) -> dict[str, Any]:
    options: dict[str, Any] = {"domain": backup.guest.name, "backup_id": backup.backup_id}
    if module in ("libvirt_disk_snapshot", "libvirt_backup_begin", "backup_set_publish"):
        options["target"] = str(backup.target)
    if module == "libvirt_disk_snapshot" and backup.guest.shape.disks == ("loop",):
        options["overlay_dir"] = str(backup.hypervisor.directory)
    return options


def run_until_killed(backup: Backup, point: Point) -> None:
    for module in FLOW:
        process = backup.start_module(module, fault=point.fault if module in point.modules else "", **options_of(backup, module))
        if process.wait(timeout=120) in (-signal.SIGKILL, 128 + signal.SIGKILL):
            return
        result = result_of(process)
        assert "failed" not in result, result
    raise AssertionError(f"no module came to {point.at}")


def happen(backup: Backup, what: str) -> None:
    guest = backup.guest
    if what.startswith("libvirtd"):
        backup.hypervisor.restart_libvirtd(signal.SIGKILL)
    elif what.startswith("QEMU"):
        guest.kill_qemu()
        wait_until(lambda: guest.state() in ("shut off", "undefined"), 60, "libvirt to notice")
        # Of a transient domain nothing is left to start: its owner creates it again, from his own XML, when the disks are in order.
        if guest.shape.persistent:
            guest.start()
    elif what.startswith("the guest"):
        guest.shutdown_inside()
        wait_until(lambda: guest.state() in ("shut off", "undefined"), 60, "the shutdown")


def end_lease(backup: Backup) -> None:
    """It may have died between two steps, when its lease still runs."""
    for claim in backup.claims():
        if claim.suffix == ".json":
            claim.write_text(claim.read_text().replace('"lease_until": ', '"lease_until": -'))


def obey(backup: Backup) -> None:
    """Do what a recovery asks for that cannot go on before libvirt and QEMU are of one mind again."""
    guest = backup.guest
    for _attempt in range(3):
        planned = backup.recover(check=True)
        # That libvirt never comes to the end of a pivot shows when it is waited for.
        looks = any(repair["action"] == Do.LOOK_AGAIN.value for repair in planned.get("repairs", []))
        message = (backup.recover() if looks else planned).get("msg", "")
        print(message)
        if "as docs/troubleshooting.md tells" in message:
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
    if guest.state() == "shut off":
        return judge(guest.images, at_least)
    guest.hypervisor.virsh("suspend", guest.uuid)
    try:
        copies = [(scratch / f"own{number}.raw", "raw") for number in range(len(guest.images))]
        for (image, image_format), (copy, _raw) in zip(guest.images, copies):
            run(["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", image, copy])
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


def heal_and_check(backup: Backup, before: str, durable: int, scratch: Path, may_refuse: bool = False) -> None:
    """Recover as the next run does, and look at everything."""
    guest = backup.guest
    if guest.state() == "undefined" and not any(claim.suffix == ".json" for claim in backup.claims()):
        # It died before its claim or after: nothing here tells of a transient domain that has ended since.
        assert "There is no domain" in backup.recover()["msg"]
        guest.start()
    planned = backup.recover(check=True)
    # When QEMU ended in a commit that nobody watched, nothing tells whether a device was used since; here nobody used it.
    word = {"base_untouched": True} if "base_untouched" in planned.get("msg", "") and guest.shape.disks == ("loop",) else {}
    if word:
        assert backup.recover()["msg"] == planned["msg"]
        planned = backup.recover(check=True, **word)
    recovered = backup.recover(**word)
    if recovered.get("failed") and may_refuse:
        assert_refused(backup, recovered["msg"])
        return
    assert "failed" not in recovered, recovered
    assert [repair["what"] for repair in planned["repairs"]] == [repair["what"] for repair in recovered["repairs"]]
    # Of a transient domain that has ended nothing is left to be found.
    assert not backup.recover().get("changed")
    if guest.state() != "running":
        verdict = judge(guest.images, durable)
        assert verdict.ok, f"the guest's own disks: {verdict}"
        guest.start()
    assert backup.chain() == before
    assert backup.claims() == []
    backup.assert_at_rest()
    assert [path for path in backup.target.rglob("*") if path.name.startswith(".") and path.name != ".domain.json"] == []

    following = Backup(backup.hypervisor, guest, backup.target, "next")
    durable = max(durable, guest.durable())
    for module in FLOW:
        result = following.module(module, **options_of(following, module))
        assert "failed" not in result, result
    verdict = following.judge(result, durable)
    assert verdict.ok, str(verdict)
    verdict = judge_disks(guest, durable, scratch)
    assert verdict.ok, f"the guest's own disks: {verdict}"


@pytest.mark.parametrize("point", TABLE if ALL else SAMPLE[::3], ids=str)
def test_killed(point: Point, guests: Callable[[str], Guest], backup_of: Callable[..., Backup], tmp_path: Path) -> None:
    guest = guests(point.shape)
    backup = backup_of(guest, backup_id=f"killed-{next(_numbers)}")
    before = backup.chain()
    run_until_killed(backup, point)
    durable = guest.durable()
    happen(backup, point.beside)
    heal_and_check(backup, before, durable, tmp_path, point.may_refuse)


@pytest.mark.parametrize("number", range(25 if ALL else 1))
@pytest.mark.parametrize("at", list(WITHIN) if ALL else ["the snapshot", "the start of the push"])
def test_libvirtd_dies_within(
    at: str, number: int, guests: Callable[[str], Guest], backup_of: Callable[..., Backup], tmp_path: Path
) -> None:
    """And the module with it. QEMU may be further than libvirt knows."""
    guest = guests("two-disks")
    backup = backup_of(guest, backup_id=f"within-{next(_numbers)}")
    before = backup.chain()
    seconds = random.Random(f"{SEED}-{at}-{number}").uniform(0.0, 0.08)
    module, call = WITHIN[at]
    flow = FLOW if module in FLOW else (module,)
    for step in flow[: flow.index(module) + 1]:
        process = backup.start_module(step, fault=f"KILL {seconds} {call}" if step == module else "", **options_of(backup, step))
        ended = process.wait(timeout=120)
    print(f"seed {SEED}-{at}-{number}: {seconds:.3f} s after it began; the module ended with {ended}")
    durable = guest.durable()
    backup.hypervisor.start_libvirtd()
    end_lease(backup)
    obey(backup)
    heal_and_check(backup, before, durable, tmp_path)


def monitor(guest: Guest, command: str, **arguments: Any) -> Any:
    """QEMU's own answer to a command, of which libvirt learns nothing."""
    named = {name.replace("_", "-"): value for name, value in arguments.items()}
    text = guest.hypervisor.virsh("qemu-monitor-command", guest.uuid, json.dumps({"execute": command, "arguments": named}))
    answer = json.loads(text)
    assert "error" not in answer, text
    return answer["return"]


@pytest.mark.parametrize("then", ["nothing", "the guest shuts down"])
def test_libvirt_does_not_know_of_the_overlays(
    then: str, guests: Callable[[str], Guest], backup_of: Callable[..., Backup], tmp_path: Path
) -> None:
    """What libvirtd leaves that is killed between QEMU's switch to the overlays and its own note of it."""
    guest = guests("two-disks")
    backup = backup_of(guest, backup_id=f"unknown-{next(_numbers)}")
    before = backup.chain()
    process = backup.start_module(FLOW[0], fault="KILL before snapshotCreateXML", **options_of(backup, FLOW[0]))
    process.wait(timeout=60)
    [claim] = [json.loads(path.read_text()) for path in backup.claims() if path.suffix == ".json"]
    inserted = [drive["inserted"] for drive in monitor(guest, "query-block")]
    nodes = {medium["image"]["filename"]: medium["node-name"] for medium in inserted}
    switches = []
    for number, overlay in enumerate(claim["plan"]["overlays"]):
        name, path = f"libvirt-{90 + number}", overlay["path"]
        run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", overlay["base"], "-F", overlay["base_format"], path])
        run(["chown", "--reference", overlay["base"], path])
        monitor(guest, "blockdev-add", driver="file", filename=path, node_name=f"{name}-storage", auto_read_only=True)
        monitor(guest, "blockdev-add", driver="qcow2", file=f"{name}-storage", backing=None, node_name=f"{name}-format")
        switches.append({"type": "blockdev-snapshot", "data": {"node": nodes[overlay["base"]], "overlay": f"{name}-format"}})
    monitor(guest, "transaction", actions=switches)
    guest.wait_durable(guest.durable() + 20)
    assert backup.chain() == before, "libvirt does not know"
    durable = guest.durable()
    if then != "nothing":
        happen(backup, then)
        refused = backup.recover()["msg"]
        assert "was used without its overlay" in refused and "The overlay was written last" in refused
        assert_refused(backup, refused)
        overlays = [(Path(overlay["path"]), "qcow2") for overlay in claim["plan"]["overlays"]]
        verdict = judge(overlays, durable)
        assert verdict.ok, f"the overlays that are kept: {verdict}"
        return
    planned = backup.recover(check=True)
    assert [repair["action"] for repair in planned["repairs"]][1:3] == [Do.COMMIT_IN_QEMU.value] * 2
    heal_and_check(backup, before, durable, tmp_path)


def test_libvirt_loses_sight_of_the_guest(guests: Callable[[str], Guest], backup_of: Callable[..., Backup], tmp_path: Path) -> None:
    """What libvirtd notes of a domain within a pivot, it cannot read if it is killed then."""
    guest = guests("two-disks")
    backup = backup_of(guest, backup_id=f"lost-{next(_numbers)}")
    before = backup.chain()
    for module, fault in ((FLOW[0], ""), (FLOW[1], "KILL after blockCommit")):
        backup.start_module(module, fault=fault, **options_of(backup, module)).wait(timeout=60)
    status = backup.hypervisor.outside(f"/run/libvirt/qemu/{guest.name}.xml")
    wait_until(lambda: " job='active-commit'" in status.read_text(), 30, "libvirt to note the commit")
    backup.hypervisor.stop_libvirtd(signal.SIGKILL)
    status.write_text(status.read_text().replace(" job='active-commit'", " job=''"))
    backup.hypervisor.start_libvirtd()
    assert guest.state() == "shut off"
    refused = backup.recover()["msg"]
    assert "libvirt has lost sight of the domain" in refused
    durable = guest.durable()
    guest.wait_durable(durable + 10)
    assert backup.recover(check=True)["msg"] == refused
    obey(backup)
    heal_and_check(backup, before, durable, tmp_path)


SEED = int(os.environ.get("LIVE_BACKUP_SEED", "1"))


@pytest.mark.parametrize("number", range(40 if ALL else 2))
def test_killed_at_any_time(number: int, guests: Callable[[str], Guest], backup_of: Callable[..., Backup], tmp_path: Path) -> None:
    """Set LIVE_BACKUP_SEED to try other times."""
    chance = random.Random(f"{SEED}-{number}")
    guest = guests(chance.choice(SHAPES) if ALL else "two-disks")
    backup = backup_of(guest, backup_id=f"random-{next(_numbers)}")
    before = backup.chain()
    seconds, beside = chance.uniform(0.0, 6.0), chance.choice(BESIDE)
    print(f"seed {SEED}-{number}: {guest.shape.what}; killed after {seconds:.3f} s, {beside}")
    end = time.monotonic() + seconds
    for module in FLOW:
        process = backup.start_module(module, **options_of(backup, module))
        try:
            process.wait(timeout=max(0.01, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=30)
            break
    durable = guest.durable()
    happen(backup, beside)
    end_lease(backup)
    if beside == BESIDE[1]:
        # It may have been within a call still, whose client was dead.
        obey(backup)
    heal_and_check(backup, before, durable, tmp_path, not guest.shape.persistent and beside in BESIDE[2:])
