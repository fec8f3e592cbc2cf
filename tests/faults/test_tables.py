# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever of a backup, a retention, a proof, a recovery or a far end dies, and wherever: what is published is whole, and all goes on.

The guests stand still, so that a row costs some seconds of one processor.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Backup, result_of
from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor, Inside
from tests.rig.oracle import judge
from tests.rig.shell import wait_until
from tests.rig.sshd import Sshd

from .cuts import FAR_CALLS, FAR_ENDS, PROOFS, PRUNES, RECOVERIES, RESTORES, Cut
from .points import BESIDE
from .steps import Run, assert_sets_whole, carry_on, died, end_lease, happen, heal_and_check, images_of, run_again
from .tables import KILLS, Kill

ALL = bool(os.environ.get("LIVE_BACKUP_TEST_ALL"))
_numbers = count(1)


@pytest.mark.parametrize("point", KILLS if ALL else KILLS[7::60], ids=str)
def test_killed(point: Kill, guests: Callable[[str], Guest], backup_of: Callable[..., Backup], tmp_path: Path) -> None:
    guest = guests(point.shape)
    run = Run(backup_of(guest, backup_id=f"table-{next(_numbers)}"), point.method)
    before, begun = run.backup.chain(), guest.durable()
    guest.write(5)
    if point.method == "offline":
        guest.destroy()
    run.until_killed(point.modules, point.fault)
    durable = guest.durable()
    if point.beside == "the domain is started":
        guest.start()
    elif not (point.method == "offline" and point.beside in BESIDE[2:]):
        happen(run.backup, point.beside)
    end_lease(run.backup)
    if point.again:
        run_again(run, begun)
    heal_and_check(run, before, durable, tmp_path)


@pytest.fixture(scope="module")
def three_sets(guests: Callable[[str], Guest], hypervisor: Hypervisor) -> Iterator[Callable[[str], Path]]:
    """Targets with three sets of a guest, to be copied: each set of another instant."""
    made: dict[str, Path] = {}

    def of(shape: str, level: str = "full") -> Path:
        guest = guests(shape)
        target = hypervisor.directory / "targets" / f"three-sets-{guest.name}-{level}"
        if made.get(f"{shape} {level}") != target:
            target.mkdir(parents=True)
            made[f"{shape} {level}"] = target
            for number in range(3):
                guest.write(5)
                last = Backup(hypervisor, guest, target, f"night-{number}")
                last.run(level=level)
            assert "failed" not in last.module("libvirt_backup_untrack", domain=guest.name)
        return target

    yield of
    for target in made.values():
        shutil.rmtree(target)


def with_three_sets(three_sets: Callable[[str], Path], guest: Guest, shape: str, backup_of: Callable[..., Backup]) -> Run:
    run = Run(backup_of(guest), "push")
    shutil.copytree(three_sets(shape), run.backup.target, dirs_exist_ok=True)
    assert assert_sets_whole(run) == ["night-0", "night-1", "night-2"]
    return run


@pytest.mark.parametrize("point", PRUNES if ALL else PRUNES[10::5], ids=str)
def test_retention_is_killed(
    point: Cut, guests: Callable[[str], Guest], three_sets: Callable[[str], Path], backup_of: Callable[..., Backup], tmp_path: Path
) -> None:
    guest = guests("still")
    run = with_three_sets(three_sets, guest, "still", backup_of)
    for name in ("night-0", "night-1"):
        assert run.follow("backup_set_verify", domain=guest.name, backup_id=name)["verified"]
    for expected in (True, None):
        # It is cut off twice, if it comes that far again.
        process = run.backup.start_module("backup_set_prune", fault=point.fault, target=str(run.backup.target), keep_last=1)
        assert died(process) or not expected
        assert "night-2" in assert_sets_whole(run)
    assert run.follow("backup_set_prune", keep_last=1)["kept"][-1]["backup_id"] == "night-2"
    assert assert_sets_whole(run) == ["night-2"]
    assert [path.name for path in (run.place / guest.name).iterdir() if path.name.endswith(".removing")] == []
    carry_on(run, guest.durable(), tmp_path)


@pytest.mark.parametrize("point", PROOFS if ALL else PROOFS[5:6], ids=str)
def test_a_proof_is_killed(
    point: Cut, guests: Callable[[str], Guest], three_sets: Callable[[str], Path], backup_of: Callable[..., Backup], tmp_path: Path
) -> None:
    guest = guests("still")
    run = with_three_sets(three_sets, guest, "still", backup_of)
    asked = {"target": str(run.backup.target), "domain": guest.name, "backup_id": "night-1"}
    assert died(run.backup.start_module("backup_set_verify", fault=point.fault, **asked))
    assert len(assert_sets_whole(run)) == 3
    assert run.follow("backup_set_verify", domain=guest.name, backup_id="night-1")["verified"]
    assert [path.name for path in (run.place / guest.name / ".proofs").iterdir()] == ["night-1.json"]
    carry_on(run, guest.durable(), tmp_path)


