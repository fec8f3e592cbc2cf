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
      - The set is published as C(<target>/<domain>/<backup_id>/).
    type: str
    required: true
"""
