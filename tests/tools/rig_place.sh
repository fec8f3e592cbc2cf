#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Where the tests' hypervisors go: into memory where there is plenty, since the tests sync all the time; otherwise the rig's default.
set -euo pipefail
gib=$((1024 * 1024))
free=$(df --output=avail /dev/shm 2>/dev/null | tail -n 1 || echo 0)
available=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo)
if ((free >= 8 * gib && available >= 12 * gib)); then
    echo /dev/shm/live-backup-rig
else
    echo /var/tmp/live-backup-rig
fi