@pytest.mark.parametrize("point", RECOVERIES if ALL else RECOVERIES[9::18], ids=str)
def test_a_recovery_is_killed(
    point: Cut, guests: Callable[[str], Guest], large_still: Guest, backup_of: Callable[..., Backup], tmp_path: Path
) -> None:
    """At each repair, and then again there, if the next one comes that far."""
    job = point.what == "a job"
    guest = large_still if job else guests("still")
    run = Run(backup_of(guest, backup_id=f"recovery-{next(_numbers)}"), "push" if job else "legacy")
    before = run.backup.chain()
    begun = result_of(run.start(run.modules[0], "creep" if job else ""))
    assert "failed" not in begun, begun
    guest.write(5)
    if "shut off" in point.what:
        guest.shutdown_inside()
    durable = guest.durable()
    end_lease(run.backup)
    for expected in (True, None):
        assert died(run.backup.start_module("libvirt_backup_recover", fault=point.fault, domain=guest.name)) or not expected
        assert_sets_whole(run)
    heal_and_check(run, before, durable, tmp_path)


@pytest.mark.parametrize("point", RESTORES if ALL else RESTORES[13::14], ids=str)
def test_a_restore_is_killed(
    point: Cut, guests: Callable[[str], Guest], three_sets: Callable[[str], Path], backup_of: Callable[..., Backup], tmp_path: Path
) -> None:
    """Its disks may be of two instants then: they are not backed up, no set goes, and it comes to its end or is undone."""
    shape = "still-device" if "device" in point.what else "still"
    guest = guests(shape)
    run = with_three_sets(three_sets, guest, shape, backup_of)
    guest.write(5)
    name = "night-1" if point.what.startswith("undoing") else "night-0"
    newest, wanted = guest.durable(), [judge(images_of(run.place / guest.name / one)).number for one in ("night-0", name)]
    guest.destroy()
    given = {"target": str(run.backup.target), "domain": guest.name, "overwrite": True, "again": True, "exclusive": True}

    def restore(fault: str = "", backup_id: str = "night-0") -> Inside:
        return run.backup.start_module("libvirt_domain_restore", fault=fault, **given, backup_id=backup_id)

    if point.what.startswith("restore"):
        assert died(restore(point.fault))
    else:
        assert died(restore("KILL after _restore.files._put"))
        again = restore(point.fault, name) if name == "night-1" else None
        assert died(again or run.backup.start_module("libvirt_backup_recover", fault=point.fault, domain=guest.name))

    unfinished = any(claim.suffix == ".journal" for claim in run.backup.claims())
    other = Run(Backup(run.backup.hypervisor, guest, run.backup.target, "between"), "offline")
    begun = result_of(other.start(other.modules[0]))
    assert bool(begun.get("failed")) == unfinished and (not unfinished or "is not finished" in begun["msg"]), begun
    pruned = run.follow("backup_set_prune", keep_last=1)
    assert bool(pruned.get("failed")) == unfinished, pruned
    if not unfinished:
        # Nobody takes the disks for what they are not, and the backup goes on.
        for module in other.modules[1:]:
            assert "failed" not in result_of(other.start(module))
    seen = assert_sets_whole(run)
    assert seen == (["night-0", "night-1", "night-2"] if unfinished else ["between", "night-2"])

    recovered = result_of(restore(backup_id=name)) if point.again and unfinished else run.backup.recover()
    broken = "may hold only a part" in recovered.get("msg", "")
    assert "failed" not in recovered or (broken and shape == "still-device"), recovered
    verdict = judge(guest.images)
    assert verdict.ok or broken, verdict
    assert broken or verdict.number in (wanted[1:] if point.again and unfinished else [newest, *wanted]), verdict
    restored = result_of(restore(backup_id="night-2"))
    assert "failed" not in restored, restored
    verdict = judge(guest.images)
    assert verdict.ok and verdict.number == judge(images_of(run.place / guest.name / "night-2")).number, verdict
    left = [path for path in guest.directory.iterdir() if path.suffix in (".restoring", ".replaced")]
    assert left == [] and run.backup.claims() == []
    guest.start()
    carry_on(run, guest.durable(), tmp_path)


