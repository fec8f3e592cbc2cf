# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Show on the controller how far a module is that works for long: it writes that to a file, which is read beside it."""

from __future__ import annotations

import copy
import json
import secrets
import shlex
import threading
import time
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.virtops.live_backup.plugins.module_utils._base.text import size_text

# After twenty lines they become rarer, so that a day's copy has some hundred, not ten thousand.
_RARER = 20
_END_SECONDS = 1.0


# What a module does meanwhile, in a word.
_PHASES = {"libvirt_job_wait": "backup job", "sparse_copy": "copy", "libvirt_blockcommit": "commit", "backup_set_copy": "copy"}


def onward(progress: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The progress that is shown: a disk that is done stays, its share never shrinks, and no disk has more than all.

    A module tells only of the disks that it works on, and libvirt's numbers may fall.
    """
    disks = {disk: [total, total] for disk, (_done, total) in before.get("disks", {}).items()}
    for disk, (told, total) in progress["disks"].items():
        done = max(told, before.get("disks", {}).get(disk, [0])[0])
        disks[disk] = [done, max(done, total) if total else 0]
    return {**progress, "disks": disks}


def words(phase: str, progress: dict[str, Any], before: dict[str, Any], seconds: float) -> str:
    """One line: the phase, and the share, bytes, rate and time left of all disks, from what is known now and so many seconds before."""
    if progress["waits_for"]:
        return f"{progress['domain']}: waits for {progress['waits_for']}"
    done, total = (sum(amounts) for amounts in zip([0, 0], *progress["disks"].values()))
    known = before.get("disks", {})
    rate = max(0, done - sum(known[disk][0] for disk in known)) / seconds if seconds > 0 and known else 0
    # A total that is not known is none, and that of a part says nothing of the whole. A disk of which nothing is copied yet has neither.
    complete = all(total_of or not done_of for done_of, total_of in progress["disks"].values())
    share = f"{100 * done // total} %, {size_text(done)} of {size_text(total)}" if total and complete else size_text(done)
    left = f", {_duration((total - done) / rate)} left" if rate and complete and done < total else ""
    return f"{progress['domain']}: {phase} {share}" + (f", {size_text(rate)}/s" if rate else "") + left


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


class ProgressAction(ActionBase):
    """Runs the module of the action's name; with C(progress_interval), shows how far it is."""

    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        interval = self._interval()
        if not interval or self._task.async_val or self._task.check_mode:
            return self._module(task_vars)
        path = f"/run/live_backup-{secrets.token_hex(8)}.progress"
        self._task.environment = [*(self._task.environment or []), {"LIVE_BACKUP_PROGRESS": path}]
        ended = threading.Event()
        watch = threading.Thread(target=self._beside()._watch, args=(path, interval, ended), daemon=True)
        watch.start()
        try:
            return self._module(task_vars)
        finally:
            ended.set()
            watch.join(_END_SECONDS)

    def _interval(self) -> int:
        given = self._task.args.get("progress_interval") or 0
        try:
            return int(given)
        except (TypeError, ValueError):
            # The module refuses it in its own words.
            return 0

    def _module(self, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        wrap_async = bool(self._task.async_val) and not self._connection.has_native_async
        return self._execute_module(task_vars=task_vars, wrap_async=wrap_async)

    def _beside(self) -> ProgressAction:
        """An action of its own, so that two commands at a time share no state."""
        connection = copy.copy(self._connection)
        if connection.become is not None:
            connection.set_become_plugin(copy.copy(connection.become))
        return type(self)(self._task, connection, self._play_context, self._loader, self._templar, self._shared_loader_obj)

    def _watch(self, path: str, interval: int, ended: threading.Event) -> None:
        phase = _PHASES.get(self._task.action.rpartition(".")[2], "backup")
        began = last = time.monotonic()
        before: dict[str, Any] = {}
        while not ended.wait(max(interval, (time.monotonic() - began) / _RARER)):
            progress = self._read(path)
            now = time.monotonic()
            # What comes after the end is no news.
            if progress and not ended.is_set():
                progress = onward(progress, before)
                Display().display(f"[{self._task.delegate_to or self._host()}] {words(phase, progress, before, now - last)}")
                before = progress
            last = now

    def _host(self) -> str:
        return str(self._templar.available_variables.get("inventory_hostname", ""))

    def _read(self, path: str) -> dict[str, Any]:
        try:
            told = self._low_level_execute_command(f"cat {shlex.quote(path)}")
            found = json.loads(told["stdout"])
        except (AnsibleError, ValueError):
            # Nothing is told yet or any more, or the host is gone, which the module's own result will say.
            return {}
        return found if isinstance(found, dict) else {}
