# SPDX-License-Identifier: GPL-3.0-or-later
"""Unit tests run on the fake libvirt, never on the real one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .clock import FakeClock
from .fake import libvirt

if sys.modules.setdefault("libvirt", libvirt) is not libvirt:
    raise pytest.UsageError("the unit tests need a process of their own: the real libvirt is loaded")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the claims; not there yet, as on a new hypervisor."""
    from ansible_collections.virtops.live_backup.plugins.module_utils import _claim

    directory = tmp_path / "claims"
    monkeypatch.setattr(_claim, "CLAIMS", directory)
    return directory