@pytest.fixture(scope="module")
def large_still(make_shared_guest: Callable[..., Guest]) -> Guest:
    """A guest whose push lasts until it is ended: it is held back as soon as it has begun."""
    return make_shared_guest("still", size=384 << 20, fill=256 << 20)


@pytest.mark.parametrize("point", FAR_ENDS if ALL else FAR_ENDS[8::20], ids=str)
def test_the_far_end_is_killed(
    point: Cut, guests: Callable[[str], Guest], hypervisor: Hypervisor, backup_of: Callable[..., Backup], tmp_path: Path
) -> None:
    """The near end sees a connection that is lost, undoes what it has begun, and comes again."""
    guest = guests("still")
    backup = backup_of(guest, backup_id=f"far-{next(_numbers)}")
    before, vault = backup.chain(), tmp_path / "vault"
    vault.mkdir()
    with Sshd(tmp_path / "sshd", hypervisor) as sshd:
        server = {"target": f"{sshd.url}{vault}", **sshd.options, "staging_dir": str(backup.target)}
        run = Run(backup, point.method.split()[0], server, vault)
        if run.method == "offline":
            guest.destroy()
        run.until_killed(run.modules, point.fault)
        wait_until(
            lambda: not any(path.name == ".sender" for path in vault.rglob(".sender") if is_held(path)), 30, "the far end to be gone"
        )
        heal_and_check(run, before, guest.durable(), tmp_path)
        assert [path.name for path in vault.rglob(".*") if path.name != ".domain.json"] == []
        assert [path for path in backup.target.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("point", FAR_CALLS if ALL else FAR_CALLS[6::12], ids=str)
def test_the_far_end_is_killed_as_it_is_asked(
    point: Cut,
    guests: Callable[[str], Guest],
    three_sets: Callable[..., Path],
    hypervisor: Hypervisor,
    backup_of: Callable[..., Backup],
    tmp_path: Path,
) -> None:
    """All that it has is whole, and what was asked succeeds when it is asked again."""
    guest, vault = guests("still"), tmp_path / "vault"
    shutil.copytree(three_sets("still", "auto" if point.what == "backup_set_consolidate" else "full"), vault)
    guest.write(5)
    newest, night = 0, {"domain": guest.name, "backup_id": "night-1"}
    archive = tmp_path / "archive"
    archive.mkdir()
    asked: dict[str, Any] = {
        "backup_set_prune": {"keep_last": 1},
        "backup_set_copy": {"dest": str(archive)},
        "libvirt_domain_restore": {**night, "overwrite": True, "again": True},
    }
    with Sshd(tmp_path / "sshd", hypervisor) as sshd:
        backup = backup_of(guest)
        server = {"target": f"{sshd.url}{vault}", **sshd.options}
        run = Run(backup, "push", {**server, "staging_dir": str(backup.target)}, vault)
        options = {**server, **asked.get(point.what, night)}
        if restores := point.what == "libvirt_domain_restore":
            guest.destroy()
            # It may have written more than it said.
            newest = judge(guest.images).number
        failed = backup.module(point.what, fault=point.fault, **options)
        assert failed.get("failed") and "The connection to 127.0.0.1 was lost" in failed["msg"], failed
        assert "night-2" in assert_sets_whole(run)
        assert not restores or judge(guest.images).number == newest
        done = backup.module(point.what, **options)
        assert "failed" not in done, done
        sets = ["night-0", "night-1", "night-2"]
        if point.what == "backup_set_consolidate":
            sets.insert(2, "night-1.full")
            assert judge(images_of(vault / guest.name / sets[2])).number == judge(images_of(vault / guest.name / "night-1")).number
        assert assert_sets_whole(run) == (["night-2"] if point.what == "backup_set_prune" else sets)
        if point.what == "backup_set_copy":
            assert sorted(path.name for path in (archive / guest.name).iterdir() if path.name[0] != ".") == sets
            for name in sets:
                copied, first = (judge(images_of(place / guest.name / name)) for place in (archive, vault))
                assert copied.ok and copied.number == first.number, (str(copied), str(first))
        if restores:
            assert judge(guest.images).number == judge(images_of(vault / guest.name / "night-1")).number
            guest.start()
        assert point.what != "backup_set_verify" or [path.name for path in (vault / guest.name / ".proofs").iterdir()] == ["night-1.json"]
        left = [path.name for path in vault.rglob(".*") if path.name.endswith((".removing", ".partial", ".tmp"))]
        assert left == [] and [path for path in guest.directory.iterdir() if path.suffix in (".restoring", ".replaced")] == []
        carry_on(run, guest.durable(), tmp_path)


def is_held(path: Path) -> bool:
    """Whether its writer lives."""
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
