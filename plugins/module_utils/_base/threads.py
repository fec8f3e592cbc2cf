# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Threads that the end of the process does not wait for, as it does for those of a ThreadPoolExecutor.

What they wait for may never come: the write to a network mount whose server is gone. Such a wait ends with the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType
from typing import Any


class DaemonThreads:
    """A few threads that do what is submitted, in that order."""

    def __init__(self, number: int) -> None:
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _thread in range(number)]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Have `call` called; its result, or its error, is the future's."""
        future: Future[Any] = Future()
        self._work.put((future, call))
        return future

    def close(self) -> None:
        """Let the threads end when all that was submitted is done. Waits for nothing."""
        for _thread in self._threads:
            self._work.put(None)

    def join(self) -> None:
        """Wait until all that was submitted is done."""
        self.close()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        for future, call in iter(self._work.get, None):
            with _Outcome(future):
                future.set_result(call())


class _Outcome:
    """Hands whatever error there is to who waits for the future."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None) -> bool:
        if error is not None:
            self._future.set_exception(error)
        return True
