# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plan a restore: what is written where, and what this host lacks for it. Changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from .._base.errors import LiveBackupError
from .._base.text import foreign
from .._hypervisor.bindings import libvirt
from .._hypervisor.checkpoints import PREFIX, checkpoint_names
from .._hypervisor.disk_place import NewPlace, NotedPlace, chosen_place, old_place, place_problems
from .._hypervisor.domain_xml import VolumePlace, parse_domain, parse_xml
from .._hypervisor.domains import lookup_name, volumes_of
from .._hypervisor.numbers import VIR_DOMAIN_SHUTOFF_MIGRATED
from .._image.digest import data_bytes
from .._image.key import Key
from .._image.qcow2 import require_chain
from .._image.qemu_img import Node, measure
from .._sets.catalogue import GoodSet
from .._sets.chain import bytes_of, chain_below, images_of
from .._sets.layout import NVRAM, file_name
from .._sets.schema import ImageEntry, Manifest
from .._sets.secret_files import key_for, secret_file
from .definition import read_definition
from .domain_xml import Guest, Place, Restored, needs, reconnected, restored_xml, sources_of_others
from .image import Image
from .obstacles import has_its_uuid, kept, lacking, missing_disks, taken, too_small

# As many characters are shown at most of one thing that is missing or removed.
_MOST_SHOWN = 1000
NVRAM_DIRECTORY = Path("/var/lib/libvirt/qemu/nvram")


@dataclass(frozen=True)
class RestoreOptions:
    """The module's options, but for where the set is. `name` is the restored domain's."""

    uri: str
    domain: str
    name: str
    directory: str | None
    format: str
    overwrite: bool
    exclusive: bool
    again: bool
    start: bool
    # Where single disks go: a path, or the `pool` and the `volume`. What networks and bridges of the set are called here.
    places: Mapping[str, Any] = field(default_factory=dict)
    networks: Mapping[str, str] = field(default_factory=dict)
    bridges: Mapping[str, str] = field(default_factory=dict)
    # Whether the domain starts at once, on the set, and how many bytes a second its disks are moved with, 0 for no limit.
    live: bool = False
    bandwidth: int = 0
    # The disks that are restored, all if there are none; and what becomes of single ones: they `replace` the domain's, are written as a
    # `file`, or `attach` to the domain as well.
    disks: Sequence[str] = ()
    disks_as: str = "replace"
    key: Key | None = None

    @property
    def beside(self) -> bool:
        """Whether disks are written beside those of the domain."""
        return self.disks_as != "replace"


@dataclass(frozen=True)
class Plan:
    """A restore that can be done; `backup` is the directory of the set, `key` what opens it if it is encrypted.

    Without `xml` nothing is defined, since only files are written. `there` are those that an earlier run has written.
    """

    guest: Guest
    backup: str
    images: list[Image]
    xml: str
    removed: list[str]
    replaces: bool
    not_captured: list[str]
    key: Key | None
    there: list[Image] = field(default_factory=list)

    def reported(self) -> dict[str, Any]:
        """What the module returns of it."""
        paths = "".join(f"{image.path}\n" for image in self.images)
        images = [*self.there, *self.images]
        return {
            "domain": {"name": self.guest.name, "uuid": self.guest.uuid},
            "backup_id": self.guest.stamp["backup_id"],
            "disks": [{"target": image.target, "path": image.path, "format": image.format} for image in images if image.target],
            "removed": self.removed,
            # What is not as it was when the backup was made, though it does not forbid the restore.
            "differences": [difference for image in images for difference in image.place.differences],
            "not_captured": self.not_captured,
            "diff": {"before": "", "after": f"domain {self.guest.name}\n{paths}" if self.xml else paths},
        }


