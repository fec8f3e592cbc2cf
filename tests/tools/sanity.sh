#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# sanity.sh VERSION: runs ansible-test sanity of that ansible-core, from .build/venv-core-VERSION, on a copy of the collection.
set -euo pipefail

version=$1
venv=$PWD/.build/venv-core-$version
work=$PWD/.build/sanity-$version
export HOME=$work/home PATH=$venv/bin:/usr/sbin:/usr/bin:/sbin:/bin

# ansible-test makes its environments without pip and downloads a bootstrap script for each from a host of its own, unless
# its cache has one. This one installs what is asked for by a wheel of pip, through the package index that pip is set to use.
cache=$HOME/.ansible/test/cache
if [[ ! -d $cache ]]; then
    mkdir -p "$cache"
    pip download --quiet --no-deps --dest "$cache" pip==25.2
    for pip_version in 23_1_2 24_2; do
        cat >"$cache/get_pip_$pip_version.py" <<EOF
import sys
sys.path.insert(0, "$(echo "$cache"/pip-*.whl)")
from pip._internal.cli.main import main
own = {"--no-setuptools", "--no-wheel"}  # options of the bootstrap script, unknown to pip
sys.exit(main(["install", *(argument for argument in sys.argv[1:] if argument not in own)]))
EOF
    done
fi

tests/tools/copy.sh "$work"
cd "$work/ansible_collections/virtops/live_backup"
ansible-test sanity --local --color no 2>&1 | tee "$work/log"
if grep -q 'All targets skipped' "$work/log"; then
    echo "ansible-test $version looked at nothing" >&2
    exit 1
fi
