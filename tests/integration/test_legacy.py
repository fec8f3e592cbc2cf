# SPDX-License-Identifier: GPL-3.0-or-later
"""A legacy backup of every shape of guest is one exact instant, leaves the guest as it was, and touches nothing of the user's."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._overlay.space import RESERVE
from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor, Inside
from tests.rig.oracle import judge
from tests.rig.shell import wait_until

from .conftest import ALL, FILL, REPETITIONS, Backup, at_length, result_of

# So slow that a copy is still under way whenever one looks.
CRAWL = "64K"


def start_copy(backup: Backup, **options: object) -> Inside:
    """A copy under way: some of its data is written."""
    copying = backup.start_module("sparse_copy", domain=backup.guest.name, backup_id=backup.backup_id, **options)
    wait_until(lambda: copying.poll() is not None or any(backup.target.rglob(".*.tmp")), 60, "the copy to begin")
    assert copying.poll() is None, result_of(copying)
    return copying


def fill_up(hypervisor: Hypervisor, directory: Path) -> None:
    """Take the last block of a file system."""
    for size in ("1M", "1K"):
        hypervisor.run(["dd", "if=/dev/zero", f"of={directory}/hog", f"bs={size}", "oflag=append", "conv=notrunc"], check=False)


def guards(hypervisor: Hypervisor) -> str:
    """The processes that watch overlays."""
    return hypervisor.run(["pgrep", "--exact", "overlay_guard"], check=False).stdout


def _for_seconds(guest: Guest, seconds: int) -> str:
    """The bandwidth at which a copy takes this long, at least."""
    return str(sum(path.stat().st_blocks * 512 for path, _format in guest.images) // seconds)


def test_each_module_in_four_steps(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    before, chain, owners = everyday.durable(), backup.chain(), _owners(everyday)

    planned = backup.snapshot(check=True)
    assert planned["changed"] and planned["planned"]
    assert backup.claims() == [] and list(backup.target.iterdir()) == [] and backup.overlays() == []
    made = backup.snapshot()
    assert made["changed"] and made["overlays"] == planned["overlays"]
    assert [Path(overlay["path"]).exists() for overlay in made["overlays"]] == [True, True]
    for check in (False, True):
        again = backup.snapshot(check=check)
        assert not again["changed"] and again["overlays"] == made["overlays"]

    assert "run sparse_copy first" in backup.publish()["msg"]
    assert backup.copy(check=True)["changed"] and backup.copy(check=True)["disks"] == []
    copied = backup.copy()
    assert copied["changed"] and [disk["method"] for disk in copied["disks"]] == ["copy", "copy"]
    for check in (False, True):
        assert backup.copy(check=check) == {**copied, "changed": False, "planned": check}

    backup.commit()
    for check in (False, True):
        assert not backup.commit(check=check)["changed"]
    assert backup.chain() == chain and _owners(everyday) == owners

    published = backup.publish()
    assert published["changed"] and published["manifest"]["method"] == "legacy" and published["manifest"]["job"] is None
    assert [disk["digest"] for disk in published["manifest"]["disks"]] == [disk["digest"] for disk in copied["disks"]]
    for check in (False, True):
        assert not backup.snapshot(check=check)["changed"]
        assert not backup.publish(check=check)["changed"]
        assert not backup.recover(check=check)["changed"]
    verdict = backup.judge(published, before)
    assert verdict.ok, str(verdict)
    assert backup.claims() == []
    backup.assert_at_rest()


SHAPES = [
    ("several", "filesystem"),
    ("odd-names", "crash"),
    ("odd-drives", "crash"),
    ("block-device", "crash"),
    ("template", "crash"),
    ("transient", "crash"),
    ("uefi", "crash"),
]


@pytest.mark.parametrize(("shape", "consistency"), SHAPES if ALL else SHAPES[::2])
def test_every_shape(shape: str, consistency: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest(shape, rate=100)
    backup = backup_of(guest)
    before, chain, below, owners = guest.durable(), backup.chain(), _below(guest), _owners(guest)
    published = backup.run_legacy()
    assert published["manifest"]["consistency"]["level"] == consistency
    verdict = backup.judge(published, before)
    assert verdict.ok, str(verdict)
    assert not any(verdict.needs_recovery.values()), "the ext4 disk needs no journal recovery"
    assert backup.chain() == chain
    assert _below(guest) == below, "what other guests share is as it was"
    assert _owners(guest) == owners
    backup.assert_at_rest()
    guest.destroy()
    assert _owners(guest, mode=False) == [(0, 0)] * len(guest.images), "root's again, as before they were first used"
    verdict = judge(guest.images, before)
    assert verdict.ok, f"the guest's own disks: {verdict}"


def _below(guest: Guest) -> dict[str, str]:
    """The digests of what lies below the guest's disks."""
    paths = {path for path in guest.directory.rglob("*") if "template" in path.name or "layer" in path.name}
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}


