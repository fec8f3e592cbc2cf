# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet: a controller, hypervisors and a backup server with SSH between them; each domain is a row of its own."""

from __future__ import annotations

import fcntl
import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import wall_time
from tests.rig.fleet import PLAYBOOK, Fleet
from tests.rig.guest import MIB, Guest
from tests.rig.hypervisor import Hypervisor
from tests.rig.oracle import judge
from tests.rig.shell import wait_until

from .conftest import ALL, CORES, at_length
from .test_role import Play, ended

HYPERVISORS, DOMAINS = (4, 4) if ALL else (2, 2)
# As clocks are.
AHEAD = {"hv2": 1}
BACKUP = "virtops.live_backup.backup"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("fleet", HYPERVISORS, ahead=AHEAD) as made:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda number: start_guests(made.hypervisors[number], number + 1, DOMAINS), range(HYPERVISORS)))
        yield made


def start_guests(hypervisor: Hypervisor, number: int, domains: int) -> None:
    for one in range(1, domains + 1):
        # The second can freeze file systems.
        hypervisor.guest(f"g{number}{one}", "several" if one == 2 else "two-disks", rate=20, size=16 * MIB)


def guests(fleet: Fleet) -> dict[str, Guest]:
    """By the names of their rows."""
    return {f"{guest.name}@{fleet.short_name(hypervisor)}": guest for hypervisor in fleet.hypervisors for guest in hypervisor.guests()}


@pytest.fixture
def target(fleet: Fleet, request: pytest.FixtureRequest) -> Path:
    """An export target that all hypervisors share, as a mounted one."""
    path = fleet.directory / re.sub(r"[^a-z0-9]+", "-", request.node.name)
    path.mkdir()
    return path


def play(fleet: Fleet, *options: str, book: str = BACKUP, **more: Any) -> Play:
    return ended(fleet.start(book, *options, **more))


def assert_right(target: Path, guest: Guest, backup_id: str, at_least: int) -> None:
    """The published set is one instant, and not older than the number."""
    path = target / guest.name / backup_id
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    verdict = judge([(path / disk["file"], disk["format"]) for disk in manifest["disks"]], at_least)
    assert verdict.ok, str(verdict)


def test_all_domains_of_all_hypervisors(fleet: Fleet, target: Path) -> None:
    everyone = guests(fleet)
    durable = {row: guest.durable() for row, guest in everyone.items()}
    played = play(fleet, backup_target=str(target), backup_id="night-1", backup_progress_interval=1)
    assert played.status == 0, played.output
    assert {row: counts["failed"] + counts["unreachable"] for row, counts in played.recap.items() if "@" in row} == dict.fromkeys(
        everyone, 0
    )
    assert {(row["domain"], row["hypervisor"]) for row in played.rows.values()} == {tuple(row.split("@")) for row in everyone}
    for row, guest in everyone.items():
        assert_right(target, guest, "night-1", durable[row])
    again = play(fleet, backup_target=str(target), backup_id="night-1")
    assert again.status == 0 and all(counts["changed"] == 0 for counts in again.recap.values()), again.output
    assert "[WARNING]" not in played.output + again.output


