# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults are run with the fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import backup_of, make_guest, make_shared_guest
from tests.rig.guest import Guest
from tests.rig.oracle import judge
from tests.rig.shapes import SHAPES

__all__ = ["backup_of", "make_guest", "make_shared_guest"]
pytest_plugins = ["tests.rig.fixtures"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "failure_kind(name): what fails, beside the deaths that the tables name")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the report of a test carry what is counted: the reports alone come from the processes that run the tests."""
    for item in [one for one in items if Path(__file__).parent in one.path.parents]:
        kinds = [mark.args[0] for mark in item.iter_markers("failure_kind")]
        point = getattr(item, "callspec", None) and item.callspec.params.get("point")
        if point is not None:
            item.user_properties.append(("kill point", f"{item.originalname} {point}"))
            item.user_properties.append(("method", getattr(point, "method", "legacy")))
            kinds.append(getattr(point, "beside", "nothing"))
        kinds = [one for one in kinds if one != "nothing"] + ["a process of ours is killed"] * (point is not None)
        item.user_properties += [("failure kind", kind) for kind in kinds]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found: dict[str, set[str]] = {"kill point": set(), "method": set(), "failure kind": set()}
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            found.get(name, set()).add(value)
    terminalreporter.write_line("faults: " + ", ".join(f"{len(values)} {name}s" for name, values in found.items()))
    terminalreporter.write_line("methods: " + ", ".join(sorted(found["method"])))
    terminalreporter.write_line("failure kinds: " + ", ".join(sorted(found["failure kind"])))


@pytest.fixture(scope="module")
def guests(make_shared_guest: Callable[..., Guest]) -> Iterator[Callable[[str], Guest]]:
    """A guest of each shape, made anew where a test has spoiled it. The others stand still meanwhile: each takes a part of a processor."""
    made: dict[str, tuple[Guest, str]] = {}

    def get(shape: str) -> Guest:
        for other, _disks in made.values():
            wanted = other.shape is SHAPES[shape]
            if not other.shape.still and other.state() == ("paused" if wanted else "running"):
                other.hypervisor.virsh("resume" if wanted else "suspend", other.uuid)
        if shape in made:
            guest, disks = made[shape]
            left = [path for path in guest.hypervisor.directory.rglob("*") if path.suffix in (".overlay", ".claim")]
            if guest.state() == guest.state_when_up and guest.hypervisor.virsh("domblklist", guest.uuid) == disks and not left:
                return guest
            # What it has left would be found beside the guests that come after.
            guest.remove()
            for path in left:
                path.unlink(missing_ok=True)
        guest = make_shared_guest(shape)
        made[shape] = guest, guest.hypervisor.virsh("domblklist", guest.uuid)
        return guest

    yield get
    for guest, _disks in made.values():
        if guest.state() in ("running", "paused"):
            durable = guest.durable()
            guest.destroy()
            verdict = judge(guest.images, durable)
            assert verdict.ok, f"the disks of a guest after all tests: {verdict}"
