# SPDX-License-Identifier: GPL-3.0-or-later
"""What domains say in their metadata is what is planned, done, kept and judged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.rig.guest import Guest
from tests.rig.hypervisor import Hypervisor

from .conftest import Backup
from .test_role import Player

NAMESPACE = "https://github.com/virtops/live_backup/policy/1"


def say(guest: Guest, attributes: str) -> None:
    """As docs/policy.md tells it."""
    guest.hypervisor.virsh("metadata", guest.name, NAMESPACE, "--key", "live_backup", "--config", "--set", f"<policy {attributes}/>")


def test_a_fleet_with_every_kind_of_policy(
    hypervisor: Hypervisor, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup], tmp_path: Path
) -> None:
    plain, own, named, out, wrong = (make_guest("still") for _number in range(5))
    backup = backup_of(plain)
    player = Player(hypervisor, backup.target)
    say(own, 'exclude_disks="vdb" keep_last="2" rpo="1s" rto="10m" proof="35d"')
    say(named, 'exclude_disks="vdb" rpo="1s"')
    say(out, 'backup="no"')
    say(wrong, 'keep="2"')
    fleet: dict[str, Any] = {
        "backup_domains": [f"{guest.name}*" for guest in (plain, own, named, out)],
        "backup_exclude_disks": {named.name: ["vda"]},
        "backup_objectives": {"*": {"rpo": "26h", "proof": "35d"}, named.name: {"rpo": "8d"}},
        "backup_keep": {"last": 1},
    }

    planned = player.run("--check", **fleet, backup_id="night-0")
    assert planned.status == 0, planned.output
    assert f"Not backed up, since their own metadata says backup=no: {out.name} on hv." in planned.output, planned.output
    words = {name: row["msg"] for name, row in planned.rows.items()}
    assert "disks vda, vdb" in words[plain.name] and "skipped" not in words[plain.name] and "keeps" not in words[plain.name]
    assert "skipped vdb: excluded by the domain's metadata" in words[own.name] and "its metadata keeps last 2" in words[own.name]
    assert "skipped vda: excluded;" in words[named.name] and out.name not in words

    for night in (1, 2):
        done = player.run(**fleet, backup_id=f"night-{night}")
        assert done.status == 0, done.output
    kept = {guest.name: sorted(path.name for path in (backup.target / guest.name).glob("night-*")) for guest in (plain, own, named)}
    assert kept == {plain.name: ["night-2"], own.name: ["night-1", "night-2"], named.name: ["night-2"]}
    assert [path.name for path in (backup.target / own.name / "night-2").glob("vd*")] == ["vda.qcow2"]
    assert not (backup.target / out.name).exists()
    # The rules are those of the set, whatever a run without the domain says.
    pruned = player.run(book="virtops.live_backup.prune", backup_keep={"last": 1})
    assert pruned.status == 0 and (backup.target / own.name / "night-1").exists(), pruned.output

    judged = player.run(book="virtops.live_backup.status", **fleet, status_report_directory=str(tmp_path))
    assert judged.status != 0 and f"An objective is missed by {plain.name}, {own.name}, {named.name}." in judged.output, judged.output
    [look] = json.loads((tmp_path / "live_backup.json").read_text(encoding="utf-8"))["hypervisors"]
    found = {
        row["domain"]: {one["name"]: (one["source"], one["seconds"], one["met"]) for one in row["objectives"]} for row in look["domains"]
    }
    assert found == {
        plain.name: {"rpo": ("backup_objectives", 93600, True), "proof": ("backup_objectives", 3024000, False)},
        own.name: {
            "rpo": ("the domain's metadata", 1, False),
            "rto": ("the domain's metadata", 600, False),
            "proof": ("the domain's metadata", 3024000, False),
        },
        named.name: {"rpo": (f"backup_objectives of {named.name}", 691200, True), "proof": ("backup_objectives", 3024000, False)},
        out.name: {},
    }

    # Who names it means it, and what is not understood is not guessed.
    asked = player.run(backup_domains=[out.name, wrong.name], backup_id="night-4")
    assert asked.status != 0 and asked.rows[out.name]["status"] == "published", asked.output
    assert asked.rows[wrong.name]["code"] == "policy_invalid" and "it has keep, and may have backup" in asked.rows[wrong.name]["msg"]


def test_what_is_not_due_or_too_late_is_left_out(
    hypervisor: Hypervisor, make_guest: Callable[..., Guest], backup_of: Callable[..., Backup]
) -> None:
    guest = make_guest("still")
    backup = backup_of(guest)
    player = Player(hypervisor, backup.target)
    say(guest, 'every="7d"')
    late = backup.begin(until=1)
    assert late["code"] == "too_late" and backup.files() == [], late
    for night, options, status in (("1", {}, "published"), ("2", {}, "skipped"), ("3", {"backup_every": "1s"}, "published")):
        done = player.run(backup_domains=[guest.name], backup_id=f"night-{night}", backup_start_until="23:59", **options)
        assert done.status == 0 and done.rows[guest.name]["status"] == status, done.output
    assert sorted(path.name for path in (backup.target / guest.name).glob("night-*")) == ["night-1", "night-3"]
    again = player.run(backup_domains=[guest.name], backup_id="night-1")
    assert again.status == 0 and again.rows[guest.name]["status"] == "published" and again.changed == 0, again.output
    assert backup.claims() == []