@at_length
def test_a_hypervisor_is_cut_off_in_the_middle(fleet: Fleet, target: Path) -> None:
    """The others succeed; the rerun, of just what failed, brings the rest."""
    lost = fleet.hypervisors[-1]
    name = fleet.short_name(lost)
    everyone = guests(fleet)
    reports = fleet.directory / "reports"
    reports.mkdir()
    written = {"status_report_directory": str(reports)}
    running = fleet.start(BACKUP, backup_target=str(target), backup_id="night-1", backup_parallel=1, **written)
    try:
        wait_until(
            lambda: any("begin" in path.read_text() for path in lost.outside("/var/lib/live_backup").glob("*.json")), 120, "a backup"
        )
        fleet.cut_off(lost)
        played = ended(running)
    finally:
        fleet.join(lost)
    assert played.status != 0
    failed = {row for row, counts in played.recap.items() if "@" in row and counts["failed"] + counts["unreachable"]}
    assert failed and {row.split("@")[1] for row in failed} == {name}, played.output
    for row, guest in everyone.items():
        assert (target / guest.name / "night-1").exists() == (row not in failed)
    assert {played.rows[row.split("@")[0]]["status"] for row in failed} == {"failed"}
    [limit] = set(re.findall(r"--limit '([^']*)'", played.output))
    assert set(limit.split(",")) == {name, *failed}
    told = json.loads((reports / "live_backup.json").read_text(encoding="utf-8"))
    assert {(one["hypervisor"], one["domain"]) for one in told["problems"]} == {(name, ""), *((name, row.split("@")[0]) for row in failed)}
    assert {one["hypervisor"]: bool(one["msg"]) for one in told["hypervisors"]} == {
        fleet.short_name(one): one is lost for one in fleet.hypervisors
    }

    again = play(fleet, "--limit", limit, backup_target=str(target), backup_id="night-1", **written)
    assert again.status == 0, again.output
    assert {row for row in again.recap if "@" in row} == failed
    assert json.loads((reports / "live_backup.json").read_text(encoding="utf-8"))["problems"] == []
    for guest in everyone.values():
        assert_right(target, guest, "night-1", 1)
    assert list(lost.outside("/var/lib/live_backup").glob("*")) == []


@at_length
def test_a_limit_that_names_no_row(fleet: Fleet, target: Path) -> None:
    """Its hypervisor's domains are backed up all the same, by the role itself."""
    played = play(fleet, "--limit", "hv1", backup_target=str(target), backup_id="night-1")
    assert played.status == 0, played.output
    assert {row["hypervisor"] for row in played.rows.values()} == {"hv1"} and len(played.rows) == DOMAINS
    assert set(played.recap) == {"hv1"}


def test_tags_leave_nothing_out_silently(fleet: Fleet, target: Path) -> None:
    played = play(fleet, "--tags", "backup", backup_target=str(target))
    assert played.status != 0 and "Nothing was backed up" in played.output and list(target.iterdir()) == [], played.output
    site = fleet.directory / "site.yml"
    site.write_text(json.dumps([{"import_playbook": BACKUP, "tags": "nightly"}]), encoding="utf-8")
    played = play(fleet, "--tags", "nightly", book=str(site), backup_target=str(target), backup_domains=["g11"], backup_id="night-1")
    assert played.status == 0 and played.rows["g11"]["status"] == "published", played.output


@at_length
def test_a_domain_migrates_between_discovery_and_begin(fleet: Fleet, target: Path) -> None:
    """It fails, and alone; the limit that was told names it where it is no more; the same run again backs it up where it is."""
    here, there = fleet.hypervisors[:2]
    guest = guests(fleet)["g11@hv1"]
    options = {"backup_target": str(target), "backup_id": "night-1", "backup_domains": ["g11", "g21"]}
    # It cannot be begun before its turn.
    with (here.outside("/var/lib/live_backup") / "turn.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        running = fleet.start(BACKUP, **options)
        assert running.stdout is not None
        assert any("TASK [virtops.live_backup.backup : Start the backup]" in line for line in running.stdout)
        fleet.migrate(guest, there)
    try:
        played = ended(running)
        assert played.status != 0 and {name: row["status"] for name, row in played.rows.items()} == {"g11": "failed", "g21": "published"}
        assert "If it was migrated" in played.rows["g11"]["msg"], played.output
        [limit] = set(re.findall(r"--limit '([^']*)'", played.output))
        gone = play(fleet, "--limit", limit, **options)
        assert gone.status != 0 and "--limit names g11@hv1, and hv1 has no such domain" in gone.output, gone.output
        again = play(fleet, **options)
        assert again.status == 0 and "g11@hv2" in again.recap and again.recap["g21@hv2"]["changed"] == 0, again.output
        assert_right(target, guest, "night-1", 1)
    finally:
        fleet.migrate(Guest(there, guest.directory), here)


@at_length
def test_no_more_than_so_many_at_a_time(fleet: Fleet, target: Path) -> None:
    """By the manifests: the windows of one hypervisor do not meet, those of two do."""
    played = play(fleet, backup_target=str(target), backup_id="night-1", backup_parallel=1)
    assert played.status == 0, played.output
    one_at_a_time(played)
    rows = played.rows.values()
    begun = {name: min(str(row["started"]) for row in rows if row["hypervisor"] == name) for name in ("hv1", "hv2")}
    ended_at = {name: max(str(row["finished"]) for row in rows if row["hypervisor"] == name) for name in ("hv1", "hv2")}
    assert begun["hv1"] < ended_at["hv2"] and begun["hv2"] < ended_at["hv1"], (begun, ended_at)


@at_length
def test_the_controller_is_killed_and_the_play_run_again(fleet: Fleet, target: Path) -> None:
    running = fleet.start(BACKUP, backup_target=str(target), backup_id="night-1")
    claims = [hypervisor.outside("/var/lib/live_backup") for hypervisor in fleet.hypervisors]
    wait_until(lambda: any(list(path.glob("*.json")) for path in claims), 120, "a backup")
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=60)
    again = play(fleet, backup_target=str(target), backup_id="night-1")
    assert again.status == 0, again.output
    for guest in guests(fleet).values():
        assert_right(target, guest, "night-1", 1)
    assert [list(path.glob("*")) for path in claims] == [[]] * HYPERVISORS


