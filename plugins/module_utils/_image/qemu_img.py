# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one way to call qemu-img."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from .._base.errors import LiveBackupError, advised
from .._base.files import write_out
from .._base.text import foreign, screen
from .data import Pace
from .key import Key, secret_object
from .qcow2 import ENCRYPT, image_node, is_self_contained
from .qcow2_writer import Backing

# As many characters of what it says are heard at most.
_MOST_SAID = 2000
# How often what it has written is given to the disk.
_WRITE_OUT_SECONDS = 0.05
# The secret is random, so that guesses need not be made slow, which would make each opening slow.
_ENCRYPTED = f"encrypt.format={ENCRYPT['format']},encrypt.key-secret={ENCRYPT['key-secret']},encrypt.iter-time=10"
_NOT_MEASURED = "Unable to get accurate CPU usage"
_TRIES = 20
_NOT_THE_KEY = "cannot unlock any keyslot"


def _command(*arguments: str | Path) -> list[str]:
    if shutil.which("qemu-img") is None:
        raise LiveBackupError(
            "qemu-img is not installed on this host: install qemu-utils (Debian, Ubuntu) or qemu-img (EL).", code="program_missing"
        )
    # It must not outlive us: a later run would meet its lock, or write beside it.
    return ["setpriv", "--pdeathsig", "KILL", "qemu-img", *map(str, arguments)]


def _run(
    *arguments: str | Path,
    pace: Pace | None = None,
    at_work: Callable[[], None] | None = None,
    every: float = _WRITE_OUT_SECONDS,
    descriptors: tuple[int, ...] = (),
    key: Key | None = None,
) -> str:
    """What a command prints. While it runs, `at_work` is called every so many seconds."""
    name, *others = arguments
    with (
        secret_object(key) as secret,
        subprocess.Popen(
            _command(name, *secret.options, *others),
            pass_fds=(*descriptors, *secret.descriptors),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
        ) as process,
    ):
        if pace is not None:
            pace.on_give_up(process.kill)
        try:
            out, err = _communicate(process, at_work, every)
        finally:
            # Where it has not ended, an error or a signal is to end us.
            process.kill()
    if pace is not None and pace.given_up:
        raise pace.given_up
    if process.returncode != 0:
        said = _said(err) or f"it ended with status {process.returncode}"
        _require_opened(said, key)
        raise LiveBackupError(*advised(f"qemu-img {arguments[0]} of {arguments[-1]} failed: {said}", code="qemu_img_failed"))
    return out


def _require_opened(said: str, key: Key | None) -> None:
    if key and _NOT_THE_KEY in said:
        raise LiveBackupError("The key does not open the set. Name the right one.", code="key_wrong")


def _communicate(process: subprocess.Popen[str], at_work: Callable[[], None] | None, every: float) -> tuple[str, str]:
    while True:
        try:
            return process.communicate(timeout=every if at_work else None)
        except subprocess.TimeoutExpired:
            cast(Callable[[], None], at_work)()


def _said(text: str) -> str:
    """What it says; of lines that differ in their numbers only, which each of its coroutines may print, one."""
    lines = {re.sub(r"\d+", "", line): line for line in reversed(screen(text.replace("qemu-img: ", "")))}
    return foreign(" ".join(reversed(lines.values())), _MOST_SAID)


def image_info(path: str | Path, image_format: str) -> dict[str, Any]:
    """What qemu-img finds in an image that may be open elsewhere, without its backing chain."""
    return json.loads(_run("info", "--force-share", "-f", image_format, "--output", "json", path))


def backing_chain(path: str | Path, image_format: str) -> list[dict[str, Any]]:
    """Every image of a chain, the top first; an error where QEMU would have to guess a format."""
    chain = [image_info(path, image_format)]
    while below := _backing_of(chain[-1]):
        if below[0] in [one["filename"] for one in chain[1:]]:
            raise LiveBackupError(f"The backing files of {path} form a loop: {below[0]} is in its own chain.", code="image_invalid")
        chain.append(image_info(*below))
    return chain


def _backing_of(info: dict[str, Any]) -> tuple[str, str] | None:
    """The image that another is backed by, and its format."""
    name = info.get("full-backing-filename", info.get("backing-filename"))
    if name and not info.get("backing-filename-format"):
        # A guest chooses what a raw image begins with, so a format that is guessed is the guest's word.
        raise LiveBackupError(
            f"{foreign(info['filename'])} is backed by {foreign(name)} and does not name the format of that image, which is never guessed. "
            f"`qemu-img rebase -u -f {info['format']} -F FORMAT -b BACKING-FILE IMAGE` writes it into its header.",
            code="format_unknown",
        )
    return (name, info["backing-filename-format"]) if name else None


