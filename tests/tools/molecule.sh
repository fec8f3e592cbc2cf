#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# molecule.sh: runs every molecule scenario in a copy of the collection.
set -euo pipefail

export LIVE_BACKUP_RESULTS=$PWD/.build/results
export ANSIBLE_COLLECTIONS_PATH=$PWD/.build/molecule
mkdir -p "$LIVE_BACKUP_RESULTS"
tests/tools/copy.sh .build/molecule
cd .build/molecule/ansible_collections/virtops/live_backup
molecule test --all --no-command-borders
