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

# After twenty lines they become rarer, so that a day's copy has some hundred, not ten thousand.
_RARER = 20
_END_SECONDS = 1.0


def words(progress: dict[str, Any], before: dict[str, Any], seconds: float) -> str:
    """One line: each disk's share, bytes, rate and time left, from what was told now and so many seconds before."""
    if progress["waits_for"]:
        return f"{progress['domain']}: waits for {progress['waits_for']}"
    parts = []
    for disk, (done, total) in sorted(progress["disks"].items()):
        rate = max(0, done - before.get("disks", {}).get(disk, [done])[0]) / seconds if seconds > 0 else 0
        share = f"{min(99, 100 * done // total) if done < total else 100} %, {_bytes(done)} of {_bytes(total)}" if total else _bytes(done)
        left = f", {_duration((total - done) / rate)} left" if rate and done < total else ""
        parts.append(f"{disk} {share}" + (f", {_bytes(rate)}/s" if rate else "") + left)
    return f"{progress['domain']}: {'; '.join(parts)}"


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


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
        began = last = time.monotonic()
        before: dict[str, Any] = {}
        while not ended.wait(max(interval, (time.monotonic() - began) / _RARER)):
            progress = self._read(path)
            now = time.monotonic()
            # What comes after the end is no news.
            if progress and not ended.is_set():
                Display().display(f"[{self._task.delegate_to or self._host()}] {words(progress, before, now - last)}")
            before, last = progress, now

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