class Node(str):
    """An image as a node of QEMU's block layer, which names each file and format of it, and the key that opens it."""

    key: Key | None = None

    @classmethod
    def of(cls, files: list[Path], image_format: str, key: Key | None = None) -> Node:
        """An image and what it builds on, whatever their headers name."""
        node = cls(f"json:{json.dumps(image_node(files, image_format, encrypted=key is not None))}")
        node.key = key
        return node


def _reads(path: str | Path, image_format: str, option: str = "-f") -> list[str]:
    """How a command is told what it reads, of which nothing is left to be guessed."""
    if isinstance(path, Node):
        return []
    if image_format != "raw" and not (image_format == "qcow2" and is_self_contained(path, image_format)):
        backing_chain(path, image_format)
    return [option, image_format]


def check_image(file: dict[str, Any], descriptors: tuple[int, ...] = (), key: Key | None = None) -> list[str]:
    """What is wrong with the structure of a qcow2 image, which is in a node of QEMU's block layer; room that is lost in it is no harm."""
    source = f"json:{json.dumps({'driver': 'qcow2', 'backing': None, 'file': file, **({'encrypt': ENCRYPT} if key else {})})}"
    with (
        secret_object(key) as secret,
        subprocess.Popen(
            _command("check", *secret.options, "--force-share", source),
            pass_fds=(*descriptors, *secret.descriptors),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            errors="replace",
        ) as process,
    ):
        # There may be a line for each cluster. The first ones tell enough, and it must not wait for us to read the others.
        said = cast(IO[str], process.stderr).read(_MOST_SAID)
        while cast(IO[str], process.stderr).read(_MOST_SAID):
            pass
    # 2: corrupted, 3: only leaked clusters.
    if process.returncode in (0, 3):
        return []
    if key and process.returncode != 2:
        # It is the key, or this host's QEMU has no LUKS, which says nothing about the image.
        _require_opened(said, key)
        raise LiveBackupError(f"qemu-img check of an encrypted image failed: {foreign(said)}", code="qemu_img_failed")
    words = foreign(said.replace("qemu-img: ", "").replace(f"'{source}'", "it"), _MOST_SAID)
    return [f"qemu-img check finds it damaged: {words or 'its tables are corrupted'}"]


def holds_data(overlay: str | Path) -> bool:
    """Whether anything was written to an overlay; asked of the overlay alone, so its backing file may be in use or gone."""
    if os.stat(overlay).st_size == 0:
        # libvirt's daemon died after it had made the file, and before QEMU had formatted it.
        return False
    source = json.dumps({"driver": "qcow2", "backing": None, "file": {"driver": "file", "filename": str(overlay)}})
    extents = json.loads(_run("map", "--force-share", "--output", "json", f"json:{source}"))
    return any(extent["data"] or extent["zero"] and extent.get("present", True) for extent in extents)


def measure(path: str | Path, source_format: str, to_format: str) -> int:
    """The bytes that the disk in an image takes in another format."""
    arguments = ("measure", *_reads(path, source_format), "-O", to_format, "--output", "json", path)
    return int(json.loads(_run(*arguments, key=path.key if isinstance(path, Node) else None))["required"])


@dataclass(frozen=True)
class How:
    """How an image is converted; `into` writes over a device, which must be there.

    With `forget` the disk writes from the beginning, not when memory is full or the image is synced, and the page cache does not keep
    the copy. That is of no use to somebody who reads it next. With `in_use` it takes no lock of the source: if a target that hangs keeps
    it from dying, nobody could write to the source until it answers. With a `key` the image becomes an encrypted one.
    """

    compress: str = "none"
    rate: int = 0
    pace: Pace | None = None
    into: bool = False
    forget: bool = False
    in_use: bool = False
    key: Key | None = None


