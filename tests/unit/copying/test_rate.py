# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy becomes slower while the guest's writes take long, and faster again after that."""

from __future__ import annotations

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.space import MIB
from ansible_collections.virtops.live_backup.plugins.module_utils._copy.rate import LatencyGuard, Served, least_rate

from ..support.clock import FakeClock


class Guest:
    """A copy and a guest whose writes take so many milliseconds."""

    def __init__(self, limit_ms: float) -> None:
        self.clock = FakeClock()
        self.guard = LatencyGuard(limit_ms, self.clock)
        self.served = {"vda wr": Served(5, 10**12), "vda fl": Served(0, 0)}
        self.copied = 0

    def second(self, milliseconds: float, speed: int, requests: int = 100) -> int:
        self.clock.sleep(1.0)
        before = self.served["vda wr"]
        self.served["vda wr"] = Served(before.requests + requests, before.nanoseconds + int(requests * milliseconds * 1e6))
        self.copied += speed
        return self.guard.rate(dict(self.served), self.copied)


def test_a_quick_guest_sets_no_limit() -> None:
    guest = Guest(20)
    # What was before the copy does not count.
    assert [guest.second(19, 100 * MIB) for _second in range(5)] == [0] * 5
    assert guest.guard.slowed_seconds == 0 and guest.guard.worst_ms == 19


def test_a_slow_guest_slows_the_copy_down_until_it_is_quick_again() -> None:
    guest = Guest(20)
    assert guest.second(5, 100 * MIB) == 0
    rate = guest.second(50, 100 * MIB)
    assert rate == 50 * MIB
    rates = [rate]
    for _second in range(10):
        rates.append(rate := guest.second(50, rate))
    assert rates == sorted(rates, reverse=True) and rates[-1] == MIB
    for _second in range(40):
        if not (rate := guest.second(5, rate)):
            break
    assert rate == 0 and guest.guard.worst_ms == 50 and 20 < guest.guard.slowed_seconds < 40


def test_a_guest_that_does_not_write_is_quick() -> None:
    guest = Guest(20)
    assert guest.second(0, 100 * MIB, requests=0) == 0
    # Not even a second has passed.
    assert guest.guard.rate({"vda wr": Served(10**6, 10**15)}, 0) == 0


@pytest.mark.parametrize(("rates", "least"), [((), 0), ((0, 0), 0), ((0, 7), 7), ((9, 7, 0), 7)])
def test_the_smallest_limit_counts(rates: tuple[int, ...], least: int) -> None:
    assert least_rate(*rates) == least
