# SPDX-License-Identifier: GPL-3.0-or-later
"""Which error it is: its code stays when its words are made better."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError


@contextmanager
def raises_code(code: str) -> Iterator[pytest.ExceptionInfo[LiveBackupError]]:
    """The block fails with this error."""
    with pytest.raises(LiveBackupError) as caught:
        yield caught
    assert caught.value.code == code, caught.value.msg