@at_length
def test_domains_of_one_name_and_one_target(fleet: Fleet, target: Path) -> None:
    """Two hypervisors have a domain of the same name: each has its own directory, and its own row."""
    twins = [hypervisor.guest("twin", "one-raw", rate=20, size=16 * MIB) for hypervisor in fleet.hypervisors[:2]]
    try:
        played = play(
            fleet, "--limit", "hv1,hv2,live_backup_domains", backup_domains=["twin"], backup_target=str(target), backup_id="night-1"
        )
        assert played.status == 0, played.output
        assert {"twin@hv1", "twin@hv2"} <= set(played.recap)
        published = {
            json.loads(path.read_text(encoding="utf-8"))["domain"]["uuid"]: path for path in target.glob("*/night-1/manifest.json")
        }
        assert set(published) == {twin.uuid for twin in twins}
    finally:
        for twin in twins:
            twin.remove()


class Consoles:
    """What each guest had told to be durable, and when, by the host's clock."""

    def __init__(self, watched: list[Guest]) -> None:
        self._told: dict[str, list[tuple[float, int]]] = {guest.name: [] for guest in watched}
        self._guests = watched
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Consoles:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.02):
            for guest in self._guests:
                self._told[guest.name].append((time.time(), guest.durable()))

    def between(self, guest: Guest, start: float, end: float) -> tuple[int, int]:
        """What was durable at the start, and what was told by the end."""
        told = self._told[guest.name]
        return max(number for at, number in told if at <= start), min(number for at, number in told if at >= end)


