#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# promtool.sh FILE: promtool alone, of Debian's package, since that as a whole would start a server.
set -euo pipefail

here=$PWD
as_root=()
[[ $(id -u) -eq 0 ]] || as_root=(sudo)
directory=$(mktemp --directory)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
"${as_root[@]}" apt-get -qq update
apt-get -qq download prometheus
dpkg-deb --fsys-tarfile prometheus_*.deb | tar --extract ./usr/bin/promtool
install -D usr/bin/promtool "$here/$1"
