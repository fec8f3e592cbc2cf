# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: hypervisors
author: The virtops.live_backup contributors (@virtops)
version_added: 1.0.0
short_description: The hosts pattern of the hypervisors, if it matches a host
description:
  - Returns the variable C(live_backup_hosts), or V(hypervisors) if that is not set.
  - Fails if no host of the inventory matches it. Ansible itself skips a play that has no hosts, and ends well. A night without backups
    would look like a good one.
  - What C(--limit) leaves out does not count.
options:
  _terms:
    description: Not used.
    required: false
"""

EXAMPLES = r"""
- name: Look at the backup sets of each hypervisor
  hosts: "{{ lookup('virtops.live_backup.hypervisors') }}"
  gather_facts: false
  tasks:
    - name: List the sets
      virtops.live_backup.backup_set_info:
        target: /srv/backup
"""

RETURN = r"""
_raw:
  description: The pattern, as a list of one.
  type: list
  elements: str
  sample: [hypervisors]
"""

from typing import Any

from ansible import context
from ansible.errors import AnsibleLookupError
from ansible.plugins.loader import lookup_loader
from ansible.plugins.lookup import LookupBase

_DEFAULT = "hypervisors"


class LookupModule(LookupBase):
    """What Ansible asks for the pattern."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        """The pattern, or an error if no host matches it."""
        known = variables or {}
        given = self._templar.template(known.get("live_backup_hosts")) or _DEFAULT
        pattern = given if isinstance(given, str) else ":".join(given)
        hostnames = lookup_loader.get("ansible.builtin.inventory_hostnames", loader=self._loader, templar=self._templar)
        # A check of the syntax needs no inventory.
        if not context.CLIARGS.get("syntax") and not hostnames.run([pattern], variables=known):
            groups = sorted(name for name in known.get("groups", {}) if name not in ("all", "ungrouped"))
            raise AnsibleLookupError(
                f"No host of the inventory matches {pattern!r}, so there would be no hypervisor, and nothing would be done. "
                f"Set live_backup_hosts to a group or host of the inventory. It has the groups {', '.join(groups) or '(none)'}."
            )
        return [pattern]