PROGRAMS = [PLAYBOOK, *(pytest.param(core / "bin/ansible-playbook", marks=at_length) for core in CORES)]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.parts[-3])
def test_a_group_is_captured_at_one_instant_and_restored(program: Path, fleet: Fleet, target: Path) -> None:
    """By the hypervisors' clocks, which are apart, and by what the guests had told on their consoles when; incremental sets, too."""
    everyone = guests(fleet)
    names = ["g11", "g12", "g21"]
    members = [guest for guest in everyone.values() if guest.name in names]
    options = {"backup_target": str(target), "backup_domains": [*names, "g22"], "backup_groups": {"shop": names}, "program": program}
    options["backup_level"] = "auto"
    first = play(fleet, backup_id="night-0", **options)
    assert {row["level"] for row in first.rows.values()} == {"full"}, first.output
    for number in range(1, 4):
        with Consoles(members) as consoles:
            played = play(fleet, backup_id=f"night-{number}", **options)
        # A busy machine may be too slow for the bound: then that is what it says, and nothing is a group.
        if played.status == 0:
            break
        assert "and backup_group_max_spread is 250" in played.output, played.output
        assert {row["group"] for row in played.rows.values()} == {""}
    night = f"night-{number}"
    assert played.status == 0, played.output
    assert {row["level"] for row in played.rows.values()} == {"incremental"}, played.output
    assert {name: row["group"] for name, row in played.rows.items()} == {"g11": "shop", "g12": "shop", "g21": "shop", "g22": ""}
    [spread] = {played.rows[name]["group_spread_ms"] for name in names}
    by_clock = {name: wall_time(played.rows[name]["instant"]) for name in names}
    assert by_clock["g21"] - max(by_clock["g11"], by_clock["g12"]) > 0.75, by_clock
    instants = [by_clock[name] - AHEAD.get(played.rows[name]["hypervisor"], 0) for name in names]
    print(f"spread {spread} ms, by the manifests {(max(instants) - min(instants)) * 1000:.0f} ms")
    assert 0 < spread < 250
    error = json.loads((target / "g11" / night / "manifest.json").read_text(encoding="utf-8"))["group"]["clock_error_ms"]
    assert abs((max(instants) - min(instants)) * 1000 - spread) <= 2 * error + 1, (instants, error)
    for guest in members:
        manifest = json.loads((target / guest.name / night / "manifest.json").read_text(encoding="utf-8"))
        assert [member["domain"] for member in manifest["group"]["members"]] and manifest["group"]["spread_ms"] == spread
        verdict = judge([(target / guest.name / night / disk["file"], disk["format"]) for disk in manifest["disks"]])
        # It may have been captured from half a second before libvirt said so, and a console is read a moment later.
        least, most = consoles.between(guest, min(instants) - 0.5, max(instants) + 0.5)
        assert verdict.ok and least <= verdict.number <= most, (str(verdict), least, most)
    again = play(fleet, backup_id=night, **options)
    assert again.status == 0 and all(counts["changed"] == 0 for counts in again.recap.values()), again.output

    for guest in members:
        guest.destroy()
    told = {guest.name: len(guest.console()) for guest in members}
    restore = {"restore_group": "shop", "restore_target": str(target), "restore_overwrite": True, "restore_start": True}
    restore["program"] = program
    missing = play(fleet, "--limit", "hv1", book="virtops.live_backup.restore", **restore)
    assert missing.status != 0 and "has domains on hv2" in missing.output, missing.output
    restored = play(fleet, book="virtops.live_backup.restore", **restore)
    assert restored.status == 0, restored.output
    for guest in members:
        wait_until(lambda one=guest: "\ndurable " in one.console()[told[one.name] :], 120, f"the writer of {guest.name}")
    settled = play(fleet, book="virtops.live_backup.restore", **restore)
    assert settled.status == 0 and all(counts["changed"] == 0 for counts in settled.recap.values()), settled.output


@at_length
def test_a_group_of_which_one_is_shut_off_another_missing(fleet: Fleet, target: Path) -> None:
    """What is shut off is captured with the others; what fails is no group, and each domain is backed up all the same."""
    first = guests(fleet)["g11@hv1"]
    options = {"backup_target": str(target), "backup_domains": ["g11", "g21"]}
    first.destroy()
    try:
        played = play(fleet, backup_id="night-1", backup_groups={"shop": ["g11", "g21"]}, backup_group_max_spread=5000, **options)
    finally:
        first.start()
    assert played.status == 0, played.output
    assert {(row["group"], row["method"]) for row in played.rows.values()} == {("shop", "offline"), ("shop", "push")}
    assert {row["group_problem"] for row in played.rows.values()} == {""}

    failed = play(fleet, backup_id="night-2", backup_groups={"shop": ["g11", "g21", "g99"]}, **options)
    assert failed.status != 0 and "g99 is not in this run" in failed.output, failed.output
    assert {(row["group"], row["status"]) for row in failed.rows.values()} == {("", "published")}
    assert {row["group_problem"] for row in failed.rows.values()} == {"g99 is not in this run."}
    tight = play(fleet, backup_id="night-3", backup_groups={"shop": ["g11", "g21"]}, backup_group_max_spread=-1, **options)
    assert tight.status != 0 and "backup_group_max_spread is -1" in tight.output, tight.output
    assert {(row["group"], row["status"]) for row in tight.rows.values()} == {("", "published")}
    restore = {"restore_group": "shop", "restore_target": str(target), "restore_overwrite": True}
    parts = play(fleet, book="virtops.live_backup.restore", restore_backup_id="night-3", **restore)
    assert parts.status != 0 and "no backup night-3 that has a good set of every domain" in parts.output, parts.output
    # Both run: where one cannot be restored, none is.
    busy = play(fleet, book="virtops.live_backup.restore", **restore)
    assert busy.status != 0 and "is running. Shut it off" in busy.output, busy.output
    assert all(counts["changed"] == 0 for counts in busy.recap.values()), busy.output


