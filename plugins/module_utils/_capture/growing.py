# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the files are that a guest makes grow during its backup: overlays, and the scratch files of a pull."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from .._base.errors import LiveBackupError
from .._base.filesystem import is_on_disk
from .._base.space import free_space, require_space, space_problem
from .._claim.plan import CapturePlan
from .._hypervisor.domain_facts import DomainFacts
from .._hypervisor.domain_xml import Disk
from .._overlay.space import GrowingFile, file_systems, least_space, planned_space, reserved

# Where libvirt keeps images unless it is told otherwise, so that AppArmor and SELinux permit QEMU to write there.
_IMAGES = (Path("/var/lib/libvirt/images"), Path("/var/lib/libvirt/qemu"))


class Kind(NamedTuple):
    """What such a file is called, and the option that says where it is."""

    name: str
    option: str


def place_for(disk: Disk, facts: DomainFacts, chosen: list[Disk], wanted: str | None, kind: Kind) -> Path:
    """The directory for the file of a disk: the wanted one, or the one of its image."""
    image = disk.chain[0]
    if wanted:
        return Path(wanted)
    return Path(image.path).parent if image.type == "file" else _place_for_devices(disk, facts, chosen, kind)


def check_places(plan: CapturePlan, paths: dict[str, str], facts: DomainFacts, kind: Kind) -> None:
    """Note the disk space that the files need, by disk. Fail where one cannot be made, or does not find enough free space to grow."""
    for target, path in paths.items():
        directory = Path(path).parent
        if not directory.is_absolute() or not directory.is_dir():
            raise LiveBackupError(
                f"The directory {directory} for the {kind.name} of disk {target} does not exist, or is not an absolute path. "
                f"Name another in {kind.option}.",
                code="directory_missing",
            )
        if os.path.lexists(path):
            raise LiveBackupError(
                f"{path} exists already and belongs to no known backup. Inspect it, and move it away.", code="file_in_the_way"
            )
    plan.overlay_room = {target: planned_space(path, facts.allocation[target]) for target, path in paths.items()}
    for there in file_systems([GrowingFile(path) for path in paths.values()]):
        device = os.stat(there.free.path).st_dev
        what = f"{kind.name}s, which grow while the guest writes during the copy"
        others = reserved(device, facts.xml.uuid)
        require_space(there.free, plan.space_for_overlays(device), what, others, f", or choose another {kind.option}")


def _place_for_devices(disk: Disk, facts: DomainFacts, chosen: list[Disk], kind: Kind) -> Path:
    """Where the files of block devices go: where libvirt and QEMU have images already, on a disk, with enough free space."""
    images = [other.chain[0] for other in facts.xml.disks if not other.skip_reason]
    places = dict.fromkeys([*(Path(image.path).parent for image in images if image.type == "file"), *_IMAGES])
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    for place in filter(Path.is_dir, places):
        device = os.stat(place).st_dev
        there = [one for one in chosen if one.chain[0].type != "file" or os.stat(Path(one.chain[0].path).parent).st_dev == device]
        needed = sum(least_space(facts.allocation[one.target]) for one in there)
        fits = space_problem(free_space(place), needed, kind.name, reserved(device, facts.xml.uuid)) is None
        if fits and is_on_disk(mounts, device):
            return place
    raise LiveBackupError(
        f"Disk {disk.target} of domain {facts.xml.name!r} is not a file of this host. Its {kind.name}, which grows during the copy, needs "
        f"a directory on a disk with enough free space. None of {', '.join(map(str, places))} is one. Name a directory in {kind.option}.",
        code="option_needed",
    )
