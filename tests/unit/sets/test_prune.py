# SPDX-License-Identifier: GPL-3.0-or-later
"""Pruning removes the sets that are to go, all of them and nothing else, and a domain in trouble stops no other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._sets import prune as _prune
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.catalogue import list_sets
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.check import note_proof
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.locks import reading
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.prune import prune_sets
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.retention import Keep

from ..support.sets import OTHER, UUID, content, make_set

Result = dict[str, Any]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Three sets of db1, of 1, 2 and 3 September, and two of app."""
    for day in (1, 2, 3):
        make_set(tmp_path / "target", f"n{day}", instant=f"2026-09-0{day}T00:00:00.000Z")
    for day in (1, 2):
        make_set(tmp_path / "target", f"n{day}", name="app", uuid=OTHER, instant=f"2026-09-0{day}T00:00:00.000Z")
    return tmp_path / "target"


@pytest.fixture(autouse=True)
def today(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 September 2026."""
    monkeypatch.setattr(_prune.time, "time", lambda: 1_788_480_000.0)


def prune(target: Path, keep: int = 1, check_mode: bool = False, domains: tuple[str, ...] = (), keep_ids: tuple[str, ...] = ()) -> Result:
    result = prune_sets(str(target), list(domains), {"rules": {"last": keep}, "own": True, "ids": list(keep_ids), "held": {}}, check_mode)
    assert result["changed"] == bool(result["removed"])
    return result


def names(result: Result, which: str) -> list[str]:
    return [f"{one['domain']}/{one['backup_id']}" for one in result[which]]


def there(target: Path) -> list[str]:
    return sorted(str(path.relative_to(target)) for path in target.glob("*/*") if path.is_dir())


def test_what_no_rule_keeps_goes(target: Path) -> None:
    result = prune(target)
    assert names(result, "removed") == ["app/n1", "db1/n1", "db1/n2"] and names(result, "kept") == ["app/n2", "db1/n3"]
    assert result["kept"][1]["reasons"] == ["last"] and result["problems"] == result["findings"] == []
    assert result["removed"][1].keys() == {"domain", "uuid", "backup_id", "path", "instant", "bytes"}
    assert there(target) == ["app/n2", "db1/n3"]


def test_a_second_run_changes_nothing(target: Path) -> None:
    kept = prune(target)["kept"]
    before = content(target)
    assert prune(target) == {"changed": False, "kept": kept, "removed": [], "problems": [], "findings": []}
    assert content(target) == before


def test_check_mode_tells_the_same_and_touches_nothing(target: Path) -> None:
    shutil.copytree(target / "db1/n1", target / "db1/.n0.removing")
    before = content(target)
    told = prune(target, check_mode=True)
    assert content(target) == before
    assert told == prune(target) and len(told["removed"]) == 4


def test_only_the_domains_that_were_named(target: Path) -> None:
    assert names(prune(target, domains=("ap*",)), "removed") == ["app/n1"]
    assert there(target) == ["app/n2", "db1/n1", "db1/n2", "db1/n3"]


@pytest.mark.parametrize("check_mode", [True, False])
def test_what_was_just_published_stays_even_if_its_clock_makes_it_the_oldest(target: Path, check_mode: bool) -> None:
    make_set(target, "new", instant="2020-01-01T00:00:00.000Z")
    result = prune(target, check_mode=check_mode, keep_ids=("new",), domains=("db1",))
    assert names(result, "kept") == ["db1/new", "db1/n3"] and names(result, "removed") == ["db1/n1", "db1/n2"]
    assert names(prune(target, check_mode=check_mode, domains=("db1",)), "removed")[0] == "db1/new"


def test_without_a_rule_nothing_goes(target: Path) -> None:
    before = content(target)
    assert not prune(target, keep=0)["changed"] and content(target) == before


@pytest.mark.parametrize("keep", [0, 1, 9])
def test_an_interrupted_removal_is_completed(target: Path, keep: int) -> None:
    (target / "db1/n1").rename(target / "db1/.n1.removing")
    result = prune(target, keep, domains=("db1",))
    assert "db1/n1" in names(result, "removed") and not (target / "db1/.n1.removing").exists()
    assert len(result["removed"]) == (2 if keep == 1 else 1)


def test_a_new_set_may_have_the_name_of_one_whose_removal_was_interrupted(target: Path) -> None:
    shutil.copytree(target / "db1/n1", target / "db1/.n1.removing")
    result = prune(target, domains=("db1",))
    assert sorted(names(result, "removed")) == ["db1/n1", "db1/n1", "db1/n2"] and not result["problems"]
    assert there(target) == ["app/n1", "app/n2", "db1/n3"]


def test_a_set_loses_its_name_before_its_files(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path) -> None:
        assert path.name == ".n1.removing" and (path / "manifest.json").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(_prune.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        prune(target, domains=("db1",))
    monkeypatch.undo()
    assert {one["status"] for one in list_sets(str(target), ["db1"])["sets"]} == {"removing", "good"}
    none: Keep = {"rules": {}, "own": True, "ids": [], "held": {}}
    assert prune_sets(str(target), ["db1"], none, False)["problems"] == [] and there(target) == ["app/n1", "app/n2", "db1/n3"]


def test_the_proofs_of_removed_sets_go_and_others_stay(target: Path) -> None:
    for name in ("n1", "n3"):
        note_proof(str(target), str(target / "db1" / name), "check", "verified", [], None)
    prune(target)
    assert os.listdir(target / "db1/.proofs") == ["n3.json"]


def spoil_lock(directory: Path) -> None:
    (directory / ".domain.json").write_bytes(b"{")


def spoil_owner(directory: Path) -> None:
    (directory / ".domain.json").unlink()


def spoil_owner_link(directory: Path) -> None:
    (directory / ".domain.json").rename(directory / "elsewhere")
    (directory / ".domain.json").symlink_to("elsewhere")


def spoil_proof(directory: Path) -> None:
    note_proof(str(directory), str(directory / "n1"), "check", "failed", ["failed"], None)


@pytest.mark.parametrize("check_mode", [True, False])
@pytest.mark.parametrize("spoil", [spoil_lock, spoil_owner, spoil_owner_link, spoil_proof])
def test_a_domain_in_trouble_keeps_everything_and_stops_no_other(target: Path, spoil: Callable[[Path], None], check_mode: bool) -> None:
    """Where it is not said whose sets there are, those of several domains may be, and the last good one of some be lost."""
    spoil(target / "app")
    before = content(target / "app")
    result = prune(target, check_mode=check_mode)
    assert len(result["problems"]) == 1 and content(target / "app") == before
    assert names(result, "kept") == ["app/n1", "app/n2", "db1/n3"] and names(result, "removed") == ["db1/n1", "db1/n2"]
    assert all(one["reasons"] for one in result["kept"])


def test_a_domain_whose_sets_are_read_keeps_them(target: Path) -> None:
    with reading(target / "app"):
        result = prune(target)
    [problem] = result["problems"]
    assert f"A set in {target / 'app'} is being read" in problem
    assert there(target) == ["app/n1", "app/n2", "db1/n3"]
    assert [one["reasons"] for one in result["kept"]] == [["it could not be removed"], ["last"], ["last"]]
    assert names(prune(target), "removed") == ["app/n1"]


def test_what_the_file_system_refuses_is_a_problem_of_that_set(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told as it is: what lost its name before is removed, the others are kept."""
    rename = Path.rename

    def refuse(path: Path, new: Path) -> Path:
        if path.name == "n2":
            raise PermissionError(1, "Operation not permitted", str(path))
        return rename(path, new)

    monkeypatch.setattr(Path, "rename", refuse)
    result = prune(target)
    [problem] = result["problems"]
    assert str(target / "db1/n2") in problem and "Operation not permitted" in problem
    assert names(result, "removed") == ["app/n1", "db1/n1"] and names(result, "kept") == ["app/n2", "db1/n2", "db1/n3"]
    assert there(target) == ["app/n2", "db1/.n1.removing", "db1/n2", "db1/n3"]


def test_nothing_of_the_users_goes(target: Path, tmp_path: Path) -> None:
    outside = make_set(tmp_path / "outside", "n0")
    for name in ("photos/n1", "photos/.x.removing", "db1/.notes", "db1/lost+found", "db1/.n9.partial", "lost+found"):
        (target / name).mkdir(parents=True)
    for name in ("db1/notes", "db1/.x.removing", "notes", "photos/cat.jpg"):
        (target / name).touch()
    for name in ("db1/n0", "db1/.n0.removing", "linked"):
        (target / name).symlink_to(outside if "/" in name else outside.parent)
    mine = {path: entry for path, entry in content(tmp_path).items() if not any(f"/{name}" in path for name in ("app", "db1/n1", "db1/n2"))}
    result = prune(target)
    assert result["problems"] == [] and names(result, "removed") == ["app/n1", "db1/n1", "db1/n2"]
    left = content(tmp_path)
    # A directory that an entry was taken from was written.
    assert {path: left[path] for path in mine if path != str(target / "db1")}.items() <= mine.items()


def test_links_in_the_place_of_proofs_lead_nowhere(target: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/n1.json").touch()
    (target / "db1/.proofs").symlink_to(tmp_path / "outside")
    (target / "app/.proofs").touch()
    assert prune(target)["problems"] == [] and (tmp_path / "outside/n1.json").exists()


def test_links_in_a_removed_set_are_not_followed(target: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").touch()
    shutil.copytree(target / "db1/n1", target / "db1/.n0.removing")
    (target / "db1/.n0.removing/link").symlink_to(tmp_path / "outside")
    prune(target)
    assert (tmp_path / "outside/file").exists() and not (target / "db1/.n0.removing").exists()


def test_damaged_and_partial_sets_stay(target: Path) -> None:
    (target / "db1/n1/domain.xml").unlink()
    (target / "db1/n2").rename(target / "db1/.n2.partial")
    result = prune(target, domains=("db1",))
    assert not result["changed"] and names(result, "kept") == ["db1/n1", "db1/n3"]
    assert there(target) == ["app/n1", "app/n2", "db1/.n2.partial", "db1/n1", "db1/n3"]


def test_what_is_found_out_before_the_removal_counts(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the listing and the lock somebody proves that the newest set, the only one to stay, is bad."""

    def removing(directory: Path) -> Any:
        if directory.name == "db1":
            note_proof(str(target), str(directory / "n3"), "boot", "failed", ["it does not boot"], None)
        return _prune_removing(directory)

    _prune_removing = _prune.removing
    monkeypatch.setattr(_prune, "removing", removing)
    result = prune(target)
    assert names(result, "removed") == ["app/n1"] and "the last proof of n3 failed" in result["problems"][0]
    assert [name for name in there(target) if name.startswith("db1/n")] == ["db1/n1", "db1/n2", "db1/n3"]


def test_a_domains_own_rules_are_those_of_its_newest_set(target: Path) -> None:
    make_set(target, "n0", instant="2026-08-04T00:00:00.000Z", keep={"last": 9})
    # It is older than the newest, which has no rules.
    assert names(prune(target, 3), "removed") == ["db1/n0"]
    make_set(target, "n6", instant="2026-09-03T12:00:00.000Z", keep={"last": 2})
    result = prune(target, 0)
    assert names(result, "removed") == ["db1/n1", "db1/n2"] and names(result, "kept") == ["app/n1", "app/n2", "db1/n3", "db1/n6"]
    assert result["kept"][2]["reasons"] == ["last, by the domain's own rules"]
    assert result["kept"][0]["reasons"] == ["no rule says what to keep"]


def test_a_set_from_the_future_has_no_rules(target: Path) -> None:
    make_set(target, "future", instant="2027-09-03T12:00:00.000Z", keep={"last": 1})
    assert names(prune(target, 3), "removed") == []


def test_a_domain_that_was_renamed_has_one_set_of_rules(target: Path) -> None:
    make_set(target, "n6", name="new", instant="2026-09-03T12:00:00.000Z", keep={"last": 3})
    for domains in ((), ("db1",), (UUID,)):
        assert names(prune(target, 1, domains=domains, check_mode=True), "removed") == (["app/n1"] if not domains else [])


def test_while_a_set_may_have_newer_rules_all_stays_that_any_known_rule_keeps(target: Path) -> None:
    make_set(target, "n6", instant="2026-09-03T12:00:00.000Z", keep={"last": 2})
    make_set(target, "n7", instant="2026-09-03T18:00:00.000Z", keep={"last": 9})
    (target / "db1/n7/manifest.json").write_text("{}", encoding="utf-8")
    assert names(prune(target, 1, check_mode=True), "removed") == ["app/n1", "db1/n1", "db1/n2"], "two stay, by its own rules"
    assert names(prune(target, 3, check_mode=True), "removed") == ["db1/n1"], "three stay, by the others"
    assert names(prune(target, 0, check_mode=True), "removed") == [], "it may have noted no rules, and there are no others"
