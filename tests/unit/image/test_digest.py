# SPDX-License-Identifier: GPL-3.0-or-later
"""The digest of an image is that of all its bytes, wherever its holes are."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._image.digest import (
    BATCH,
    CHUNK,
    OpenImage,
    digest_while,
    file_digest,
    image_digest,
)

MIB = 1 << 20


def naive_digest(path: Path) -> str:
    data = path.read_bytes()
    chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    return "sha256-64k:" + hashlib.sha256(b"".join(hashlib.sha256(chunk).digest() for chunk in chunks)).hexdigest()


def sparse(path: Path, size: int, data: dict[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, content in data.items():
            file.seek(offset)
            file.write(content)
    assert path.stat().st_size == size
    return path


@pytest.mark.parametrize(
    ("size", "data"),
    [
        (0, {}),
        (1, {0: b"x"}),
        (1, {}),
        (CHUNK, {}),
        (CHUNK, {0: b"x" * CHUNK}),
        (CHUNK - 1, {}),
        (CHUNK + 1, {CHUNK: b"x"}),
        (CHUNK + 1, {}),
        (5 * CHUNK, {}),
        (5 * CHUNK, {0: b"first"}),
        (5 * CHUNK, {2 * CHUNK: b"begin of a middle chunk"}),
        (5 * CHUNK, {3 * CHUNK - 4096: b"end of a middle chunk"}),
        (5 * CHUNK, {3 * CHUNK - 3: b"across"}),
        (5 * CHUNK, {5 * CHUNK - 4: b"last"}),
        (5 * CHUNK + 12345, {5 * CHUNK + 12340: b"short"}),
        (5 * CHUNK + 12345, {0: b"x"}),
        (5 * BATCH, {BATCH + MIB: b"two", BATCH + 3 * MIB: b"extents of one batch", 4 * BATCH: b"x"}),
        (5 * CHUNK, {number * CHUNK: b"every chunk" for number in range(5)}),
        (3 * CHUNK, {0: bytes(3 * CHUNK)}),
        (3 * BATCH, {BATCH: b"a middle batch"}),
        (3 * BATCH + 5, {BATCH - 3: b"across batches", 3 * BATCH + 4: b"x"}),
        (2 * BATCH, {0: b"x", BATCH - CHUNK: bytes(CHUNK), BATCH + 3 * CHUNK: bytes(2 * CHUNK) + b"x"}),
    ],
)
def test_digest_of_sparse_files(tmp_path: Path, size: int, data: dict[int, bytes]) -> None:
    path = sparse(tmp_path / "image", size, data)
    assert image_digest(path) == naive_digest(path)


def test_an_image_of_more_chunks_than_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    path = sparse(tmp_path / "image", 140 * BATCH, {number * BATCH: b"x" for number in range(0, 140, 2)})
    assert image_digest(path) == naive_digest(path)


def test_a_known_digest() -> None:
    """By which another implementation can be judged: the empty image is the digest of nothing."""
    assert image_digest(Path(os.devnull)) == "sha256-64k:" + hashlib.sha256(b"").hexdigest()


def test_holes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sparse(tmp_path / "image", 50 * BATCH, {10 * BATCH: b"x"})
    if path.stat().st_blocks * 512 >= BATCH:
        pytest.fail(f"{tmp_path} is on a file system without holes")
    offsets: list[int] = []
    preadv = os.preadv

    def counting(descriptor: int, buffers: Any, offset: int) -> int:
        offsets.append(offset)
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", counting)
    image_digest(path)
    assert offsets == [10 * BATCH]


def test_equal_data_has_one_digest_whether_it_is_a_hole_or_zeroes(tmp_path: Path) -> None:
    hole = sparse(tmp_path / "hole", 2 * CHUNK, {0: b"x"})
    zeroes = sparse(tmp_path / "zeroes", 2 * CHUNK, {0: b"x" + bytes(2 * CHUNK - 1)})
    assert image_digest(hole) == image_digest(zeroes)


def test_small_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert file_digest(tmp_path / "f") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_after_an_error_little_more_is_read(tmp_path: Path) -> None:
    image = sparse(tmp_path / "image", 400 * BATCH, {number * BATCH: b"data" for number in range(400)})
    used: list[int] = []

    def fail(offset: int, _data: memoryview) -> None:
        used.append(offset)
        raise OSError("no room")

    with image.open("rb") as file, pytest.raises(OSError, match="no room"):
        digest_while(OpenImage(file.fileno()), fail)
    assert len(used) < 50