def _owners(guest: Guest, mode: bool = True) -> list[tuple[int, ...]]:
    found = [os.stat(path) for path, _format in guest.images]
    return [(status.st_uid, status.st_gid, *([status.st_mode] if mode else [])) for status in found]


@pytest.fixture(scope="module")
def guest_of(make_shared_guest: Callable[..., Guest]) -> Callable[[str], Guest]:
    """One guest of each shape for all tests here."""
    return cache(make_shared_guest)


@pytest.mark.parametrize("number", range(REPETITIONS))
@pytest.mark.parametrize("shape", ["one-raw", "two-disks", "several", "block-device", "template"] if ALL else ["two-disks"])
def test_again_and_again(shape: str, number: int, guest_of: Callable[[str], Guest], backup_of: Callable[..., Backup]) -> None:
    guest = guest_of(shape)
    backup = backup_of(guest, backup_id=f"night-{number}")
    before, chain = guest.durable(), backup.chain()
    options = {"overlay_dir": str(backup.hypervisor.directory)} if shape == "block-device" else {}
    verdict = backup.judge(backup.run_legacy(**options), before)
    assert verdict.ok, str(verdict)
    assert backup.chain() == chain


@pytest.mark.parametrize(
    "options", [{"format": "keep"}, {"format": "qcow2"}, {"format": "raw"}, {"format": "qcow2", "compress": "zstd", "bandwidth": "500M"}]
)
def test_formats(options: dict[str, str], everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    before = everyday.durable()
    backup.snapshot()
    assert backup.copy(**options)["changed"]
    backup.commit()
    published = backup.publish()
    formats = ["raw", "qcow2"] if options["format"] == "keep" else [options["format"]] * 2
    assert [disk["format"] for disk in published["manifest"]["disks"]] == formats
    verdict = backup.judge(published, before)
    assert verdict.ok, str(verdict)
    backup.assert_at_rest()


# Trouble in the middle


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_libvirtd_restarts_in_the_copy(sig: signal.Signals, everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    before = everyday.durable()
    backup.snapshot()
    copying = start_copy(backup, bandwidth=_for_seconds(everyday, 5))
    backup.hypervisor.restart_libvirtd(sig)
    assert copying.poll() is None
    assert result_of(copying)["changed"]
    backup.commit()
    verdict = backup.judge(backup.publish(), before)
    assert verdict.ok, str(verdict)
    backup.assert_at_rest()


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_libvirtd_restarts_in_the_commit(sig: signal.Signals, everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    before = everyday.durable()
    backup.snapshot()
    assert backup.copy(fault="crawl")["changed"]
    committing = backup.start_module("libvirt_blockcommit", domain=everyday.name, backup_id=backup.backup_id)
    wait_until(lambda: committing.poll() is not None or '"in_step": true' in backup.claims()[0].read_text(), 60, "the commit")
    backup.hypervisor.restart_libvirtd(sig)
    assert committing.poll() is None
    give_speed(backup)
    assert result_of(committing)["changed"]
    verdict = backup.judge(backup.publish(), before)
    assert verdict.ok, str(verdict)
    backup.assert_at_rest()


def give_speed(backup: Backup) -> None:
    """Let the commits go on that crawl."""
    for target in backup.guest.disks:
        backup.hypervisor.virsh("blockjob", backup.guest.uuid, target, "--bandwidth", "0")


@pytest.mark.parametrize(("shape", "how"), [("two-disks", "shutdown"), ("transient", "kill")][: 2 if ALL else 1])
def test_the_domain_ends_in_the_copy(shape: str, how: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """The bases stand still all the same, so the backup is good; the overlays are committed offline."""
    guest = make_guest(shape, rate=100)
    backup = backup_of(guest)
    before, chain = guest.durable(), backup.chain()
    backup.snapshot()
    copying = start_copy(backup, bandwidth=_for_seconds(guest, 5))
    guest.wait_durable(before + 100)
    if how == "kill":
        guest.kill_qemu()
    else:
        guest.shutdown_inside()
    wait_until(lambda: guest.state() in ("shut off", "undefined"), 60, "the end")
    last = guest.durable()
    assert result_of(copying)["changed"]
    backup.commit()
    verdict = backup.judge(backup.publish(), before)
    assert verdict.ok, str(verdict)
    verdict = judge(guest.images, last)
    assert verdict.ok, f"the guest's own disks: {verdict}"
    guest.start()
    assert backup.chain() == chain
    backup.assert_at_rest()


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_lets_the_copy_clean_up(sig: signal.Signals, everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    chain = backup.chain()
    backup.snapshot()
    copying = start_copy(backup, bandwidth=CRAWL)
    copying.send_signal(sig)
    result = result_of(copying)
    assert result["failed"] and f"signal {sig.name}" in result["msg"], result
    assert backup.chain() == chain
    backup.assert_nothing_left()


def test_the_target_fills_up(everyday: Guest, backup_of: Callable[..., Backup], hypervisor: Hypervisor) -> None:
    backup = backup_of(everyday, hypervisor.small_filesystem("full-target", 200 << 20))
    chain = backup.chain()
    backup.snapshot()
    fill_up(hypervisor, backup.target)
    copied = backup.copy()
    assert copied["failed"] and "No space left" in copied["msg"], copied
    assert backup.chain() == chain
    hypervisor.run(["rm", f"{backup.target}/hog"])
    backup.assert_nothing_left()


@pytest.mark.parametrize("died", [False, True], ids=["between two steps", "after the copy was killed"])
def test_the_overlays_file_system_fills_up(
    died: bool, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], hypervisor: Hypervisor
) -> None:
    """Another writer takes its last block while no step is at work: the guest is back on its bases by itself, and loses no write."""
    guest = make_guest("two-disks", rate=100)
    backup = backup_of(guest)
    chain = backup.chain()
    small = hypervisor.small_filesystem(f"full-overlays-{died}", 400 << 20)
    assert backup.snapshot(overlay_dir=str(small))["changed"]
    if died:
        start_copy(backup, bandwidth=CRAWL).send_signal(signal.SIGKILL)
    fill_up(hypervisor, small)
    wait_until(lambda: backup.chain() == chain and guest.state() == "running", 90, "the guest to run on its bases")
    written = guest.durable()
    wait_until(lambda: guest.durable() != written, 60, "the guest to write")
    wait_until(lambda: not guards(hypervisor), 30, "the watching process to end")
    copied = backup.copy()
    assert copied["failed"] and copied["code"] == "overlay_space_short", copied
    assert "threaten to fill" in copied["msg"] and copied["msg"].endswith(" Nothing was published."), copied
    # At once, although the lease of the step before would still run.
    assert [repair["what"] for repair in backup.recover()["repairs"]] == ["claim"]
    backup.assert_nothing_left()
    durable = guest.durable()
    guest.destroy()
    verdict = judge(guest.images, durable)
    assert verdict.ok, f"the guest's own disks: {verdict}"


def test_nobody_watches_overlays_that_are_gone(everyday: Guest, backup_of: Callable[..., Backup], hypervisor: Hypervisor) -> None:
    backup = backup_of(everyday)
    backup.snapshot()
    assert guards(hypervisor)
    backup.copy()
    backup.commit()
    backup.publish()
    wait_until(lambda: not guards(hypervisor), 30, "the watching process to end")


def test_the_overlays_would_fill_their_disk(large: Guest, backup_of: Callable[..., Backup], hypervisor: Hypervisor) -> None:
    """The copy is given up in time: the guest never stops. Their disk is filled from outside, in a copy that would last for hours."""
    backup = backup_of(large)
    small = hypervisor.small_filesystem("small-overlays", 320 << 20)
    begun = backup.snapshot(overlay_dir=str(small))
    assert begun.get("changed"), begun
    copying = start_copy(backup, bandwidth=CRAWL)
    free = os.statvfs(hypervisor.outside(small))
    hypervisor.run(["fallocate", "--length", str(free.f_bavail * free.f_frsize - RESERVE + (2 << 20)), small / "hog"])
    states = set()

    def has_ended() -> bool:
        states.add(large.state())
        return copying.poll() is not None

    wait_until(has_ended, 120, "the copy to be given up")
    copied = result_of(copying)
    assert copied["failed"] and "threaten to fill" in copied["msg"], copied
    assert states == {"running"}
    backup.assert_nothing_left()


@at_length
def test_the_target_hangs_and_the_overlays_fill(
    make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], hypervisor: Hypervisor
) -> None:
    """A write that never returns holds the copy; the guest is brought back all the same, before anybody looks at the target again."""
    guest = make_guest("two-disks", size=512 << 20, fill=FILL, rate=100)
    backup = backup_of(guest, hypervisor.small_filesystem("hanging-target", 1 << 30))
    chain = backup.chain()
    small = hypervisor.small_filesystem("filled-overlays", 220 << 20)
    assert backup.snapshot(overlay_dir=str(small))["changed"]
    copying = backup.start_module("sparse_copy", domain=guest.name, backup_id=backup.backup_id, bandwidth="8M")
    wait_until(lambda: copying.poll() is not None or any(name.endswith(".tmp") for name in backup.files()), 60, "the copy to begin")
    hypervisor.run(["fsfreeze", "--freeze", backup.target])
    try:
        wait_until(lambda: _hangs(copying), 60, "a write to hang")
        free = os.statvfs(hypervisor.outside(small))
        hypervisor.run(["fallocate", "--length", str(free.f_bavail * free.f_frsize - RESERVE + (2 << 20)), small / "hog"])
        states = set()

        def is_back() -> bool:
            states.add(guest.state())
            return backup.chain() == chain

        wait_until(is_back, 60, "the guest to be on its bases")
        assert states == {"running"}
        wait_until(lambda: not any(claim.suffix == ".lock" for claim in backup.claims()), 120, "the copy to give the target up")
    finally:
        hypervisor.run(["fsfreeze", "--unfreeze", backup.target])
    copied = result_of(copying)
    assert copied["failed"] and "threaten to fill" in copied["msg"] and ".partial does not answer since" in copied["msg"], copied
    durable = guest.durable()
    assert "was given up by a recovery" in backup.publish()["msg"]
    assert [repair["what"] for repair in backup.recover()["repairs"]] == ["unfinished backup set", "claim"]
    backup.assert_nothing_left()
    guest.destroy()
    verdict = judge(guest.images, durable)
    assert verdict.ok, f"the guest's own disks: {verdict}"


def _hangs(process: Inside) -> bool:
    """Whether a thread of a process waits where no signal wakes it."""
    tasks = Path(f"/proc/{process.command_pid}/task")
    return any((task / "stat").read_text().rpartition(")")[2].split()[0] == "D" for task in tasks.iterdir())


def test_a_commit_that_is_behind_says_so_and_goes_on(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    before, chain = everyday.durable(), backup.chain()
    backup.snapshot()
    everyday.wait_durable(before + 200)
    assert backup.copy(fault="crawl")["changed"]
    for _again in range(2):
        behind = backup.commit(timeout=1)
        assert behind["failed"] and "not committed within 1 s: vda (" in behind["msg"] and "no write is lost" in behind["msg"], behind
    assert "libvirt_blockcommit" in backup.publish()["msg"]
    give_speed(backup)
    assert backup.commit()["changed"]
    assert backup.chain() == chain
    verdict = backup.judge(backup.publish(), before)
    assert verdict.ok, str(verdict)
    backup.assert_at_rest()


def test_the_claim_is_lost_and_its_copy_serves(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    chain = backup.chain()
    backup.snapshot()
    backup.hypervisor.run(["sh", "-c", "rm /var/lib/live_backup/*"])
    for module in (backup.begin, backup.snapshot):
        assert module(backup_id="night-2")["failed"]
    # Its lease still runs: only the same backup may go on, and does.
    assert "is being backed up" in backup.recover()["msg"]
    for copy in backup.overlays():
        if copy.endswith(".claim"):
            Path(copy).write_text(Path(copy).read_text().replace('"lease_until": ', '"lease_until": -'))
    assert [repair["what"] for repair in backup.recover()["repairs"]][:2] == ["overlay of disk vda", "overlay of disk vdb"]
    assert backup.chain() == chain
    backup.assert_nothing_left()


# What is the user's


def interrupted(backup: Backup) -> None:
    """A run that was killed in its copy, with the guest on its overlays."""
    assert backup.snapshot()["changed"]
    copying = start_copy(backup, bandwidth=CRAWL)
    copying.kill()
    copying.wait(timeout=30)


def assert_refused(backup: Backup, words: str) -> None:
    """Again and again, and nothing is touched."""
    files = _state(backup)
    for _again in range(2):
        for check in (True, False):
            recovered = backup.recover(check=check)
            assert recovered.get("failed") and words in recovered["msg"], recovered
    assert _state(backup) == files


def _state(backup: Backup) -> object:
    if backup.guest.state() == "running":
        return backup.chain(), backup.overlays()
    images = [Path(path) for path in backup.overlays() if path.endswith(".overlay")] + _images(backup.guest)
    return backup.overlays(), [hashlib.sha256(path.read_bytes()).hexdigest() for path in images]


def _images(guest: Guest) -> list[Path]:
    return [disk.path for disk in guest.disks.values()]


@pytest.mark.parametrize("shape", ["two-disks", "transient"] if ALL else ["two-disks"])
def test_a_domain_that_was_booted_from_its_old_definition(
    shape: str, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]
) -> None:
    guest = make_guest(shape, rate=100)
    backup = backup_of(guest)
    old = guest.xml("--inactive")
    interrupted(backup)
    guest.destroy()
    if guest.shape.persistent:
        (guest.directory / "old.xml").write_text(old, encoding="utf-8")
        backup.hypervisor.virsh("define", guest.directory / "old.xml")
    guest.start()
    assert_refused(backup, "used without its overlay")
    guest.destroy()
    assert_refused(backup, "used without its overlay")


def test_a_managed_save_on_the_overlay(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("two-disks", rate=100)
    backup = backup_of(guest)
    chain = backup.chain()
    interrupted(backup)
    backup.hypervisor.virsh("managedsave", guest.uuid)
    assert_refused(backup, "memory was saved")
    backup.hypervisor.virsh("start", guest.uuid)
    assert backup.recover()["changed"]
    assert backup.chain() == chain
    backup.assert_nothing_left()


def test_a_users_snapshot_on_top_of_ours(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    guest = make_guest("two-disks", rate=100)
    backup = backup_of(guest)
    interrupted(backup)
    backup.hypervisor.virsh("snapshot-create-as", guest.uuid, "users", "--disk-only")
    assert_refused(backup, "a snapshot that was put on top")


def test_a_disk_that_was_detached_and_attached_again_on_its_base(
    make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]
) -> None:
    guest = make_guest("two-disks", rate=100)
    backup = backup_of(guest)
    interrupted(backup)
    backup.hypervisor.virsh("detach-disk", guest.uuid, "vdb", "--live")
    wait_until(lambda: "vdb" not in backup.hypervisor.virsh("domblklist", guest.uuid), 30, "the disk to go")
    attach = ["attach-disk", guest.uuid, guest.disks["vdb"].path, "vdb", "--live", "--subdriver", "qcow2"]
    backup.hypervisor.virsh(*attach)
    assert_refused(backup, "used without its overlay")


def test_an_external_snapshot_of_the_user_stays(make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]) -> None:
    """It is the disk, as far as we are concerned: it is backed up, and what lies below is not touched."""
    guest = make_guest("one-raw", rate=100)
    backup = backup_of(guest)
    before = guest.durable()
    backup.hypervisor.virsh("snapshot-create-as", guest.uuid, "users", "--disk-only", "--no-metadata")
    chain = backup.chain()
    (base,) = _images(guest)
    below = hashlib.sha256(base.read_bytes()).hexdigest()
    verdict = backup.judge(backup.run_legacy(), before)
    assert verdict.ok, str(verdict)
    assert backup.chain() == chain
    assert hashlib.sha256(base.read_bytes()).hexdigest() == below


def test_a_users_block_job_keeps_us_away(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    copy = backup.hypervisor.directory / "users-copy.qcow2"
    backup.hypervisor.virsh("blockcopy", everyday.uuid, "vda", "--dest", copy, "--transient-job", "--format", "qcow2")
    result = backup.snapshot()
    assert result["failed"] and "copy on vda" in result["msg"], result
    assert "<mirror " in backup.hypervisor.virsh("dumpxml", everyday.uuid)
    backup.hypervisor.virsh("blockjob", everyday.uuid, "vda", "--abort")
    copy.unlink()
    backup.assert_nothing_left()


def begin_users_job(backup: Backup) -> None:
    """A pull backup, which lasts until its owner ends it."""
    foreign = backup.hypervisor.directory / "users-job.xml"
    server = f"<server transport='unix' socket='/var/lib/libvirt/qemu/users-{backup.guest.uuid}'/>"
    disk = f"<disk name='vda' backup='yes' type='file'><scratch file='{backup.hypervisor.directory}/users-scratch'/></disk>"
    foreign.write_text(f"<domainbackup mode='pull'>{server}<disks>{disk}<disk name='vdb' backup='no'/></disks></domainbackup>")
    backup.hypervisor.virsh("backup-begin", backup.guest.uuid, foreign)


def test_a_users_backup_job_keeps_us_away(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    begin_users_job(backup)
    for check in (True, False):
        result = backup.snapshot(check=check)
        assert result["failed"] and "a job (backup) is running on it" in result["msg"], result
        assert not backup.recover(check=check)["changed"]
    assert "Backup" in backup.hypervisor.virsh("domjobinfo", everyday.uuid)
    backup.hypervisor.virsh("domjobabort", everyday.uuid)
    backup.assert_nothing_left()


def test_jobs_of_the_user_on_a_disk_that_a_run_left_on_its_overlay(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    chain = backup.chain()
    interrupted(backup)
    begin_users_job(backup)
    assert_refused(backup, "A block job that is not ours runs on disk vda")
    assert "Backup" in backup.hypervisor.virsh("domjobinfo", everyday.uuid)
    backup.hypervisor.virsh("domjobabort", everyday.uuid)
    copy = backup.hypervisor.directory / "users-copy.qcow2"
    backup.hypervisor.virsh("blockcopy", everyday.uuid, "vdb", "--dest", copy, "--transient-job", "--format", "qcow2")
    assert_refused(backup, "A block job that is not ours")
    backup.hypervisor.virsh("blockjob", everyday.uuid, "vdb", "--abort")
    copy.unlink()
    assert backup.recover()["changed"]
    assert backup.chain() == chain
    backup.assert_nothing_left()


def test_files_of_the_user_beside_the_base_stay(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    """An overlay of his over the same base, and a file under the very name that ours would have."""
    backup = backup_of(everyday)
    base = _images(everyday)[1]
    theirs = base.with_name("users.qcow2")
    make = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", base, "-F", "qcow2", theirs, "64M"]
    backup.hypervisor.run(make)
    ours = Path(backup.snapshot(check=True)["overlays"][1]["path"])
    ours.write_text("theirs")
    files = {path: path.read_bytes() for path in (theirs, ours)}
    for check in (True, False):
        refused = backup.snapshot(check=check)
        assert refused["failed"] and "exists already and belongs to no known backup" in refused["msg"], refused
        assert not backup.recover(check=check)["changed"]
    assert {path: path.read_bytes() for path in files} == files
    ours.unlink()
    assert backup.run_legacy()["changed"]
    assert theirs.read_bytes() == files[theirs]
    theirs.unlink()
    backup.assert_at_rest()


def test_two_runs(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    backup.snapshot()
    copying = start_copy(backup, bandwidth=CRAWL)
    other = backup_of(everyday, backup_id="night-2")
    for step in (other.snapshot, other.begin, other.recover):
        result = step()
        assert result["failed"] and "is working on it right now" in result["msg"], result
    copying.kill()
    copying.wait(timeout=30)
    assert other.recover()["changed"]
    for step in (backup.copy, backup.publish):
        assert step()["failed"]
    backup.assert_nothing_left()


# Before anything is begun


def test_bad_input(everyday: Guest, backup_of: Callable[..., Backup]) -> None:
    backup = backup_of(everyday)
    for options, words in (
        ({"overlay_dir": f"{backup.target}/nowhere"}, "nowhere for the overlay of disk vda does not exist"),
        ({"overlay_dir": "overlays"}, "is not an absolute path"),
        ({"exclude_disks": ["vdz"]}, "has no disk vdz"),
        ({"exclude_disks": ["vda", "vdb"]}, "No disk"),
        ({"target": f"{backup.target}/nowhere"}, "does not exist"),
        ({"quiesce": "require"}, "quiesce is 'require'"),
        ({"freeze_timeout": 0}, "at least 1 second"),
    ):
        result = backup.snapshot(**options)
        assert result["failed"] and words in result["msg"], result
    for result in (backup.commit(timeout=0), backup.copy(), backup.commit(disks=["vda"], backup_id="a/b")):
        assert result["failed"], result
    backup.assert_nothing_left()