def convert(source: Path | Node, source_format: str, destination: Path, to_format: str, how: How = How()) -> None:
    """Write the whole disk as one image without backing file."""
    known = _reads(source, source_format)
    # A raw device has nothing to be created on it; an image of another format must be.
    options = ["-n"] * (how.into and to_format == "raw") + ["-U"] * how.in_use
    if how.compress != "none":
        options += ["-c", "-o", f"compression_type={how.compress}"]
    if how.key:
        options += ["-o", _ENCRYPTED]
    if how.rate:
        options += ["-r", str(how.rate)]
    # Out of order writes fill the target faster, and are not possible for compressed clusters in old versions.
    elif how.compress == "none":
        options += ["-W"]
    descriptor = os.open(destination, os.O_WRONLY | (0 if how.into else os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW), 0o600)
    try:
        if not how.into:
            # If qemu-img made it, as it may have in a run that died, everybody could read it.
            os.fchmod(descriptor, 0o600)
        at_work = partial(write_out, descriptor, 0, 0) if how.forget else None
        command = ("convert", *known, "-O", to_format, *options, source, destination)
        if how.key:
            _run_encrypting(how.key, *command, pace=how.pace, at_work=at_work)
        else:
            _run(*command, pace=how.pace, at_work=at_work, key=source.key if isinstance(source, Node) else None)
    finally:
        os.close(descriptor)


def create_overlay(descriptor: int, size: int) -> None:
    """Make an open file, which needs no name, an empty image that whoever opens it puts over another one."""
    _run("create", "-q", "-f", "qcow2", f"/proc/self/fd/{descriptor}", str(size), descriptors=(descriptor,))


def _run_encrypting(key: Key, *arguments: str | Path, **options: Any) -> None:
    """Run a command that makes an encrypted image.

    QEMU before 9.1 measures how fast the processor is, and gives up if the kernel has counted no time (crypto/pbkdf.c).
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            _run(*arguments, key=key, **options)
            return
        except LiveBackupError as error:
            if _NOT_MEASURED not in error.msg or not tries_left:
                raise


def create_encrypted(path: Path, size: int, backing: Backing | None, key: Key) -> None:
    """Make an empty encrypted image, which names what it builds on."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600))
    below = ["-u", "-b", backing.name, "-F", backing.format] if backing else []
    _run_encrypting(key, "create", "-q", "-f", "qcow2", *below, "-o", _ENCRYPTED, path, str(size))


def commit(overlay: str | Path, at_work: Callable[[], None], every: float) -> None:
    """Merge an overlay into its backing file, and leave it as it is: until it is removed it still shows the same disk.

    `at_work` is called every so many seconds.
    """
    _run("commit", "-d", *_reads(overlay, "qcow2"), overlay, at_work=at_work, every=every)


def qcow2_facts(image: str | Path) -> dict[str, Any]:
    """What qemu-img says of a qcow2 image that only this format has."""
    return cast("dict[str, Any]", image_info(image, "qcow2").get("format-specific", {}).get("data", {}))


def snapshots_in(image: str | Path) -> list[str]:
    """The names of the internal snapshots of a qcow2 image."""
    return [snapshot["name"] for snapshot in image_info(image, "qcow2").get("snapshots", [])]


def bitmaps_of(image: str | Path) -> list[str]:
    """The names of the dirty bitmaps in a qcow2 image. A running QEMU has newer ones, which it writes there when it ends."""
    return [bitmap["name"] for bitmap in qcow2_facts(image).get("bitmaps", [])]


def usable_bitmaps(image: str | Path) -> list[str]:
    """The names of those that have noted all changes until the image was closed. QEMU marks others, as after it was killed."""
    return [bitmap["name"] for bitmap in qcow2_facts(image).get("bitmaps", []) if bitmap["flags"] == ["auto"]]


def remove_bitmap(image: str | Path, name: str) -> None:
    """Remove a dirty bitmap of a qcow2 image that no QEMU has open."""
    _run("bitmap", "--remove", *_reads(image, "qcow2"), "--", image, name)


def rebase_unsafe(image: Path, backing: Backing) -> None:
    """Have a qcow2 image name another backing file. Neither backing file is opened."""
    _run("rebase", "-u", "-f", "qcow2", "-F", backing.format, "-b", backing.name, image)


def create_above(path: Path, size: int, backing: Backing) -> None:
    """Make an image that shows its backing file, which need not be there yet."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    _run("create", "-q", "-f", "qcow2", "-u", "-b", backing.name, "-F", backing.format, path, str(size))


def flatten(image: Path) -> None:
    """Copy to an image that nobody uses what its backing file shows, so that it needs none."""
    _run("rebase", "-q", "-f", "qcow2", "-b", "", image)


def are_identical(one: str | Path, one_format: str, other: str | Path, other_format: str) -> bool:
    """Whether two images hold the same disk."""
    command = _command("compare", "-s", *_reads(one, one_format), *_reads(other, other_format, "-F"), one, other)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="backslashreplace", check=False)
    if done.returncode > 1:
        raise LiveBackupError(*advised(f"{one} and {other} cannot be compared: {_said(done.stderr)}", code="qemu_img_failed"))
    return done.returncode == 0
