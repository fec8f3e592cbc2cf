#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# copy.sh DIRECTORY: copies the collection as it stands, uncommitted files too, to DIRECTORY/ansible_collections/virtops/live_backup.
# ansible-test and molecule do not work in a symlinked collection.
set -euo pipefail

copy=$1/ansible_collections/virtops/live_backup
rm -rf "$copy"
mkdir -p "$copy"
git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do
        [[ ! -e $file ]] || printf '%s\0' "$file"
    done |
    tar --create --null --files-from - | tar --extract --directory "$copy"
# Without a repository of its own the copy is a git-ignored folder of the outer one: ansible-test would find no file and pass.
git -C "$copy" init --quiet
git -C "$copy" add --all