def plan_restore(connection: libvirt.virConnect, found: GoodSet, options: RestoreOptions, stamp: dict[str, str]) -> Plan:
    """The plan, or an error that names everything that is in the way."""
    name, backup, manifest = options.name, Path(found["path"]), found["manifest"]
    is_copy = name != found["domain"]
    key = key_for(manifest, options.key)
    text = read_definition(backup, key)
    _require_places(manifest, options, is_copy=is_copy)
    require_known("networks", options.networks, needs(text)["network"])
    require_known("bridges", options.bridges, needs(text)["bridge"])
    existing = lookup_name(connection, name)
    if existing is not None:
        require_replaceable(existing, overwrite=options.overwrite)
    guest = Guest(name, existing.UUIDString() if existing is not None else str(uuid4()) if is_copy else found["uuid"], is_copy, stamp)
    images = [*disk_images(backup, manifest, options, key, volumes_of(connection)), *_nvram_image(manifest, text, guest, key)]
    made = _new_xml(text, guest, images, options)
    missing = [*lacking(connection, made.xml), *missing_disks(made.xml, [image.target for image in images])]
    missing += [problem for image in images for problem in image.place.problems]
    missing += [*taken(connection, images, name, overwrite=options.overwrite), *has_its_uuid(connection, guest)]
    missing += [*kept(made.xml, images), *too_small(images, guest.uuid)]
    require_possible(missing, images, options)
    if options.live:
        _require_live(images)
    return Plan(guest, str(backup), images, made.xml, shown(made.removed), existing is not None, shown(manifest["not_captured"]), key)


def shown(found: Iterable[str]) -> list[str]:
    """What the set's XML and manifest say, as it may be shown."""
    return [foreign(one, _MOST_SHOWN) for one in found]


def require_possible(missing: list[str], images: list[Image], options: RestoreOptions) -> None:
    """Fail where something is missing or in the way, or a block device is written without the user's word that nobody else uses it."""
    if missing:
        raise LiveBackupError(
            f"Domain {options.name!r} cannot be restored on this host yet, and nothing was written: {'; '.join(shown(missing))}.",
            code="host_unsuitable",
            missing=shown(missing),
        )
    devices = [image.path for image in images if image.place.is_block]
    if devices and not options.exclusive:
        raise LiveBackupError(
            f"Disks of domain {options.name!r} go to block devices ({', '.join(devices)}), where QEMU's lock does not show whether another "
            "host uses them. If only this host does, say so with exclusive (restore_exclusive in the playbook). Or name a directory.",
            code="exclusive_needed",
        )


def _require_places(manifest: Manifest, options: RestoreOptions, *, is_copy: bool) -> None:
    """Fail unless each disk has a place that is not another domain's, and only disks of the set have one."""
    disks = [disk["target"] for disk in manifest["disks"]]
    require_known("places", options.places, disks)
    if is_copy and not options.directory and not set(disks) <= {*options.places}:
        raise LiveBackupError(
            f"The old places of the disks belong to {manifest['domain']['name']!r}. Name a directory for the disks of {options.name!r}, or "
            "a place for each.",
            code="option_needed",
        )


def _require_live(images: list[Image]) -> None:
    """Fail where a disk cannot have the image that a live restore needs, which shows the set where nothing was written yet."""
    for image in images:
        if image.target and (image.place.is_block or image.format != "qcow2"):
            what = f"goes to the device {image.path}" if image.place.is_block else f"is {image.format}"
            raise LiveBackupError(
                f"A live restore needs each disk in a qcow2 file, and disk {image.target} {what}. Use format qcow2 and a place that is a "
                "file, or restore it without live. Nothing was restored.",
                code="option_invalid",
            )


def require_known(option: str, given: Iterable[str], known: list[str]) -> None:
    """Fail where an option names what the set does not have."""
    unknown = [name for name in given if name not in known]
    if unknown:
        raise LiveBackupError(
            f"{option} names {', '.join(sorted(unknown))}, and the set has {', '.join(known) or 'none'}. Nothing was restored.",
            code="option_invalid",
        )


def _new_xml(text: str, guest: Guest, images: list[Image], options: RestoreOptions) -> Restored:
    """The XML to define, on this host's files and networks."""
    text = reconnected(text, options.networks, options.bridges)
    places = {one.target: Place(one.place.named, one.format, one.place.is_block, one.place.volume) for one in images if one.target}
    emulator = parse_xml(text).findtext("devices/emulator") or ""
    there = [path for path in (*sources_of_others(text, [*places]).values(), emulator) if path and os.path.exists(path)]
    nvram = next((image.path for image in images if not image.target), "")
    return restored_xml(text, guest, disks=places, nvram=nvram, there=there)


