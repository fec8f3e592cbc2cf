# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt's numbers, as the collection, the fake and the tests write them down, are those of the real binding."""

from __future__ import annotations

from types import ModuleType

import libvirt
import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor import numbers as _numbers
from tests.unit.support.fake import libvirt as fake_libvirt

# Older bindings lack these.
NEWER = {"VIR_ERR_AGENT_COMMAND_FAILED"}
WORDS = [
    ("VIR_DOMAIN_", _numbers.STATES, {}),
    ("VIR_DOMAIN_JOB_", _numbers.JOB_TYPES, {}),
    ("VIR_DOMAIN_JOB_OPERATION_", _numbers.OPERATIONS, {"incoming migration": "MIGRATION_IN", "outgoing migration": "MIGRATION_OUT"}),
    ("VIR_DOMAIN_BLOCK_JOB_TYPE_", _numbers.BLOCK_JOB_TYPES, {}),
]


@pytest.mark.parametrize("place", [_numbers, fake_libvirt], ids=["collection", "fake"])
def test_numbers_have_these_names(place: ModuleType) -> None:
    written = {name: number for name, number in vars(place).items() if name.startswith("VIR_")}
    assert len(written) > 10
    assert {name: getattr(libvirt, name, number if name in NEWER else None) for name, number in written.items()} == written


@pytest.mark.parametrize(("prefix", "words", "others"), WORDS, ids=[row[0] for row in WORDS])
def test_words_stand_at_their_numbers(prefix: str, words: tuple[str, ...], others: dict[str, str]) -> None:
    names = [prefix + others.get(word, word.upper().replace(" ", "_").replace("-", "_")) for word in words]
    assert [getattr(libvirt, name) for name in names] == list(range(len(words)))
