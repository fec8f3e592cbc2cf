#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# importer.sh: builds the collection into .build/dist and runs Galaxy's importer on it. A warning fails too.
set -euo pipefail

rm -rf .build/dist
ansible-galaxy collection build --output-path .build/dist
cd .build/dist
python -m galaxy_importer.main ./*.tar.gz 2>&1 | tee log
if grep -E '^(WARNING|ERROR)' log; then
    exit 1
fi