def require_replaceable(domain: libvirt.virDomain, *, overwrite: bool) -> None:
    """Fail where a domain's disks are in use, or something of it belongs to them as they are now."""
    name = domain.name()
    if not overwrite:
        raise LiveBackupError(
            f"There is a domain {name!r} on this host. To put the backup in its place, shut it off and use overwrite (restore_overwrite "
            "in the playbook); to have both, give the restored one another name.",
            code="domain_exists",
        )
    if domain.isActive():
        raise LiveBackupError(f"Domain {name!r} is running. Shut it off before its disks are overwritten.", code="domain_running")
    if domain.state()[1] == VIR_DOMAIN_SHUTOFF_MIGRATED:
        raise LiveBackupError(
            f"Domain {name!r} was migrated away and may be running on another host, on these disks. Undefine it here.",
            code="domain_migrated",
        )
    if domain.hasManagedSaveImage():
        raise LiveBackupError(
            f"Domain {name!r} has saved memory, which belongs to its old disks: virsh managedsave-remove removes it.", code="memory_saved"
        )
    if domain.listAllSnapshots():
        raise LiveBackupError(
            f"Domain {name!r} has snapshots, which belong to its old disks. Delete them first.", code="domain_has_snapshots"
        )
    # Ours go with the old disks, and the next backup is a full one.
    checkpoints = [one for one in checkpoint_names(domain) if not one.startswith(PREFIX)]
    if checkpoints:
        raise LiveBackupError(
            f"Domain {name!r} has checkpoints ({', '.join(checkpoints)}), which belong to its old disks: an incremental backup since "
            "one would be wrong. `virsh checkpoint-delete --metadata` removes them. The tool that made them must start with a full backup.",
            code="domain_has_snapshots",
        )


def disk_images(backup: Path, manifest: Manifest, options: RestoreOptions, key: Key | None, volumes: VolumePlace) -> Iterator[Image]:
    """The images of the disks that are to be restored, and their places."""
    for disk in (one for one in manifest["disks"] if one["target"] in options.disks or not options.disks):
        source = NotedPlace.from_json(disk["source"])
        kept = source.format if source.format in ("raw", "qcow2") else "qcow2"
        image_format = kept if options.format == "original" else options.format
        name = f"{file_name(options.name)}.{file_name(disk['target'])}.{image_format}"
        if disk["target"] in options.places:
            place = _chosen(options.places[disk["target"]], name, volumes)
            if place.is_block and options.format == "original":
                # It is known to hold a raw disk of its size. How much a qcow2 image will need, nobody knows.
                image_format = "raw"
        elif options.directory:
            path = str(Path(options.directory) / name)
            place = NewPlace(path, path)
        else:
            place = old_place(disk["target"], source, volumes)
        needed = _needed(images_of(backup, disk), disk, image_format, key)
        below = tuple(chain_below(disk))
        yield Image(disk["target"], disk["file"], disk["format"], disk["digest"], place, image_format, disk["capacity"], needed, below)


def _chosen(place: Any, name: str, volumes: VolumePlace) -> NewPlace:
    """The place that the user names for a disk; in a directory the file has this name."""
    if isinstance(place, Mapping):
        volume = (place["pool"], place["volume"])
        return chosen_place(volumes(*volume)[1], volume)
    return chosen_place(str(Path(place, name)) if os.path.isdir(place) else place)


def _needed(files: list[Path], disk: ImageEntry, image_format: str, key: Key | None) -> int:
    """The bytes that will be written of a disk, whatever its virtual size: holes and zeroes take none."""
    if not files[0].exists():  # on another host yet
        return min(disk["capacity"], bytes_of(disk))
    # Before QEMU opens one.
    require_chain(files, disk["format"])
    if image_format == disk["format"] and not files[1:] and not key:
        return data_bytes(files[0])
    image = Node.of(files, disk["format"], key)
    # For a raw image qemu-img gives the virtual size, though it writes no zeroes.
    return (
        min(int(disk["capacity"]), measure(image, disk["format"], "qcow2"))
        if image_format == "raw"
        else measure(image, disk["format"], image_format)
    )


def _nvram_image(manifest: Manifest, text: str, guest: Guest, key: Key | None) -> Iterator[Image]:
    name = secret_file(Path(NVRAM), key).name
    for file in manifest["files"]:
        if file["name"] == name:
            old = parse_domain(text).nvram
            path = str(NVRAM_DIRECTORY / f"{file_name(guest.name)}_VARS.fd") if guest.is_copy or not old else old
            problems = tuple(place_problems(path)) if path.startswith("/") else ()
            yield Image("", name, "", file["digest"], NewPlace(path, path, problems=problems), "", file["size"], file["size"])
