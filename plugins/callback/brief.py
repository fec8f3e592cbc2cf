# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: brief
type: stdout
author:
  - The virtops.live_backup contributors (@virtops)
version_added: 1.0.0
short_description: Print only what a person must know
description:
  - Prints the messages of a playbook, progress lines, warnings and failures. A task that went well prints nothing else.
  - A failure is printed once, when it happens. The messages at the end of the playbook name it again, with the command that runs it again.
  - With C(-v), each task that changed something has a line. With C(--diff), differences are shown.
  - Made for the playbooks of this collection. It works with any other one.
requirements:
  - Set it as C(stdout_callback) in the section C([defaults]) of C(ansible.cfg), or in the environment variable C(ANSIBLE_STDOUT_CALLBACK).
"""

EXAMPLES = r"""
- name: Back up a fleet with short output
  # [defaults]
  # stdout_callback = virtops.live_backup.brief
"""

from typing import Any

from ansible import constants
from ansible.plugins.callback import CallbackBase

# As much of what a failed program has printed is shown.
_LAST_LINES = 10


def lines_of(message: Any) -> list[str]:
    """A message of a task as lines."""
    texts = message if isinstance(message, (list, tuple)) else [message]
    return [line for text in texts for line in str(text).splitlines()]


class CallbackModule(CallbackBase):
    """What Ansible asks for a callback."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "virtops.live_backup.brief"

    def v2_runner_on_ok(self, result: Any) -> None:
        self._handle_warnings(result._result)
        # The items of a loop have told theirs.
        if result._task.loop is None:
            self._ended(result)

    def v2_runner_item_on_ok(self, result: Any) -> None:
        self._handle_warnings(result._result)
        self._ended(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._handle_warnings(result._result)
        if not ignore_errors and result._task.loop is None:
            self._failed(result, "FAILED")

    def v2_runner_item_on_failed(self, result: Any) -> None:
        self._handle_warnings(result._result)
        if not result._task.ignore_errors:
            self._failed(result, "UNREACHABLE" if result._result.get("unreachable") else "FAILED")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        if result._task.loop is None:
            self._failed(result, "UNREACHABLE")

    def v2_on_file_diff(self, result: Any) -> None:
        for one in result._result.get("results", [result._result]):
            if one.get("diff") and one.get("changed"):
                self._display.display(self._get_diff(one["diff"]))

    def v2_playbook_on_stats(self, stats: Any) -> None:
        failed = sorted(host for host in stats.processed if stats.failures.get(host) or stats.dark.get(host))
        if failed:
            self._display.display(f"Failed hosts: {', '.join(failed)}", color=constants.COLOR_ERROR)

    def _ended(self, result: Any) -> None:
        told = result._result
        # What a task like debug always shows.
        if told.get("_ansible_verbose_always") and "msg" in told:
            for line in lines_of(told["msg"]):
                self._display.display(line)
        elif told.get("changed") and self._display.verbosity:
            self._display.display(f"changed: [{self._place(result)}] {result._task.get_name()}", color=constants.COLOR_CHANGED)

    def _failed(self, result: Any, word: str) -> None:
        told = result._result
        message = " ".join(lines_of(told.get("msg") or "no reason is given"))
        self._display.display(f"{word} [{self._place(result)}] {message}", color=constants.COLOR_ERROR)
        # A message of Ansible's often only points to these.
        for key in ("stderr", "module_stderr", "module_stdout"):
            for line in lines_of(told.get(key) or "")[-_LAST_LINES:]:
                self._display.display(f"  {line}", color=constants.COLOR_ERROR)

    def _place(self, result: Any) -> str:
        item = self._get_item_label(result._result)
        return result._host.get_name() + (f", {item}" if item else "")
