# SPDX-License-Identifier: GPL-3.0-or-later
"""Names and paths of backup sets: nothing leaves its directory, and nothing of two domains mixes."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given, strategies as st

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._base.filesystem import require_safe
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.layout import (
    MANIFEST,
    OWNER,
    SetPaths,
    check_backup_id,
    check_target,
    claim_domain_directory,
    domain_directory,
    file_name,
    is_partial_of,
    make_partial,
    owned_by,
    published_manifest,
)

from ..support.raising import raises_code

UUID = "8e6d5a2e-6c44-4c8d-9d3c-0e1f8a6f7b11"
OTHER = "11111111-6c44-4c8d-9d3c-0e1f8a6f7b11"


@pytest.mark.parametrize("backup_id", ["0", "20261122T184512Z", "a.b_c-d", "A" * 64])
def test_good_backup_ids(backup_id: str) -> None:
    check_backup_id(backup_id)


@pytest.mark.parametrize("backup_id", ["", ".", "..", ".a", "-a", "_a", "a/b", "a b", "a\n", "ä", "A" * 65, "a%"])
def test_bad_backup_ids(backup_id: str) -> None:
    with pytest.raises(LiveBackupError, match="is not allowed"):
        check_backup_id(backup_id)


@pytest.mark.parametrize(("target", "path"), [("/srv/backup", "/srv/backup"), ("/srv//a/../b/", "/srv/b"), ("/", "/")])
def test_target(target: str, path: str) -> None:
    assert check_target(target) == Path(path)


@pytest.mark.parametrize("target", ["", "backup", "./backup", "~/backup"])
def test_target_that_is_not_absolute(target: str) -> None:
    with pytest.raises(LiveBackupError, match="must be an absolute path"):
        check_target(target)


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("db1", "db1"),
        ("a.b_c-d", "a.b_c-d"),
        ("a b", "a%20b"),
        ("a/b", "a%2Fb"),
        ("..", "%2E."),
        (".partial", "%2Epartial"),
        ("%2E", "%252E"),
        ("ö", "%C3%B6"),
        ("-x", "-x"),
    ],
)
def test_file_name(name: str, encoded: str) -> None:
    assert file_name(name) == encoded


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1) | st.text("./%2EAa", min_size=1)


@given(NAMES)
def test_file_name_is_one_plain_component(name: str) -> None:
    encoded = file_name(name)
    assert encoded.isascii() and not encoded.startswith(".") and not set(encoded) & set("/\0\n ")
    assert Path("/t", encoded).parent == Path("/t")


@given(NAMES, NAMES)
def test_two_names_never_meet(one: str, other: str) -> None:
    assert (file_name(one) == file_name(other)) == (one == other)


def test_paths_of_a_set() -> None:
    paths = SetPaths(Path("/t/db1"), "night-1")
    assert paths.final == Path("/t/db1/night-1")
    assert paths.partial == Path("/t/db1/.night-1.partial")
    assert paths.image("vda", "qcow2") == Path("/t/db1/.night-1.partial/vda.qcow2")
    assert paths.image("../x", "raw").parent == paths.partial


# The directory of a domain


def test_directory_is_made_once_and_found_again(tmp_path: Path) -> None:
    assert domain_directory(tmp_path, "db 1", UUID) == tmp_path / "db%201"
    assert list(tmp_path.iterdir()) == []
    made = claim_domain_directory(tmp_path, "db 1", UUID)
    assert made == claim_domain_directory(tmp_path, "db 1", UUID) == domain_directory(tmp_path, "db 1", UUID)
    assert json.loads((made / OWNER).read_text(encoding="utf-8")) == {"name": "db 1", "uuid": UUID}
    assert stat.S_IMODE(made.stat().st_mode) == 0o711
    assert [path.name for path in made.iterdir()] == [OWNER]


def test_two_domains_of_one_name_do_not_mix(tmp_path: Path) -> None:
    first = claim_domain_directory(tmp_path, "db1", UUID)
    second = claim_domain_directory(tmp_path, "db1", OTHER)
    assert (first.name, second.name) == ("db1", "db1.11111111")
    assert domain_directory(tmp_path, "db1", UUID) == first and domain_directory(tmp_path, "db1", OTHER) == second
    assert (owned_by(first), owned_by(second)) == (UUID, OTHER)


def test_a_third_domain_whose_uuid_begins_alike_is_refused(tmp_path: Path) -> None:
    claim_domain_directory(tmp_path, "db1", UUID)
    claim_domain_directory(tmp_path, "db1", OTHER)
    with raises_code("domain_directories_taken"):
        claim_domain_directory(tmp_path, "db1", f"{OTHER[:8]}{uuid4()}"[:36])


def test_the_directory_of_another_domain_is_never_taken_for_ones_own(tmp_path: Path) -> None:
    """A domain may be called as the directory of another one is."""
    claim_domain_directory(tmp_path, "db1", UUID)
    claim_domain_directory(tmp_path, "db1.11111111", str(uuid4()))
    try:
        found = domain_directory(tmp_path, "db1", OTHER)
    except LiveBackupError:
        return
    assert owned_by(found) in ("", OTHER)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b"\xff", b'"text"'])
def test_a_damaged_owner_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "db1").mkdir()
    (tmp_path / "db1" / OWNER).write_bytes(content)
    for look in (domain_directory, claim_domain_directory):
        with raises_code("owner_file_damaged"):
            look(tmp_path, "db1", UUID)
    assert (tmp_path / "db1" / OWNER).read_bytes() == content


# The partial set


@pytest.fixture
def paths(tmp_path: Path) -> SetPaths:
    return SetPaths(tmp_path, "night-1")


def test_a_partial_set_is_of_its_claim_only(paths: SetPaths) -> None:
    assert not is_partial_of(paths, "token")
    make_partial(paths, "token")
    assert stat.S_IMODE(paths.partial.stat().st_mode) == 0o711
    assert is_partial_of(paths, "token") and not is_partial_of(paths, "other")


def test_a_partial_set_that_is_there_is_refused_and_left_alone(paths: SetPaths) -> None:
    make_partial(paths, "theirs")
    with raises_code("backup_id_taken"):
        make_partial(paths, "mine")
    assert is_partial_of(paths, "theirs")


def test_a_partial_set_without_mark_is_of_nobody(paths: SetPaths) -> None:
    paths.partial.mkdir()
    assert not is_partial_of(paths, "token")
    with raises_code("backup_id_taken"):
        make_partial(paths, "token")


def test_a_directory_with_files_of_a_user_is_left_to_him(tmp_path: Path) -> None:
    """Not even its mode is changed."""
    (tmp_path / "db1").mkdir(mode=0o750)
    (tmp_path / "db1" / "notes").touch()
    for find in (domain_directory, claim_domain_directory):
        assert find(tmp_path, "db1", UUID) == tmp_path / f"db1.{UUID[:8]}"
    assert (tmp_path / "db1").stat().st_mode & 0o777 == 0o750


def test_a_mount_point_made_for_the_domain_is_taken(tmp_path: Path) -> None:
    (tmp_path / "db1" / "lost+found").mkdir(parents=True)
    assert claim_domain_directory(tmp_path, "db1", UUID) == tmp_path / "db1"


# The published set


def test_manifest_of_a_published_set(paths: SetPaths) -> None:
    assert published_manifest(paths) is None
    paths.final.mkdir()
    manifest = dict.fromkeys(("backup_id", "consistency", "disks", "job", "skipped", "started", "finished"))
    (paths.final / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    assert published_manifest(paths) == manifest


def test_a_directory_that_is_no_set_is_an_error(paths: SetPaths) -> None:
    paths.final.mkdir()
    with raises_code("backup_id_taken"):
        published_manifest(paths)


def test_a_file_in_the_place_of_a_set_is_an_error(paths: SetPaths) -> None:
    paths.final.touch()
    with raises_code("backup_id_taken"):
        published_manifest(paths)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"null", b"{}"])
def test_a_damaged_manifest_is_an_error(paths: SetPaths, content: bytes) -> None:
    paths.final.mkdir()
    (paths.final / MANIFEST).write_bytes(content)
    with raises_code("backup_id_taken"):
        published_manifest(paths)


# A target that others could exchange


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "parent/target").mkdir(parents=True)
    return tmp_path / "parent/target"


@pytest.mark.parametrize("mode", [0o700, 0o711, 0o755, 0o1777])
def test_a_target_that_is_ours_is_safe(target: Path, mode: int) -> None:
    target.parent.chmod(mode)
    target.chmod(mode)
    require_safe(target)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o2770])
@pytest.mark.parametrize("parents", [0, 1])
def test_a_target_that_others_can_write_to_is_refused(target: Path, parents: int, mode: int) -> None:
    unsafe = [target, target.parent][parents]
    unsafe.chmod(mode)
    with pytest.raises(LiveBackupError, match=rf"others can write to \(mode {mode:04o}\) {unsafe}, .* `chmod go-w {unsafe}`"):
        require_safe(target)
    with pytest.raises(LiveBackupError, match="is not safe"):
        claim_domain_directory(target, "db1", UUID)
    assert list(target.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
def test_a_target_below_a_directory_of_another_user_is_refused(target: Path) -> None:
    os.chown(target.parent, 12345, -1)
    with pytest.raises(LiveBackupError, match=f"user 12345 owns {target.parent}, .* `chown root {target.parent}`"):
        require_safe(target)


def test_a_link_is_as_safe_as_where_it_leads_and_where_it_lies(target: Path, tmp_path: Path) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
    (tmp_path / "one/link").symlink_to(target)
    require_safe(tmp_path / "one/link")
    for unsafe in (tmp_path / "one", target.parent):
        unsafe.chmod(0o777)
        with pytest.raises(LiveBackupError, match=f"{unsafe}, and could"):
            require_safe(tmp_path / "one/link")
        unsafe.chmod(0o755)


@pytest.mark.parametrize("make", [lambda path, other: path.symlink_to(other), lambda path, other: path.touch()], ids=["link", "file"])
def test_what_is_no_directory_of_ours_is_not_taken(target: Path, tmp_path: Path, make: Callable[[Path, Path], object]) -> None:
    """In a sticky directory another user may have put it there."""
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    make(target / "db1", other)
    # A file is a stranger's, and the next name is taken.
    if (target / "db1").is_symlink():
        with pytest.raises(LiveBackupError, match="is a link or belongs to another user"):
            claim_domain_directory(target, "db1", UUID)
    else:
        assert claim_domain_directory(target, "db1", UUID).name == f"db1.{UUID[:8]}"
    assert stat.S_IMODE(other.stat().st_mode) == 0o700 and list(other.iterdir()) == []
