# SPDX-License-Identifier: GPL-3.0-or-later
"""RESTORE.md: whatever the names in it, it is our Markdown and our commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from markdown_it import MarkdownIt

from ansible_collections.virtops.live_backup.plugins.module_utils._base.text import foreign
from ansible_collections.virtops.live_backup.plugins.module_utils._image.digest import CHUNK
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.guide import restore_guide

from ..support import sets
from ..support.backup import UUID, Backup

# Every command of the block but those of the shell itself, and `test`, is one of these; it notes its words, and nothing else is found.
STUBS = r"""
note() { printf '%s\0' "$@" END >&3; }
for one in cp mv sync chown qemu-img mountpoint; do eval "$one() { note $one \"\$@\"; }"; done
virsh() { note virsh "$@"; if [ "$1" = list ]; then printf '%s' "$RUNNING"; fi; }
python3() { note python3 "$@"; while read -r line; do :; done; }
readlink() { note readlink "$@"; printf '%s\n' "${LEADS_TO-${!#}}"; }
test() { note test "$@"; }
PATH=/nowhere
"""
HOSTILE = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40),
    st.text(st.sampled_from("`~#-*_=<>[]()!$'\"\\;&|\n\r\t \x1b\x85\u2028ab1"), min_size=1, max_size=30),
    st.sampled_from(
        ["-x", "--", "a`b", "a\n```\n# Restore\n```\nrm -rf /\n", "$(reboot)", "`reboot`", "' ; reboot ; '", "!reboot", "a\\", "é\u202e"]
    ),
)
PATHS = HOSTILE.map(lambda text: f"/{text}")


def block_of(guide: str) -> str:
    """The one block that is there to be pasted."""
    [block] = [token for token in MarkdownIt("gfm-like", {"linkify": False}).parse(guide) if token.type in ("fence", "code_block")]
    assert block.type == "fence" and block.content.startswith("(\nset -e\n") and block.content.endswith("\n)\n")
    return block.content


def pasted(block: str, tmp_path: Path, **answers: str) -> tuple[int, list[list[str]]]:
    """How the block ends, and each command that it calls with its words."""
    stubs, notes = tmp_path / "stubs", tmp_path / "notes"
    stubs.write_text(STUBS, encoding="utf-8")
    with notes.open("wb") as said:
        done = subprocess.run(
            ["bash", "-c", f". {stubs}; exec 3>&{said.fileno()}; {block}"],
            env={"RUNNING": "", "LC_ALL": "C.UTF-8", **answers},
            pass_fds=[said.fileno()],
            check=False,
            capture_output=True,
        )
    text = os.fsdecode(notes.read_bytes())
    return done.returncode, [call.split("\0")[:-1] for call in text.split("END\0")[:-1]]


def headings(guide: str) -> list[str]:
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(guide)
    return [after.content for token, after in zip(tokens, tokens[1:]) if token.type == "heading_open"]


@st.composite
def manifests(draw: st.DrawFn) -> dict[str, Any]:
    manifest = deepcopy(sets.manifest_of("night-1", name=draw(HOSTILE)))
    manifest["domain"]["hypervisor"] = draw(HOSTILE)
    manifest["consistency"]["why"] = draw(HOSTILE)
    manifest["not_captured"] = draw(st.lists(HOSTILE, max_size=3))
    manifest["skipped"] = [{"target": draw(HOSTILE), "reason": draw(HOSTILE)} for _number in range(draw(st.integers(0, 2)))]
    for disk in manifest["disks"]:
        disk["target"], disk["file"] = draw(HOSTILE), draw(st.sampled_from(["vda.qcow2", "-x.raw", "%2Ea.qcow2"]))
        # The shell takes the newlines off the end of where a link leads, and the block stops.
        path = draw(PATHS.filter(lambda path: not path.endswith("\n")))
        disk["source"] = {"path": path, "format": draw(st.sampled_from(["raw", "qcow2"])), "mount": draw(PATHS), "pool": draw(HOSTILE)}
    manifest["files"].append({"name": "nvram", "size": 1, "digest": f"sha256:{1:064}"})
    return manifest


@given(manifests(), PATHS)
@settings(deadline=None)
def test_nothing_foreign_is_structure_or_command(tmp_path_factory: pytest.TempPathFactory, manifest: dict[str, Any], nvram: str) -> None:
    guide = restore_guide(manifest, nvram)
    title, *others = headings(guide)
    assert title.startswith("Backup `night-1` of domain `") and others == ["Restore", "Digests"]
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(guide)
    inline = {child.type for token in tokens for child in token.children or []}
    assert inline <= {"text", "code_inline", "softbreak"}
    spans = [child.content for token in tokens for child in token.children or [] if child.type == "code_inline"]
    for said in [manifest["domain"]["name"], manifest["consistency"]["why"], *manifest["not_captured"]]:
        assert (foreign(said) or "?") in spans
    status, calls = pasted(block_of(guide), tmp_path_factory.mktemp("pasted"))
    one, two = manifest["disks"]
    places = [disk["source"]["path"] for disk in (one, two)]
    formats = [["-f", disk["format"], "-O", disk["source"]["format"], "--", disk["file"]] for disk in (one, two)]
    digests = [word for disk in (one, two) for word in (disk["file"], disk["digest"])]
    digests += [word for file in manifest["files"] for word in (file["name"], file["digest"])]
    assert calls == [
        ["virsh", "list", "--uuid"],
        *(
            call
            for disk in (one, two)
            for call in (["mountpoint", "-q", "--", disk["source"]["mount"]], ["readlink", "-f", "--", disk["source"]["path"]])
            if call[-1] != "/"
        ),
        ["python3", "-", *digests],
        *(
            call
            for path, words in zip(places, formats)
            for call in (["qemu-img", "convert", "-p", *words, f"{path}.restored"], ["sync", "--", f"{path}.restored"])
        ),
        ["cp", "-T", "--remove-destination", "--", "nvram", f"{nvram}.restored"],
        ["sync", "--", f"{nvram}.restored"],
        *(
            call
            for path in [*places, nvram]
            for call in (
                *([["chown", f"--reference={path}", "--", f"{path}.restored"]] if os.path.exists(path) else []),
                ["mv", "-fT", "--", f"{path}.restored", path],
            )
        ),
        *(["virsh", "pool-refresh", "--", pool] for pool in sorted({disk["source"]["pool"] for disk in (one, two)})),
        ["virsh", "define", "domain.xml"],
        ["virsh", "start", UUID],
    ]
    assert status == 0


@given(manifests(), PATHS)
@settings(deadline=None, max_examples=20)
def test_each_shell_can_read_the_block(manifest: dict[str, Any], nvram: str) -> None:
    for shell in ("bash", "dash"):
        done = subprocess.run([shell, "-n"], input=block_of(restore_guide(manifest, nvram)).encode(), capture_output=True, check=False)
        assert done.returncode == 0 and done.stderr == b""


def published(backup: Backup, tmp_path: Path) -> str:
    """The guide of a set that lacks a disk and a TPM."""
    nvram = tmp_path / "nvram.fd"
    nvram.write_bytes(b"variables")
    backup.domain.name, backup.domain.agent, backup.domain.nvram = "dö 'b", "answers", str(nvram)
    backup.domain.disks["vda"] = "/images/a b.qcow2"
    backup.domain.devices = "<tpm model='tpm-crb'><backend type='emulator'/></tpm>"
    backup.begin(exclude_disks=["vdb"])
    backup.domain.end_job()
    backup.wait()
    return Path(backup.publish()["path"], "RESTORE.md").read_text(encoding="utf-8")


def test_its_first_lines_say_what_the_set_lacks(backup: Backup, tmp_path: Path) -> None:
    assert published(backup, tmp_path).splitlines()[:6] == [
        "# Backup `night-1` of domain `dö 'b`",
        "",
        "This set does not contain:",
        "",
        "- `the state of its virtual TPM (/var/lib/libvirt/swtpm)`",
        "- `disk vdb: excluded`",
    ]


def test_it_names_the_true_places(backup: Backup, tmp_path: Path) -> None:
    block = block_of(published(backup, tmp_path))
    assert "new_1='/images/a b.qcow2'\n" in block
    assert f"new_nvram={tmp_path}/nvram.fd\n" in block and "/path/to" not in block


def test_a_set_that_lacks_nothing(backup: Backup) -> None:
    backup.finished()
    backup.publish()
    guide = (backup.final / "RESTORE.md").read_text(encoding="utf-8")
    assert "does not contain" not in guide and "nvram" not in guide


def test_a_running_domain_is_not_touched(tmp_path: Path) -> None:
    block = block_of(restore_guide(sets.manifest_of(), ""))
    assert pasted(block, tmp_path, RUNNING=f"11111111-2222\n{UUID}\n") == (1, [["virsh", "list", "--uuid"]])


@pytest.mark.parametrize("path", ["", "pool/image", "/images/a\n"])
def test_a_disk_without_a_place_stops_the_block(path: str, tmp_path: Path) -> None:
    manifest = sets.manifest_of()
    manifest["disks"][1]["source"] = {"path": path, "format": "raw"}
    status, calls = pasted(block_of(restore_guide(manifest, "")), tmp_path)
    assert status == 1 and {call[0] for call in calls} <= {"virsh", "readlink"}


def test_a_part_of_a_file_stops_the_block(tmp_path: Path) -> None:
    manifest = sets.manifest_of()
    manifest["disks"][0]["source"].update(elsewhere="its <source> has slices")
    assert pasted(block_of(restore_guide(manifest, "")), tmp_path) == (1, [["virsh", "list", "--uuid"]])


@pytest.mark.parametrize(("leads_to", "status"), [("/data/real", 0), ("/data/other", 1), ("", 1), ("/images/link", 1)])
def test_a_link_must_lead_where_it_led(leads_to: str, status: int, tmp_path: Path) -> None:
    manifest = sets.manifest_of()
    manifest["disks"][1:] = []
    manifest["disks"][0]["source"] = {"path": "/images/link", "format": "raw", "type": "file", "real_path": "/data/real"}
    ended, calls = pasted(block_of(restore_guide(manifest, "")), tmp_path, LEADS_TO=leads_to)
    assert ended == status and [call[-1] for call in calls if call[0] == "mv"] == ["/data/real"] * (not status)


def test_a_file_system_that_is_not_mounted_stops_the_block(tmp_path: Path) -> None:
    manifest = sets.manifest_of()
    manifest["disks"][0]["source"].update(path="/images/a", mount="/images", type="file")
    block = block_of(restore_guide(manifest, ""))
    assert ["mountpoint", "-q", "--", "/images"] in pasted(block, tmp_path)[1]
    assert pasted(block.replace("mountpoint ", "false "), tmp_path) == (1, [["virsh", "list", "--uuid"]])


def test_a_pool_learns_of_its_new_volume_before_the_domain_starts(tmp_path: Path) -> None:
    manifest = sets.manifest_of()
    for disk in manifest["disks"]:
        disk["source"].update(path=f"/pool/{disk['target']}", pool="a pool", volume=disk["target"], type="file")
    calls = pasted(block_of(restore_guide(manifest, "")), tmp_path)[1]
    assert [call[1:] for call in calls if call[0] == "virsh"][1:] == [
        ["pool-refresh", "--", "a pool"],
        ["define", "domain.xml"],
        ["start", UUID],
    ]


def test_a_device_must_be_one_and_is_written_last(tmp_path: Path) -> None:
    manifest = sets.manifest_of()
    manifest["disks"][0]["source"] = {"path": "/dev/vg/a b", "real_path": "/dev/dm-3", "format": "raw", "type": "block"}
    manifest["disks"][1]["source"] = {"path": "/images/b", "format": "raw"}
    block = block_of(restore_guide(manifest, ""))
    calls = pasted(block, tmp_path)[1]
    assert [call for call in calls if call[0] in ("test", "qemu-img", "mv")] == [
        ["test", "-b", "/dev/vg/a b"],
        ["qemu-img", "convert", "-p", "-f", "qcow2", "-O", "raw", "--", "vdb.qcow2", "/images/b.restored"],
        ["qemu-img", "convert", "-p", "-n", "-f", "qcow2", "-O", "raw", "--", "vda.qcow2", "/dev/vg/a b"],
        ["mv", "-fT", "--", "/images/b.restored", "/images/b"],
    ]
    manifest["disks"][0]["source"]["format"] = "qcow2"
    assert 'convert -p -f qcow2 -O qcow2 -- vda.qcow2 "$new_1"\n' in restore_guide(manifest, "")


@pytest.mark.parametrize("command", ["virsh", "readlink", "python3", "qemu-img", "sync", "mv"])
def test_the_first_line_that_fails_stops_it(command: str, tmp_path: Path) -> None:
    manifest = sets.manifest_of()
    for number, disk in enumerate(manifest["disks"]):
        disk["source"] = {"path": f"/images/{number}", "format": "raw"}
    block = block_of(restore_guide(manifest, "")).replace(f"{command} ", "false ")
    status, calls = pasted(block, tmp_path)
    assert status == 1 and ["virsh", "start", UUID] not in calls
    assert command == "mv" or "mv" not in [call[0] for call in calls]


def test_it_compares_each_file_with_its_digest(tmp_path: Path) -> None:
    path = sets.make_set(tmp_path)
    sets.replace_images(path, lambda image: image.write_bytes(bytes(2 * CHUNK + 1234)))
    guide = restore_guide(json.loads((path / "manifest.json").read_bytes()), "")
    check = re.search(r"^python3 - .*?^END$", guide, re.MULTILINE | re.DOTALL)
    assert check is not None

    def checked() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", "-ec", check[0]], cwd=path, capture_output=True, text=True, check=False)

    assert checked().stdout.splitlines() == ["vda.qcow2: OK", "vdb.qcow2: OK", "domain.xml: OK"]
    for name in ("vda.qcow2", "vdb.qcow2", "domain.xml"):
        whole = (path / name).read_bytes()
        (path / name).write_bytes(b"x" + whole[1:])
        failed = checked()
        assert failed.returncode == 1 and failed.stderr == f"{name} is not what was backed up. Nothing was written.\n"
        (path / name).write_bytes(whole)
