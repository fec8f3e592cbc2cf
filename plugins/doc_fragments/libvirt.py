# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The options that say on what a module works."""

    DOCUMENTATION = r"""
options:
  uri:
    description:
      - The libvirt URI of the hypervisor that the module runs on.
      - A remote URI is refused, since paths, locks and claims are the hypervisor's own.
    type: str
    default: qemu:///system
notes:
  - Run it as root (C(become)). Claims, images and libvirt's management socket are root's.
requirements:
  - Python 3.9 or newer, on the hypervisor
  - python3-libvirt, on the hypervisor
  - python3-lxml, on the hypervisor
"""

    DOMAIN = r"""
options:
  domain:
    description: The domain's name or UUID.
    type: str
    required: true
"""

    BACKUP_ID = r"""
options:
  backup_id:
    description:
      - The name of the backup, the same in every step of one run, for example V(20261122T184512Z).
      - Begins with a letter or digit and has at most 64 letters, digits, C(.), C(_) and C(-).
    type: str
    required: true
"""

    TARGET = r"""
options:
  target:
    description:
      - The export target, an existing directory on the hypervisor, as an absolute path.
      - Or C(ssh://[user@]host[:port]/directory), a directory on another host, which the hypervisor reaches by SSH. That host needs sshd, a
        POSIX shell and C(python3) 3.9 or newer. Its host key must be known. Whether the set is there already, and the room there, are
        looked for first.
      - The directory and each one above it must belong to root or to the user of the task, and others must not be able to write to them.
      - The set is published as C(<target>/<domain>/<backup_id>/).
    type: str
    required: true
"""

    CAPTURE = r"""
options:
  exclude_disks:
    description: Target devs of disks to leave out, for example V(vdb). Each must exist.
    type: list
    elements: str
    default: []
  quiesce:
    description:
      - V(auto) freezes the guest's file systems where its agent can, and otherwise takes a crash-consistent backup.
      - V(require) fails where they cannot be frozen.
      - V(never) does not try.
    type: str
    choices: [auto, require, never]
    default: auto
  freeze_timeout:
    description:
      - The longest time in seconds for which the guest's file systems may be frozen. It runs from the guest agent's answer to the freeze
        until the thaw is sent. After that time a watchdog thaws them.
      - The time of the agent's hooks does not count here. O(hook_timeout) limits it.
    type: int
    default: 30
  hook_timeout:
    description:
      - How long in seconds the guest agent may take to freeze, and again to thaw, including its hooks (C(fsfreeze-hook)).
      - Increase it when a hook takes longer, for example a database's checkpoint. Otherwise the backup is only crash-consistent.
      - An agent that freezes and never answers can leave the file systems frozen for this time, and a few seconds more.
      - The default is the value of O(freeze_timeout).
    type: int
  parallel:
    description:
      - Wait, before anything is done, until fewer than this many backups of other domains are under way on the hypervisor.
      - Those count that have begun and are neither finished nor abandoned, whoever runs them. V(0) does not wait.
    type: int
    default: 0
  at:
    description:
      - The moment of the capture, in seconds since the epoch by the controller's clock, for domains that are captured together.
      - All is prepared before; file systems are frozen a second before, or half of O(freeze_timeout) if that is less. It fails if that is
        not ready at that moment.
      - How far the hypervisor's clock is from the controller's is measured first, and told in RV(ignore:clock).
    type: float
  staging_dir:
    description:
      - Needed where O(target) begins with C(ssh://), and only there. An existing directory on the hypervisor, as an absolute path, for
        the unfinished set.
      - What QEMU or C(qemu-img) writes is made there, and must have room there; M(virtops.live_backup.backup_set_publish) sends it. That is
        every image of a push, and what is converted, compressed or flattened. Any other image is sent straight to the other host by
        M(virtops.live_backup.sparse_copy), and what is here has some KiB.
    type: path
  keep_formats:
    description:
      - The formats of disks whose images O(virtops.live_backup.sparse_copy#module:format) and
        O(virtops.live_backup.sparse_copy#module:compress) will leave as they are. Only those are sent straight to another host.
    type: list
    elements: str
    choices: [raw, qcow2]
    default: [raw, qcow2]
"""

    PROGRESS = r"""
options:
  progress_interval:
    description:
      - Show every so many seconds how far the work is; more rarely when it lasts for long. V(0) shows nothing.
      - Each line tells the domain and, by disk, its share, bytes, rate and time left.
    type: int
    default: 0
"""
