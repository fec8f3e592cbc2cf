# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The hypervisor's clock beside the controller's: tell it to a module, and begin a capture at a moment of the latter."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ._progress import ProgressAction

# The first asks may have to connect, and on a busy machine any of them may be held up: the quickest counts.
_ASKS = 5


def nearest(answers: list[tuple[float, float, float]]) -> dict[str, float]:
    """How far a clock is ahead, from when it was asked, what it said and when the answer was there; and how far off that may be."""
    asked, said, answered = min(answers, key=lambda answer: answer[2] - answer[0])
    return {"offset_ms": round((said - (asked + answered) / 2) * 1000, 1), "error_ms": round((answered - asked) / 2 * 1000, 1)}


def clock_of(action: ActionBase) -> dict[str, float]:
    """The clock of an action's host."""
    return nearest([_ask(action) for _number in range(_ASKS)])


def _ask(action: ActionBase) -> tuple[float, float, float]:
    asked = time.time()
    told = action._low_level_execute_command("date +%s.%N", sudoable=False)
    answered = time.time()
    try:
        return asked, float(told["stdout"]), answered
    except ValueError as error:
        raise AnsibleActionFail(f"Could not read the hypervisor's clock: {told['stdout']}{told['stderr']}") from error


class ClockAction(ActionBase):
    """Runs the module of the action's name and tells it, as C(clock), how far the host's clock is from the controller's."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        return self._execute_module(module_args={"clock": clock_of(self), **self._task.args}, task_vars=task_vars)


class MomentAction(ProgressAction):
    """Translates C(at) into the hypervisor's time, and tells in C(clock) how far that is from the controller's."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        moment = self._task.args.get("at")
        if moment in (None, ""):
            return super().run(tmp, task_vars)
        clock = clock_of(self)
        self._task.args["at"] = float(moment) + clock["offset_ms"] / 1000
        return {**super().run(tmp, task_vars), "clock": clock}
