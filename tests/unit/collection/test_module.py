# SPDX-License-Identifier: GPL-3.0-or-later
"""Every failure becomes one fail_json, and a defect of ours does not hide in one."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils import _module
from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import Clock
from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import ADVICE, LiveBackupError

from ..support.fake import libvirt

Result = dict[str, Any]


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Result]]:
    """What a module told Ansible."""
    told: list[tuple[str, Result]] = []

    class Module:
        """Ansible's part of a module."""

        check_mode = True

        def __init__(self, argument_spec: Result, supports_check_mode: bool) -> None:
            self.params = dict.fromkeys(argument_spec, "given")

        def exit_json(self, **result: Any) -> None:
            told.append(("exit", result))

        def fail_json(self, **result: Any) -> None:
            told.append(("fail", result))

    monkeypatch.setattr(_module, "AnsibleModule", Module)
    return told


def test_the_result_of_the_operation_is_the_modules(results: list[tuple[str, Result]]) -> None:
    def operation(params: Result, check_mode: bool, clock: Clock) -> Result:
        assert check_mode and clock.wall() > 0
        return {"changed": False, "options": sorted(params)}

    _module.run(operation, _module.CONNECTION, _module.DOMAIN, _module.TARGET)
    assert results == [("exit", {"changed": False, "options": ["domain", "target", "uri"]})]


def test_what_is_no_utf_8_is_told_all_the_same(results: list[tuple[str, Result]]) -> None:
    """Of a name or a proof at a target; ansible-core 2.19 would refuse all that a module has found."""
    _module.run(lambda *_arguments: {"findings": ["/srv/\udcff is a link."], "proof": {"\ud800": 1, "verified": True}})
    assert results == [("exit", {"findings": ["/srv/\\udcff is a link."], "proof": {"\\ud800": 1, "verified": True}})]


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (LiveBackupError("No.", code="no_free_space", bytes_free=3), {"msg": "No.", "code": "no_free_space", "bytes_free": 3}),
        (
            PermissionError(13, "x", "/a"),
            {"msg": f"The operating system refused on '/a': Permission denied. {ADVICE[13].text}", "code": "permission"},
        ),
        (
            libvirt.libvirtError(9, "broken"),
            {
                "msg": "Could not finish the task: broken.",
                "code": "libvirt_refused",
                "libvirt_error": {"code": 9, "domain": 10, "message": "broken"},
            },
        ),
    ],
)
def test_failures(results: list[tuple[str, Result]], error: Exception, result: Result) -> None:
    def operation(*_arguments: Any) -> Result:
        raise error

    _module.run(operation)
    assert results == [("fail", result)]


def test_a_defect_of_ours_is_not_dressed_up_as_a_failure(results: list[tuple[str, Result]]) -> None:
    def operation(*_arguments: Any) -> Result:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _module.run(operation)
    assert results == []
