#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_domain_restore
short_description: Restore a domain from a backup set
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Writes the disks of a backup set and its NVRAM, defines the domain, and starts it on request.
  - Before it writes anything, it names everything that this host lacks, such as networks, firmware, the machine type or free disk space.
  - Compares the written data with the set's digests. Without O(live), it never defines a domain on an image that differs from the backup.
  - Writes new disks beside their places. Old disks stay until the new ones are in place and the domain is defined on them.
  - The next run, or M(virtops.live_backup.libvirt_backup_recover), completes or undoes an interrupted restore. Until then the domain
    is neither backed up nor proven, and none of its sets is removed.
  - Restores a disk to its old place if that is still the same place - the same volume, or through the same link. If it is now another kind
    of place, or is not mounted, this is an error. The module returns lesser differences. It creates nothing below C(/dev).
  - A block device cannot be put aside. The module writes it when everything is proven, as the last step before it defines the domain.
  - A domain that is restored under another name gets its own UUID and MAC addresses, and keeps only what belongs to the guest itself.
    Everything that connects the guest to its host is left out, such as passed-through devices, sockets, scripts and shared folders.
    RV(removed) lists it.
  - The domain's metadata names the set from which it was restored. A run that names the same set does nothing, whatever the disks hold by
    then, unless O(again) is set.
  - An encrypted set needs its key. The restored disks are not encrypted.
extends_documentation_fragment:
  - virtops.live_backup.encryption
  - virtops.live_backup.libvirt
  - virtops.live_backup.libvirt.domain
  - virtops.live_backup.target
  - virtops.live_backup.target.ssh
  - virtops.live_backup.attributes
  - virtops.live_backup.attributes.actiongroup
attributes:
  check_mode:
    support: full
    details: Fails as the real run would if the host lacks something. The digests of the images are not compared, see RV(verified).
  diff_mode:
    support: full
  idempotent:
    support: full
    details: No change if the domain's metadata names the set.
options:
  domain:
    description: The name or UUID of the domain whose set is restored.
  backup_id:
    description:
      - The name of the backup. The default is the newest good one.
      - A set that seems to come from the future, after a clock was set back, is restored only if you name it.
    type: str
  name:
    description: The name of the restored domain. The default is its old one.
    type: str
  directory:
    description:
      - An existing directory for the disks, as C(<name>.<disk>.<format>). The default is the place of each disk when it was backed up.
      - Required with another O(name), unless O(places) names a place for each disk.
    type: path
  overwrite:
    description: Whether the disks and the definition of an existing domain of that name may be replaced. The domain must be shut off.
    type: bool
    default: false
  exclusive:
    description:
      - Confirms that no other host uses the block devices that are written. Required if there are any, because QEMU's lock does not show
        it.
    type: bool
    default: false
  again:
    description:
      - Whether to restore a domain once more from the set from which it was restored. What it wrote since then is lost.
    type: bool
    default: false
  format:
    description: The format of the disks. V(original) is the format of each disk when it was backed up.
    type: str
    choices: [original, qcow2, raw]
    default: original
  start:
    description:
      - Whether to start the domain after the restore.
      - A failed start is an error. The next run does not try it again, because the domain is restored by then.
    type: bool
    default: false
  live:
    description:
      - Whether to start the domain at once, on disks that read from the set. Their data is moved to their places while the guest runs.
      - The module ends when nothing reads from the set any more. If the module dies, the guest keeps running, and the next run continues.
      - The set is compared with its digests while its data is moved. If it is damaged, the guest is paused and the module fails.
      - If the set or its server can no longer be read, the guest is paused until it can be. What the guest has written is kept.
      - Needs each disk in a qcow2 file. O(start) is implied.
    type: bool
    default: false
  bandwidth:
    description:
      - With O(live), the maximum speed of the move in bytes per second, such as V(100M). By default there is no limit.
      - What the guest itself reads is not limited.
    type: bytes
  places:
    description:
      - Where single disks go, by the names of the disks, such as V(vda). These places override O(directory) and the old places.
      - A place is an absolute path, or a dictionary with C(pool) and C(volume).
      - A path may be that of a file, a block device or an existing directory. On a block device, O(format=original) means V(raw).
      - A volume of a pool that is a directory is created. In other pools, such as LVM, the volume must exist.
      - What exists, such as a block device, is written only with O(overwrite).
    type: dict
    default: {}
  disks:
    description:
      - The disks that are restored, by their names in the set, such as V(vdb). The default is the whole domain.
      - With it the definition, the NVRAM and the other disks of the domain stay as they are.
    type: list
    elements: str
    default: []
  disks_as:
    description:
      - What becomes of the disks in O(disks).
      - V(replace) puts them in the place of the domain's disks of the same names. The domain must be shut off, and O(overwrite) confirms
        it. The checkpoints of the domain are forgotten.
      - V(attach) writes them to O(directory) or O(places), and attaches them to the domain under the next free names. The domain may run.
        Nothing is detached later.
      - V(file) only writes them to O(directory) or O(places). The domain may run, and need not exist.
    type: str
    choices: [replace, attach, file]
    default: replace
  networks:
    description: >-
      What libvirt's networks are called on this host, if they have other names here. Maps names in the set to names on this host.
    type: dict
    default: {}
  bridges:
    description: What bridges are called on this host. Maps names in the set to names on this host.
    type: dict
    default: {}
