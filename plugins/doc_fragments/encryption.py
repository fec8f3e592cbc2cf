# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The options that name the key of encrypted sets."""

    DOCUMENTATION = r"""
options:
  encryption_key:
    description:
      - The key of encrypted backup sets, one line of at least 32 ASCII characters. C(openssl rand -base64 32) prints one. Keep it in
        Ansible Vault.
      - Who loses the key loses the backups. No other key opens them.
    type: str
  encryption_key_file:
    description:
      - A file on the host that the module runs on, with the key and nothing else. It must not end with a newline.
      - Mutually exclusive with O(encryption_key).
    type: path
"""

    ENCRYPT = r"""
options:
  encrypt:
    description:
      - Encrypt the set. The value is the name of the key, which the manifest then contains. O(encryption_key) or O(encryption_key_file) is
        the key.
      - Choose another name when you change the key. The next backup of each domain is then a full one. Older sets still need the old key.
      - It starts with a letter or digit and has at most 64 letters, digits, C(.), C(_) and C(-).
    type: str
"""
