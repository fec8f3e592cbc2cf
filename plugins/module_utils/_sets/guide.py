# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""RESTORE.md: how a person restores a set with qemu-img and virsh alone.

Nothing foreign in it can become Markdown or shell: in prose it is a code span, in the block one quoted word on one line.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from .._base.text import foreign
from .._image.qcow2 import ENCRYPT, image_node
from .chain import ancestors_of, chain_below
from .schema import ImageEntry, Manifest
from .secret_files import OPENSSL, secret_name

# No comments: zsh takes none that are pasted. No exclamation mark: it would call up the shell's history.
_CHECK = """\
import hashlib, sys
for name, wanted in zip(sys.argv[1::2], sys.argv[2::2]):
    whole = hashlib.sha256()
    with open(name, "rb") as file:
        for chunk in iter(lambda: file.read(65536), b""):
            whole.update(hashlib.sha256(chunk).digest() if wanted.startswith("sha256-64k:") else chunk)
    if whole.hexdigest() == wanted.partition(":")[2]:
        print(name + ": OK")
    else:
        sys.exit(name + " is not what was backed up. Nothing was written.")"""


def restore_guide(manifest: Manifest, nvram: str) -> str:
    """How to restore the set to where its disks were; `nvram` is the path of that file."""
    consistency = manifest["consistency"]
    lacks = [*manifest["not_captured"], *(f"disk {disk['target']}: {disk['reason']}" for disk in manifest["skipped"])]
    missing = "".join(f"- {_span(what)}\n" for what in lacks)
    return f"""# Backup {_span(manifest["backup_id"])} of domain {_span(manifest["domain"]["name"])}
{f"{chr(10)}This set does not contain:{chr(10) * 2}{missing}" if lacks else ""}
- hypervisor: {_span(manifest["domain"]["hypervisor"])}
- time of the disks: {_span(consistency["instant"])}
- method: {_span(manifest["method"])}
- level: {_span(manifest["level"])}{_needs(manifest)}{_key(manifest)}
- consistency: {_span(consistency["level"])}, {_span(consistency["why"])}

## Restore

Shut the domain off. Become root, change to this directory, and paste the whole block into the shell.{_key_file(manifest)}

The block first compares each file with its digest. It then writes the new disks beside the old ones, and replaces the old ones when
all are written. Block devices are overwritten directly. The first line that fails stops the block, before the domain is started.
Then fix the cause and run the block again. The unfinished files end in `.restored`, and you can delete them.

{_other_places(manifest)}

```
{chr(10).join(_block(manifest, nvram))}
```

## Digests

`sha256sum -c SHA256SUMS` checks `manifest.json` and this file. A digest `sha256:` is what sha256sum prints. A digest `sha256-64k:`
is the SHA-256 of the joined SHA-256 digests of the file's 64 KiB chunks.
"""


def _key(manifest: Manifest) -> str:
    """What opens an encrypted set."""
    encryption = manifest.get("encryption")
    return f"{chr(10)}- it is encrypted: you need the key {_span(encryption['key_id'])}" if encryption else ""


def _other_places(manifest: Manifest) -> str:
    if "encryption" not in manifest:
        return "To keep the old disks, change the paths in the block and in `domain.xml`."
    return (
        "To keep the old disks, change the paths in the block. Decrypt the definition to a file, change the paths there, too, and "
        f"replace\n`/dev/stdin` by that file: `{_decrypt('domain.xml')} >/root/domain.xml`."
    )


def _needs(manifest: Manifest) -> str:
    """The sets that this one cannot be read without."""
    chain = ", ".join(_span(f"../{name}") for name in ancestors_of(manifest))
    return f"{chr(10)}- it needs {chain}: keep these directories together" if chain else ""


