# SPDX-License-Identifier: GPL-3.0-or-later
"""Let the tests import the rig by its name, wherever pytest was started."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
