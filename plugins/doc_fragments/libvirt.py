# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The options that say on which domain a module works."""

    DOCUMENTATION = r"""
options:
  uri:
    description:
      - The libvirt URI of the hypervisor that the module runs on.
      - A remote URI is refused, because paths, locks and claims belong to the hypervisor itself.
    type: str
    default: qemu:///system
notes:
  - Run it as root (C(become)). Claims, images and libvirt's management socket belong to root.
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
      - It starts with a letter or digit and has at most 64 letters, digits, C(.), C(_) and C(-).
    type: str
    required: true
"""

    TARGET = r"""
options:
  target:
    description:
      - The target, an existing directory on the hypervisor, as an absolute path.
      - Or C(ssh://[user@]host[:port]/directory), a directory on another host, which the hypervisor reaches by SSH. That host needs sshd,
        a POSIX shell and C(python3) 3.9 or newer. Its host key must be known. The module first checks whether the set already exists
        there and whether there is enough free disk space.
      - The directory and each one above it must belong to root or to the user of the task. Others must not be able to write to them.
      - The set is published as C(<target>/<domain>/<backup_id>/).
    type: str
    required: true
"""

    CAPTURE = r"""
options:
  exclude_disks:
    description:
      - Target devs of disks to leave out, for example V(vdb). Each must exist.
      - An empty list leaves out none.
      - The default are those that the domain's own metadata names. C(docs/policy.md) of the collection describes the element.
    type: list
    elements: str
  quiesce:
    description:
      - V(auto) freezes the guest's file systems if its agent can do that, and otherwise takes a crash-consistent backup.
      - V(require) fails if they cannot be frozen.
      - V(never) does not try.
    type: str
    choices: [auto, require, never]
    default: auto
  freeze_timeout:
    description:
      - Maximum time in seconds for which the guest's file systems may be frozen. It runs from the guest agent's answer to the freeze
        until the thaw is sent. After that time a watchdog thaws them.
      - The time of the agent's hooks does not count here. O(hook_timeout) limits it.
    type: int
    default: 30
  hook_timeout:
    description:
      - Maximum time in seconds for the guest agent to freeze, and again to thaw, including its hooks (C(fsfreeze-hook)).
      - Increase it if a hook takes longer, for example a database's checkpoint. Otherwise the backup is only crash-consistent.
      - An agent that freezes and never answers can leave the file systems frozen for this time, and a few seconds more.
      - The default is the value of O(freeze_timeout).
    type: int
  parallel:
    description:
      - Before the module does anything, it waits until fewer than this many backups of other domains are running on the hypervisor.
      - A backup counts from its start until it is finished or abandoned, whoever runs it. V(0) does not wait.
    type: int
    default: 0
  at:
    description:
      - The moment of the capture, in seconds since the epoch by the controller's clock, for domains that are captured together.
      - Everything is prepared before. File systems are frozen one second before, or half of O(freeze_timeout) if that is less. The module
        fails if it is not ready at that moment.
      - The module first measures how far the hypervisor's clock is from the controller's, and returns that in RV(ignore:clock).
    type: float
  until:
    description:
      - The last moment at which a backup may start, in seconds since the epoch. It is compared when it is this domain's turn.
      - After it nothing is captured, and the module fails with the C(code) V(too_late).
    type: float
  every:
    description:
      - How often the domain is backed up, as a number and C(s), C(m), C(h), C(d) or C(w). Not used with O(at).
      - If its last good set at O(target) is younger, nothing is captured, and the module returns RV(ignore:not_due). A quarter of that
        time, at most 6 hours, does not count, since no run reaches a domain at the same minute.
      - The default is what the domain's own metadata says. Otherwise a backup is always made.
    type: str
  staging_dir:
    description:
      - For a O(target) that starts with C(ssh://), and only then. An existing directory on the hypervisor, as an absolute path, for
        the partial set.
      - Required if an image cannot be sent directly. The default is C(/var/lib/live_backup/staging).
      - Files that QEMU or C(qemu-img) writes are written there, so it needs disk space for them. These are every image of a push, and
        every image of a legacy or offline backup that is converted, compressed or flattened. With another O(level) than V(full), raw disks
        are converted. M(virtops.live_backup.backup_set_publish) sends them.
      - M(virtops.live_backup.sparse_copy) sends any other image directly to the other host. These are every image of a pull, and the other
        images of a legacy or offline backup. Such a backup needs only some KiB here.
    type: path
  level:
    description:
      - What the backup contains.
      - V(full) contains all data of the disks.
      - V(incremental) contains what changed since the newest set at this target.
      - V(differential) contains what changed since the newest full set at this target.
      - It is an error if no such set can be used. The message names the reason.
      - V(auto) makes an incremental backup if that is possible, and a full backup otherwise. RV(ignore:level_reason) names the reason. This
        is the level for nightly backups.
      - In a push or a pull, libvirt's checkpoints track the changes of qcow2 images. Any other disk is read as a whole and compared with
        the set that this backup builds on. M(virtops.live_backup.backup_set_publish) then keeps only what differs.
    type: str
    choices: [full, incremental, differential, auto]
    default: full
  track:
    description:
      - Whether later levels can use this backup. The default is V(true), unless O(level=full).
      - A push or a pull then makes a checkpoint of libvirt. With checkpoints, libvirt cannot revert to an internal snapshot of the domain,
        and C(virsh undefine) needs C(--checkpoints-metadata). So no checkpoint is made for a domain that has internal snapshots. With
        O(level=full), it is an error to track such a domain.
    type: bool
  full_every:
    description:
      - The maximum number of sets in a chain, for O(level=auto). When the newest chain has this many sets, the next backup is a full one.
      - V(1) makes every backup a full one.
    type: int
    default: 7
  keep_formats:
    description:
      - The formats of the disks that O(virtops.live_backup.sparse_copy#module:format) and
        O(virtops.live_backup.sparse_copy#module:compress) will not convert. Only those are sent directly to another host. A pull sends
        every disk directly.
    type: list
    elements: str
    choices: [raw, qcow2]
    default: [raw, qcow2]
"""

    PROGRESS = r"""
options:
  progress_interval:
    description:
      - Show progress every N seconds, less often in long jobs. V(0) shows nothing.
      - Each line shows the domain, what is done, and the percentage, bytes, rate and remaining time of all its disks together.
    type: int
    default: 0
"""
