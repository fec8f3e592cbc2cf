# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Begin a capture at a moment of the controller's clock, by the hypervisor's."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleActionFail

from ._progress import ProgressAction

# The first asks may have to connect, and on a busy machine any of them may be held up: the quickest counts.
_ASKS = 5


def nearest(answers: list[tuple[float, float, float]]) -> dict[str, float]:
    """How far a clock is ahead, from when it was asked, what it said and when the answer was there; and how far off that may be."""
    asked, said, answered = min(answers, key=lambda answer: answer[2] - answer[0])
    return {"offset_ms": round((said - (asked + answered) / 2) * 1000, 1), "error_ms": round((answered - asked) / 2 * 1000, 1)}


class MomentAction(ProgressAction):
    """Translates C(at) into the hypervisor's time, and tells in C(clock) how far that is from the controller's."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        moment = self._task.args.get("at")
        if moment in (None, ""):
            return super().run(tmp, task_vars)
        clock = nearest([self._ask() for _number in range(_ASKS)])
        self._task.args["at"] = float(moment) + clock["offset_ms"] / 1000
        return {**super().run(tmp, task_vars), "clock": clock}

    def _ask(self) -> tuple[float, float, float]:
        asked = time.time()
        told = self._low_level_execute_command("date +%s.%N", sudoable=False)
        answered = time.time()
        try:
            return asked, float(told["stdout"]), answered
        except ValueError as error:
            raise AnsibleActionFail(f"The hypervisor does not tell its time: {told['stdout']}{told['stderr']}") from error
