# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only code that sees AnsibleModule: argument specs, one call, one place that fails."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ._base.clock import Clock
from ._base.errors import Interrupted
from ._base.progress import end as end_progress
from ._base.signals import interruptible
from ._hypervisor.connection import FAILURES, explain

CONNECTION: dict[str, Any] = {"uri": {"type": "str", "default": "qemu:///system"}}
DOMAIN: dict[str, Any] = {"domain": {"type": "str", "required": True}}
BACKUP_ID: dict[str, Any] = {"backup_id": {"type": "str", "required": True}}
TARGET: dict[str, Any] = {"target": {"type": "str", "required": True}}
CAPTURE: dict[str, Any] = {
    "exclude_disks": {"type": "list", "elements": "str"},
    "quiesce": {"type": "str", "choices": ["auto", "require", "never"], "default": "auto"},
    "freeze_timeout": {"type": "int", "default": 30},
    "hook_timeout": {"type": "int"},
    "parallel": {"type": "int", "default": 0},
    "at": {"type": "float"},
    "until": {"type": "float"},
    "every": {"type": "str"},
    "staging_dir": {"type": "path"},
    "level": {"type": "str", "choices": ["full", "incremental", "differential", "auto"], "default": "full"},
    "track": {"type": "bool"},
    "full_every": {"type": "int", "default": 7},
    "keep_formats": {"type": "list", "elements": "str", "choices": ["raw", "qcow2"], "default": ["raw", "qcow2"]},
}
PROGRESS: dict[str, Any] = {"progress_interval": {"type": "int", "default": 0}}
SSH: dict[str, Any] = {"ssh_key": {"type": "path"}, "ssh_options": {"type": "list", "elements": "str", "default": []}}
ENCRYPTION: dict[str, Any] = {
    "encryption_key": {"type": "str", "no_log": True},
    "encryption_key_file": {"type": "path", "no_log": False},
}
ENCRYPT: dict[str, Any] = {"encrypt": {"type": "str"}}
# Rules between the options that others use, too.
ONE_KEY = ("encryption_key", "encryption_key_file")
Operation = Callable[[dict[str, Any], bool, Clock], dict[str, Any]]


def run(operation: Operation, *options: dict[str, Any], **rules: Any) -> None:
    """Run `operation(params, check_mode, clock)` as a module with these options, and rules between them; its result is the module's."""
    spec = {name: option for one in options for name, option in one.items()}
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True, **rules)

    def last_words(msg: str) -> None:
        try:
            module.fail_json(msg=msg, code="interrupted")
        finally:
            end_progress()
            sys.stdout.flush()

    with interruptible(last_words) as settle:
        try:
            try:
                result = operation(module.params, module.check_mode, Clock())
            finally:
                settle()
        except (*FAILURES, Interrupted) as error:
            module.fail_json(**_as_text(explain(error, "finish the task").as_result()))
        else:
            module.exit_json(**_as_text(result))
        finally:
            end_progress()


def _as_text(value: Any) -> Any:
    """The same as UTF-8 can tell it: a name or a file at a target may hold what it cannot, and Ansible would refuse the whole result."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {_as_text(key): _as_text(one) for key, one in value.items()}
    return [_as_text(one) for one in value] if isinstance(value, (list, tuple)) else value
