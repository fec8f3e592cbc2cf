# SPDX-License-Identifier: GPL-3.0-or-later
"""Throw-away real hypervisors with real guests on one machine."""
