# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Turns: how many backups are under way on this host at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from .._base.clock import Clock
from .._base.progress import tell
from .claim import read_claim
from .find import all_claims
from .lock import locked
from .step import is_alive

# How often the claims are looked at.
_LOOK_SECONDS = 1.0


@contextmanager
def turn(uuid: str, name: str, parallel: int, clock: Clock) -> Iterator[Callable[[], None]]:
    """Wait until fewer than `parallel` backups of other domains are under way here, or this domain's own is; 0 waits for nothing.

    Until the block ends, or what it is given is called, nobody else gets a turn: by then the claim must be written.
    """
    with ExitStack() as held:
        while parallel:
            held.enter_context(locked("turn", float("inf"), clock))
            others = _under_way(uuid, clock)
            # The own one was begun by another run, such as one whose controller is gone: only that it is adopted lets it end.
            if len(others) < parallel or read_claim(uuid) is not None:
                break
            held.close()
            tell(name, dict, waits_for=f"its turn; under way are {', '.join(others)}")
            clock.sleep(_LOOK_SECONDS)
        yield held.close


def _under_way(uuid: str, clock: Clock) -> list[str]:
    return [claim.domain for claim in all_claims() if claim.uuid != uuid and is_alive(claim, clock)]