seealso:
  - module: virtops.live_backup.backup_set_verify
  - module: virtops.live_backup.backup_set_extract
"""

EXAMPLES = r"""
- name: Restore the newest good set of a domain that was lost
  virtops.live_backup.libvirt_domain_restore:
    domain: db1
    target: /srv/backup
    start: true

- name: Restore a certain backup in place
  virtops.live_backup.libvirt_domain_restore:
    domain: db1
    backup_id: 20261122T184512Z
    target: /srv/backup
    overwrite: true

- name: Restore a copy beside the original
  virtops.live_backup.libvirt_domain_restore:
    domain: db1
    target: ssh://backup@vault.example.com/srv/backup
    ssh_key: /etc/live_backup/id_ed25519
    name: db1-test
    directory: /var/lib/libvirt/images

- name: Start a domain at once from its backup, and move its disks while it runs
  virtops.live_backup.libvirt_domain_restore:
    domain: db1
    target: ssh://backup@vault.example.com/srv/backup
    format: qcow2
    live: true
    bandwidth: 200M

- name: Restore one disk of a domain that is shut off
  virtops.live_backup.libvirt_domain_restore:
    domain: db1
    target: /srv/backup
    disks: [vdb]
    overwrite: true

- name: Look into yesterday's disk from the running domain
  virtops.live_backup.libvirt_domain_restore:
    domain: db1
    backup_id: 20261122T184512Z
    target: /srv/backup
    disks: [vdb]
    disks_as: attach
    directory: /var/lib/libvirt/images

- name: Restore a domain on another host, which has other storage and networks
  virtops.live_backup.libvirt_domain_restore:
    domain: db1
    target: ssh://backup@vault.example.com/srv/backup
    overwrite: true
    exclusive: true
    places:
      vda: /dev/vg0/db1
      vdb: {pool: fast, volume: db1-data.qcow2}
    networks: {lan: default}
    bridges: {br0: br-guests}
"""

RETURN = r"""
domain:
  description: The C(name) and C(uuid) of the restored domain.
  returned: success
  type: dict
  sample: {name: db1, uuid: 5b1dcd43-5b5a-4bb6-9e2c-2f0f5a5f9d3e}
backup_id:
  description: The name of the backup.
  returned: success
  type: str
  sample: 20261122T184512Z
disks:
  description: The restored disks, each with C(target), C(path) and C(format).
  returned: success
  type: list
  elements: dict
  sample: [{target: vda, path: /var/lib/libvirt/images/db1.qcow2, format: qcow2}]
removed:
  description: What the original has and this domain lacks. A copy under another name lacks everything that connects the guest to its host.
  returned: success
  type: list
  elements: str
  sample: [the medium /srv/iso/install.iso of drive sda]
differences:
  description: Differences to the time of the backup, such as another mount point or another size of a device.
  returned: success
  type: list
  elements: str
  sample: [/srv/vm/db1.raw was on the file system mounted at /srv/vm, and is on that at / now]
not_captured:
  description: What the set lacks, such as the state of a virtual TPM.
  returned: success
  type: list
  elements: str
  sample: [the state of its virtual TPM (/var/lib/libvirt/swtpm)]
missing:
  description: What this host lacks, and what is in the way.
  returned: failure, if that is the reason
  type: list
  elements: str
  sample: [there is no network lan]
rto_seconds:
  description: The seconds from the start of the module until the domain was started.
  returned: success, with O(live)
  type: float
  sample: 3.4
verified:
  description: Whether the written data was compared with the set's digests. V(false) in check mode, and if there was nothing to do.
  returned: success
  type: bool
  sample: true
code:
  description: The stable name of the cause, even if the message changes. The troubleshooting guide has a section for each code.
  returned: failure
  type: str
  sample: claim_alive
libvirt_error:
  description: The error of libvirt, with its C(code), C(domain) and C(message). The first two are libvirt's numbers.
  returned: failure, if libvirt reported an error
  type: dict
  sample: {code: 38, domain: 7, message: 'Failed to connect socket to ''/run/libvirt/libvirt-sock'': No such file or directory'}
"""

from ansible_collections.virtops.live_backup.plugins.module_utils._module import CONNECTION, DOMAIN, ENCRYPTION, ONE_KEY, SSH, TARGET, run
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.restore import restore_domain


def main() -> None:
    run(
        restore_domain,
        CONNECTION,
        DOMAIN,
        TARGET,
        SSH,
        ENCRYPTION,
        {
            "backup_id": {"type": "str"},
            "name": {"type": "str"},
            "directory": {"type": "path"},
            "overwrite": {"type": "bool", "default": False},
            "exclusive": {"type": "bool", "default": False},
            "again": {"type": "bool", "default": False},
            "format": {"type": "str", "choices": ["original", "qcow2", "raw"], "default": "original"},
            "start": {"type": "bool", "default": False},
            "live": {"type": "bool", "default": False},
            "bandwidth": {"type": "bytes"},
            "places": {"type": "dict", "default": {}},
            "disks": {"type": "list", "elements": "str", "default": []},
            "disks_as": {"type": "str", "choices": ["replace", "attach", "file"], "default": "replace"},
            "networks": {"type": "dict", "default": {}},
            "bridges": {"type": "dict", "default": {}},
        },
        mutually_exclusive=[ONE_KEY],
    )


if __name__ == "__main__":
    main()