def _block(manifest: Manifest, nvram: str) -> Iterator[str]:
    """The lines to paste: a subshell, which is read whole before it begins, and whose end is not that of the person's shell."""
    uuid, name = _word(manifest["domain"]["uuid"]), foreign(manifest["domain"]["name"])
    disks = [(f"new_{number}", disk) for number, disk in enumerate(manifest["disks"], 1)]
    on_files = [(new, disk) for new, disk in disks if disk["source"].get("type") != "block"]
    yield "("
    yield "set -e"
    yield "umask 077"
    yield """stop() { printf '%s\\n' "$*" >&2; exit 1; }"""
    yield "replace() {"
    # Not its mode: NVRAM lies where QEMU's user may put a link to a program that runs as root.
    yield """  if [ -e "$1" ]; then chown --reference="$1" -- "$1.restored"; fi"""
    yield """  mv -fT -- "$1.restored" "$1\""""
    yield "}"
    yield "running=$(virsh list --uuid)"
    yield f"case $running in *{uuid}*) stop {_word(f'Domain {name} is running. Shut it off.')};; esac"
    if "encryption" in manifest:
        yield """test -s "$KEY_FILE" || stop 'Set KEY_FILE to the path of the file with the key.'"""
        yield f"{_decrypt('domain.xml')} >/dev/null || stop 'The key does not open this set.'"
    for new, disk in disks:
        yield from _checked_place(new, disk)
    if nvram:
        yield f"new_nvram={_word(nvram)}"
    yield f"python3 - {' '.join(_digests(manifest))} <<'END'"
    yield _CHECK
    yield "END"
    for new, disk in on_files:
        yield f'qemu-img convert -p {_source(manifest, disk)} "${new}.restored"'
        yield f'sync -- "${new}.restored"'
    if nvram:
        yield _nvram(manifest)
        yield 'sync -- "$new_nvram.restored"'
    for new, disk in disks:
        if (new, disk) not in on_files:
            # A device that was formatted is formatted again.
            into = "-n " if disk["source"]["format"] == "raw" else ""
            yield f'qemu-img convert -p {into}{_source(manifest, disk)} "${new}"'
            yield f'sync -- "${new}"'
    yield from (f'replace "${new}"' for new, _disk in on_files)
    if nvram:
        yield 'replace "$new_nvram"'
    for pool in sorted({disk["source"]["pool"] for _new, disk in disks if "pool" in disk["source"]}):
        yield f"virsh pool-refresh -- {_word(pool)}"
    yield "virsh define domain.xml" if "encryption" not in manifest else f"{_decrypt('domain.xml')} | virsh define /dev/stdin"
    yield f"virsh start {uuid}"
    yield ")"


def _checked_place(new: str, disk: ImageEntry) -> Iterator[str]:
    """Note where a disk goes, and stop where that is not the place that it was."""
    source, what = disk["source"], f"disk {foreign(disk['target'])}"
    path, is_block = source["path"], source.get("type") == "block"
    # Not where a device's link led: /dev/dm-3 may be another volume after the next boot.
    yield f"{new}={_word(path if is_block else source.get('real_path') or path)}"
    if source.get("elsewhere") or not path.startswith("/"):
        why = source.get("elsewhere") or "it was neither a file nor a block device"
        told = f"This block cannot restore {what}: {foreign(why)}. Write {disk['file']} to where it was, and remove the lines with {new}."
        yield f"stop {_word(told)}"
    elif is_block:
        yield f'test -b "${new}" || stop {_word(f"The place of {what} is not a block device: {foreign(path)}")}'
    else:
        if source.get("mount", "/") != "/":
            mount = source["mount"]
            yield f"mountpoint -q -- {_word(mount)} || stop {_word(f'The file system of {what} is not mounted: {foreign(mount)}')}"
        told = f"The place of {what} is gone, or a link leads elsewhere now: {foreign(path)}"
        yield f'[ "$(readlink -f -- {_word(path)})" = "${new}" ] || stop {_word(told)}'


def _digests(manifest: Manifest) -> Iterator[str]:
    for disk in manifest["disks"]:
        for image in (disk, *chain_below(disk)):
            yield from (_word(image["file"]), _word(image["digest"]))
    for file in manifest["files"]:
        yield from (_word(file["name"]), _word(file["digest"]))


def _source(manifest: Manifest, disk: ImageEntry) -> str:
    """The options of qemu-img that name what is read, and the format that is written."""
    into = f"-O {_word(disk['source']['format'])} --"
    if "encryption" not in manifest:
        return f"-f {_word(disk['format'])} {into} {_word(disk['file'])}"
    files = [Path(disk["file"]), *(Path(one["file"]) for one in chain_below(disk))]
    node = _word(f"json:{json.dumps(image_node(files, disk['format'], encrypted=True))}")
    return f'--object "secret,id={ENCRYPT["key-secret"]},format=raw,file=$KEY_FILE" {into} {node}'


def _decrypt(name: str) -> str:
    return f'{shlex.join(OPENSSL)} -d -pass "file:$KEY_FILE" -in {secret_name(name)}'


def _nvram(manifest: Manifest) -> str:
    if "encryption" not in manifest:
        return 'cp -T --remove-destination -- nvram "$new_nvram.restored"'
    # As above, no link of another user is followed.
    return f'rm -f -- "$new_nvram.restored"; (set -C; {_decrypt("nvram")} >"$new_nvram.restored")'


def _key_file(manifest: Manifest) -> str:
    if "encryption" not in manifest:
        return ""
    return f"""

First put the key into a file, without a newline at its end. Set `KEY_FILE` to the path of that file, which must have no comma:

```
KEY_FILE=/root/{manifest["encryption"]["key_id"]}.key
```"""


def _word(text: str) -> str:
    """A text as one word of the shell, on one line; what a terminal would act on is written as bash, zsh and ksh read it."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(one if re.fullmatch("[ -&(-[\\]-~]", one) else _octal(one) for one in text) + "'"


def _octal(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))


def _span(text: str) -> str:
    """A foreign text as a code span, which ends where as many backticks stand as at its beginning."""
    shown = foreign(text) or "?"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence} {shown} {fence}" if "`" in shown else f"{fence}{shown}{fence}"
