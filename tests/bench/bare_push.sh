#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# bare_push.sh UUID XML [CHECKPOINT-XML]: what one would write by hand: begin, look every second until no job is there, see that it succeeded.
# Prints the milliseconds that libvirt counted for the job.
set -eu
virsh -q backup-begin "$1" "$2" ${3:+"$3"}
until virsh -q domjobinfo "$1" | grep -q None; do
    sleep 1
done
result=$(virsh -q domjobinfo "$1" --completed)
echo "$result" | grep -q Completed
echo "$result" | sed -n 's/^Time elapsed: *\([0-9]*\).*/\1/p'