@at_length
def test_a_group_waits_for_no_other_domain(fleet: Fleet, target: Path) -> None:
    """Its rows come last, and the others alone would take every fork and every turn, waiting for captures that nobody could finish."""
    members, others = ("g12", "g22"), ("g11", "g21")
    options: dict[str, Any] = {"backup_groups": {"shop": members}, "backup_group_max_spread": 5000, "backup_method": "legacy"}
    played = play(fleet, forks=len(members), backup_target=str(target), backup_parallel=1, backup_domains=[*others, *members], **options)
    assert played.status == 0, played.output
    assert {name: row["group"] for name, row in played.rows.items()} == {**dict.fromkeys(members, "shop"), **dict.fromkeys(others, "")}
    for member, other in zip(members, others):
        assert wall_time(played.rows[member]["finished"]) <= wall_time(played.rows[other]["started"]), played.rows


@at_length
@pytest.mark.parametrize("method", ["push", "legacy"])
def test_a_group_of_more_domains_than_forks_or_than_places(method: str, fleet: Fleet, target: Path) -> None:
    """Too few forks are refused before anything is captured; too few places of one hypervisor keep nobody waiting for ever."""
    home = fleet.hypervisors[0]
    third = home.guest("third", "still", size=16 * MIB)
    members = ["g11", "g12", "third"]
    options: dict[str, Any] = {"backup_groups": {"shop": members}, "backup_domains": members, "backup_group_max_spread": 5000}
    # A busy machine has the time that it needs before the moment.
    options |= {"backup_target": str(target), "backup_method": method, "backup_parallel": 2, "backup_group_lead": 30}
    try:
        refused = play(fleet, forks=2, **options)
        assert refused.status != 0 and "Use --forks 3 or more" in refused.output, refused.output
        assert list(target.iterdir()) == [] and list(home.outside("/var/lib/live_backup").glob("*.json")) == []
        durable = {guest.name: guest.durable() for guest in home.guests() if guest.name in members}
        played = play(fleet, forks=3, backup_id="night-1", **options)
        assert played.status == 0, played.output
        assert {name: (row["group"], row["status"]) for name, row in played.rows.items()} == dict.fromkeys(members, ("shop", "published"))
        for guest in home.guests():
            if guest.name in members:
                assert_right(target, guest, "night-1", durable[guest.name])
    finally:
        third.remove()


@at_length
def test_how_many_write_to_one_target(fleet: Fleet, target: Path) -> None:
    """Each hypervisor has its share; a target with fewer places than hypervisors is refused before anything is done."""
    few = play(fleet, backup_target=str(target), backup_target_parallel=HYPERVISORS - 1)
    assert few.status != 0 and "backup_target_parallel is" in few.output and list(target.iterdir()) == [], few.output
    played = play(fleet, backup_target=str(target), backup_id="night-1", backup_target_parallel=str(HYPERVISORS + 1), backup_parallel=0)
    assert played.status == 0, played.output
    one_at_a_time(played)


def one_at_a_time(played: Play) -> None:
    """By the manifests, the windows of one hypervisor do not meet."""
    windows: dict[str, list[tuple[str, str]]] = {}
    for row in played.rows.values():
        windows.setdefault(row["hypervisor"], []).append((row["started"], row["finished"]))
    for ordered in map(sorted, windows.values()):
        assert len(ordered) == DOMAINS and all(one[1] <= two[0] for one, two in zip(ordered, ordered[1:])), ordered
