# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ask libvirt what a domain is and does."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .._base.errors import LiveBackupError
from .._base.space import allocated
from .._image.digest import data_bytes
from .._image.qcow2 import is_self_contained
from .._image.qemu_img import backing_chain, image_info, qcow2_facts
from .bindings import libvirt
from .connection import explained
from .domain_xml import Disk, Domain, Image
from .domains import read_domain
from .jobs import BlockJob, Job, block_jobs, running_job
from .numbers import STATES, VIR_DOMAIN_SHUTOFF_MIGRATED
from .versions import HostVersions


def chain_of(image: Image) -> tuple[Image, ...]:
    """The whole chain of an image on this host, as its own header tells it: libvirt does not show that of a domain that is shut off."""
    kind = {True: "block", False: "file"}
    chain = backing_chain(image.path, image.format)
    return tuple(Image(kind[Path(one["filename"]).is_block_device()], one["filename"], one["format"]) for one in chain)


@dataclass(frozen=True)
class DomainFacts:
    """A domain's definition and what is going on in it; `capacity` and `allocation` are bytes by target dev.

    `migrated` is whether it is shut off because it was migrated away, `saved` whether its memory is saved.
    """

    xml: Domain
    active: bool
    state: str
    persistent: bool
    capacity: dict[str, int]
    allocation: dict[str, int]
    job: Job | None
    block_jobs: list[BlockJob]
    migrated: bool
    saved: bool

    def capacity_of(self, disk: Disk) -> int:
        """The size of a disk that is to be captured, in bytes."""
        if not self.capacity.get(disk.target):
            raise LiveBackupError(
                f"The size of disk {disk.target} of domain {self.xml.name!r} is not known{_why_unknown(disk)}", code="disk_unreadable"
            )
        return self.capacity[disk.target]


def host_versions(connection: libvirt.virConnect) -> HostVersions:
    """The versions of the hypervisor's libvirt and QEMU, not of the Python binding."""
    with explained("ask libvirt for its version"):
        return HostVersions(libvirt=connection.getLibVersion(), qemu=connection.getVersion())


def domain_facts(connection: libvirt.virConnect, domain: libvirt.virDomain) -> DomainFacts:
    """All that a plan needs to know."""
    with explained(f"examine domain {domain.name()!r}"):
        xml = read_domain(domain)
        active, state = bool(domain.isActive()), domain.state()[:2]
        capacity = _capacities(connection, domain)
        # libvirt does not look for a volume of a pool that is not active.
        volumes = [disk for disk in xml.disks if disk.chain and disk.chain[0].volume and os.path.exists(disk.chain[0].path)]
        capacity.update({disk.target: _virtual_size(disk.chain[0]) for disk in volumes if not capacity.get(disk.target)})
        # A running backup shows on every disk it reads, and is told once, as the job.
        job = running_job(domain) if active else None
        used = [disk.target for disk in xml.disks if not disk.skip_reason]
        jobs = [found for found in block_jobs(domain, used) if found["type"] != "backup"] if active else []
        return DomainFacts(
            xml=xml,
            active=active,
            state=STATES[state[0]],
            persistent=bool(domain.isPersistent()),
            capacity=capacity,
            allocation={disk.target: chain_allocation(disk, capacity.get(disk.target, 0)) for disk in xml.disks},
            job=job,
            block_jobs=jobs,
            migrated=state == [libvirt.VIR_DOMAIN_SHUTOFF, VIR_DOMAIN_SHUTOFF_MIGRATED],
            saved=bool(domain.hasManagedSaveImage()),
        )


def _capacities(connection: libvirt.virConnect, domain: libvirt.virDomain) -> dict[str, int]:
    """Every disk's virtual size, in one call."""
    # Nothing comes of a domain that is gone by now.
    for _domain, stats in connection.domainListGetStats([domain], libvirt.VIR_DOMAIN_STATS_BLOCK):
        indices = range(stats.get("block.count", 0))
        return {stats[f"block.{index}.name"]: stats.get(f"block.{index}.capacity", 0) for index in indices}
    raise LiveBackupError(f"Domain {domain.name()!r} has just vanished.", code="domain_not_found")


def chain_allocation(disk: Disk, capacity: int) -> int:
    """The bytes that a disk's chain holds; what has no holes to be seen counts as full."""
    return sum(_allocation(image, capacity) for image in disk.chain)


def _allocation(image: Image, capacity: int) -> int:
    if image.type != "file":
        return capacity
    try:
        # Blocks that were only reserved hold no data, and on some file systems holes are not to be seen.
        held = min(allocated(image.path), data_bytes(image.path))
        if image.format == "qcow2" and not is_self_contained(image.path, "qcow2"):
            held += _in_data_file(image.path)
        return held
    except (OSError, LiveBackupError):
        # Not readable for us; libvirt and QEMU may still be able to.
        return capacity


def _virtual_size(image: Image) -> int:
    return int(image_info(image.path, image.format)["virtual-size"])


def _in_data_file(path: str) -> int:
    """What a qcow2 image holds in a file beside it."""
    name = qcow2_facts(path).get("data-file")
    beside = os.path.join(os.path.dirname(path), name) if name else ""
    return min(allocated(beside), data_bytes(beside)) if beside else 0


def _why_unreadable(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as image:
            image.read(1)
    except OSError as error:
        return f": its image {path} cannot be read: {error.strerror}."
    return "."


def _why_unknown(disk: Disk) -> str:
    """Where its image is a path of this host, what is wrong with that."""
    path = disk.chain[0].path
    if not os.path.isabs(path):
        return "."
    if os.path.exists(path):
        return _why_unreadable(path)
    what = f"is a link to {os.readlink(path)}, which does not exist" if os.path.islink(path) else "does not exist"
    return f": its image {path} {what}. Was it deleted, or is its file system not mounted? Put it back, or exclude the domain or the disk."
