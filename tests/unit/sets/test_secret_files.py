# SPDX-License-Identifier: GPL-3.0-or-later
"""The small files of an encrypted set, and which key opens a set."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings, strategies as st

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._image.key import Key
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.key import encryption_of, key_of
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.schema import Manifest
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.secret_files import key_for, read_secret, write_secret

from ..support.raising import raises_code

KEY = Key(b"a key that is long enough to be one")
OTHER = Key(b"another key that is long enough, too")


@settings(max_examples=8)
@given(st.binary(max_size=5000))
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    directory = tmp_path_factory.mktemp("set")
    for key, name in ((None, "nvram"), (KEY, "nvram.enc")):
        write_secret(directory / "nvram", data, key)
        assert read_secret(directory / "nvram", key) == data
        assert (directory / name).stat().st_mode & 0o777 == 0o600
    assert len(data) < 16 or data not in (directory / "nvram.enc").read_bytes()


def test_openssl_opens_it_as_the_documentation_says(tmp_path: Path) -> None:
    write_secret(tmp_path / "domain.xml", b"<domain/>", KEY)
    (tmp_path / "2026.key").write_bytes(KEY.secret)
    guide = Path(__file__).parents[3] / "docs/internals/encryption.md"
    [command] = [line for line in guide.read_text().splitlines() if line.startswith("openssl enc")]
    done = subprocess.run(command.replace("/root/", f"{tmp_path}/").split(), cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout == b"<domain/>"


def test_a_wrong_key(tmp_path: Path) -> None:
    write_secret(tmp_path / "domain.xml", b"<domain/>", KEY)
    # By chance the padding of one in 256 is right, and then what is read is not XML.
    try:
        assert read_secret(tmp_path / "domain.xml", OTHER) != b"<domain/>"
    except LiveBackupError as error:
        assert error.code == "key_wrong" and OTHER.secret.decode() not in error.msg


def manifest(key: Key | None) -> Manifest:
    encryption = {"encryption": {"format": "luks", "key_id": "2026", "key_check": key.check}} if key else {}
    found: dict[str, Any] = {"backup_id": "night-1", **encryption}
    return cast(Manifest, found)


def test_which_key_opens_a_set() -> None:
    assert key_for(manifest(None), None) is None and key_for(manifest(None), KEY) is None
    assert key_for(manifest(KEY), KEY) == KEY
    for other in (None, OTHER):
        with raises_code("key_needed"):
            key_for(manifest(KEY), other)


def test_the_key_is_in_no_text_of_it(tmp_path: Path) -> None:
    assert KEY.secret.decode() not in repr(KEY)
    (tmp_path / "key").write_bytes(KEY.secret)
    secret = KEY.secret.decode()
    assert key_of({}) is None
    assert key_of({"encryption_key": secret}) == key_of({"encryption_key_file": str(tmp_path / "key")}) == KEY
    assert key_of({"encryption_key": secret + "\n"}) == KEY
    assert encryption_of({}) == ("", None) and encryption_of({"encrypt": "2026", "encryption_key": secret}) == ("2026", KEY)
    for wrong in ({"encrypt": "2026"}, {"encryption_key": secret}):
        with raises_code("option_needed"):
            encryption_of(wrong)
    with raises_code("option_invalid"):
        encryption_of({"encrypt": "../2026", "encryption_key": secret})
