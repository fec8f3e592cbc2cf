# SPDX-License-Identifier: GPL-3.0-or-later
"""The sets of a target on another host are listed and pruned as those on this one are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.list_sets import set_info
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.prune import prune
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.check import note_proof
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.schema import RULES
from ansible_collections.virtops.live_backup.plugins.module_utils._target.ssh import server as _far_end

from ..support.clock import FakeClock
from ..support.sets import OTHER, content, make_set

Result = dict[str, Any]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Good, damaged, unfinished and foreign things."""
    path = tmp_path / "target"
    for year in (2021, 2022, 2023):
        make_set(path, f"y{year}", name="dö 'b", instant=f"{year}-01-01T00:00:00.000Z")
        make_set(path, f"y{year}", name="app", uuid=OTHER, instant=f"{year}-01-01T00:00:00.000Z")
    (path / "app/y2021/manifest.json").write_bytes(b'{"schema": [], "disks": {"a": "\xc3\xa4"}}')
    note_proof(str(path), str(path / "app/y2023"), "boot", "verified", [], 8123)
    shutil.copytree(path / "app/y2022", path / "app/.x.removing")
    (path / "app/.y.partial").mkdir()
    (path / "app/link").symlink_to("/")
    (path / "photos").mkdir()
    return path


def params(target: str, **changes: Any) -> Result:
    return {
        "target": target,
        "ssh_key": None,
        "ssh_options": [],
        "domains": [],
        "keep_ids": [],
        "own_rules": True,
        **{f"keep_{rule}": None for rule in RULES},
        **changes,
    }


def here_and_there(target: Path, function: Callable[..., Result], check_mode: bool, **changes: Any) -> Result:
    """What is returned of a target there; here the same must be."""
    result = {}
    copied = target.with_name("copied")
    shutil.copytree(target, copied, symlinks=True)
    for url in (str(target), f"ssh://far{target}"):
        result[url] = function(params(url, **changes), check_mode, FakeClock())
        # Others write to the same disk meanwhile.
        assert result[url].pop("free_bytes", 1) > 0
        if url == str(target):
            after = content(target)
            shutil.rmtree(target)
            copied.rename(target)
    assert result[str(target)] == result[f"ssh://far{target}"]
    assert [*content(target)] == [*after]
    return result[f"ssh://far{target}"]


def test_the_same_sets_are_listed(ssh: object, target: Path) -> None:
    found = here_and_there(target, set_info, False)
    assert not found["changed"] and [one["status"] for one in found["sets"]].count("good") == 5 and len(found["sets"]) == 8
    assert found["findings"] == [f"{target}/app/link is a link, and is not followed."]
    assert len(here_and_there(target, set_info, True, domains=["d*"])["sets"]) == 3


@pytest.mark.parametrize("check_mode", [True, False])
def test_the_same_sets_are_removed(ssh: object, target: Path, check_mode: bool) -> None:
    result = here_and_there(target, prune, check_mode, keep_last=1)
    names = ["app/y2022", "app/x", "dö 'b/y2021", "dö 'b/y2022"]
    assert [f"{one['domain']}/{one['backup_id']}" for one in result["removed"]] == names
    assert (target / "app/y2022").exists() == check_mode and "problems" not in result
    kept = "".join(f"{one['path']}\n" for one in result["kept"])
    assert result["diff"]["after"] == kept and result["diff"]["before"].endswith(kept)
    assert result["diff"]["before"].startswith(str(target / "app/y2022"))


@pytest.mark.parametrize("check_mode", [True, False])
def test_without_rules_only_a_removal_is_completed(ssh: object, target: Path, check_mode: bool) -> None:
    assert [one["backup_id"] for one in here_and_there(target, prune, check_mode)["removed"]] == ["x"]


@pytest.mark.parametrize("where", ["", "ssh://far"])
def test_problems_come_with_what_was_done_and_say_where(ssh: object, target: Path, where: str) -> None:
    note_proof(str(target), str(target / "app/y2023"), "boot", "failed", ["it does not boot"], None)
    with pytest.raises(LiveBackupError, match="Nothing of domain 'app' was removed: the last proof of y2023 failed") as failure:
        prune(params(f"{where}{target}", keep_last=1), False, FakeClock())
    assert failure.value.msg.startswith("On far: ") == bool(where)
    facts = failure.value.facts
    assert facts["changed"] and len(facts["removed"]) == 2 and facts["diff"] and "problems" not in facts


@pytest.mark.parametrize("function", [set_info, prune])
def test_a_target_that_is_not_there(ssh: object, tmp_path: Path, function: Callable[..., Result]) -> None:
    with pytest.raises(LiveBackupError, match=f"^On far: Target {tmp_path}/no does not exist.$") as far:
        function(params(f"ssh://far{tmp_path}/no"), False, FakeClock())
    with pytest.raises(LiveBackupError, match=f"^Target {tmp_path}/no does not exist.$") as here:
        function(params(f"{tmp_path}/no"), False, FakeClock())
    assert far.value.code == here.value.code == "target_missing"


def test_what_the_far_system_refuses_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was to be written."""

    def refused(**_arguments: Any) -> None:
        raise PermissionError(13, "Permission denied", "/srv")

    monkeypatch.setitem(_far_end.CALLS, "list_sets", refused)
    with pytest.raises(LiveBackupError, match="^The operating system refused on '/srv': Permission denied. Look at the permissions"):
        _far_end.call("list_sets", {"target": "/srv"})


@pytest.mark.parametrize("script", ["exit 255", "exit 127", "exit 3"])
def test_every_failure_of_ssh_names_the_host(ssh: Callable[[str], None], target: Path, script: str) -> None:
    ssh(script)
    for function in (set_info, prune):
        with pytest.raises(LiveBackupError, match=r"\bfar\b"):
            function(params(f"ssh://far{target}", keep_last=1), False, FakeClock())


@pytest.mark.parametrize("changes", [{"ssh_key": "/etc/key"}, {"ssh_options": ["Port=23"]}])
def test_options_of_ssh_are_for_ssh(target: Path, changes: Result) -> None:
    with pytest.raises(LiveBackupError, match="for a target that starts with ssh://"):
        set_info(params(str(target), **changes), False, FakeClock())


@pytest.mark.parametrize("url", ["relative", "", "ssh:/far/a"])
def test_what_is_no_target(url: str) -> None:
    with pytest.raises(LiveBackupError, match="must be an absolute path"):
        set_info(params(url), False, FakeClock())


@pytest.mark.parametrize("rule", RULES)
def test_a_negative_rule_is_refused(target: Path, rule: str) -> None:
    before = content(target)
    with pytest.raises(LiveBackupError, match=f"keep_{rule} must not be negative"):
        prune(params(str(target), **{f"keep_{rule}": -1}), False, FakeClock())
    assert content(target) == before
