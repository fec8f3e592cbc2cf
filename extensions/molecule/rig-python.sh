#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# The target's Python: Ansible connects locally, and this enters the hypervisor, whose files are this machine's.
set -euo pipefail

cd "$(dirname "$0")/../.."
exec python3 -m tests.rig exec molecule -- /usr/bin/python3 "$@"
