# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The options that say where backup sets are, here or on another host."""

    DOCUMENTATION = r"""
options:
  target:
    description:
      - The target. An existing directory on the host that the module runs on, as an absolute path.
      - Or C(ssh://[user@]host[:port]/directory), a directory on another host, which the module's host reaches by SSH. That host needs
        sshd, a POSIX shell and C(python3) 3.9 or newer. Its host key must be known.
      - The sets of a domain are in C(<target>/<domain>/<backup_id>/).
    type: str
    required: true
requirements:
  - Python 3.9 or newer
notes:
  - Run it as a user who may read the sets. That is root (C(become)), or by SSH the user who owns them.
"""

    SSH = r"""
options:
  ssh_key:
    description:
      - The private key for a path that starts with C(ssh://), a file on the host that the module runs on.
      - The default is the key that ssh finds there for the user.
    type: path
  ssh_options:
    description:
      - Options for C(ssh), in the form of its C(-o), for example V(UserKnownHostsFile=/etc/live_backup/known_hosts).
      - Options that protect this host, or that prove the server's identity, cannot be set. C(BatchMode), C(StrictHostKeyChecking) and
        C(ClearAllForwardings) are always V(yes). C(ForwardAgent), C(ForwardX11), C(GSSAPIDelegateCredentials), C(PermitLocalCommand),
        C(Tunnel), C(ControlMaster) and C(NoHostAuthenticationForLocalhost) are always V(no), and C(ControlPath) is always V(none).
    type: list
    elements: str
    default: []
"""
