# SPDX-License-Identifier: GPL-3.0-or-later
"""pytest fixtures: pytest_plugins = ["tests.rig.fixtures"]."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from .guest import Guest
from .hypervisor import Hypervisor


@pytest.fixture(scope="session")
def hypervisor() -> Iterator[Hypervisor]:
    """A hypervisor for the whole session; each pytest worker has its own, and so has each session."""
    name = f"pytest-{os.getpid()}-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
    made = Hypervisor(name)
    try:
        yield Hypervisor.up(name)
    finally:
        made.down()


@pytest.fixture
def guest(hypervisor: Hypervisor) -> Iterator[Callable[..., Guest]]:
    """Makes guests as Hypervisor.guest does, and removes at the end of the test what the hypervisor has then."""
    try:
        yield hypervisor.guest
    finally:
        for made in hypervisor.guests():
            made.remove()
