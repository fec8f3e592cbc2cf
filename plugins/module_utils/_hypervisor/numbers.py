# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's numbers, by libvirt's names: the only place where one is written down.

Numbers, not texts: texts are translated. Numbers, not the binding's names: old bindings lack the newer names, and some values are
read where there is no binding. A contract test compares each with the real binding.
"""

from __future__ import annotations

# virErrorNumber
VIR_ERR_OK = 0
VIR_ERR_INTERNAL_ERROR = 1
VIR_ERR_NO_SUPPORT = 3
VIR_ERR_SYSTEM_ERROR = 38
VIR_ERR_NO_DOMAIN = 42
VIR_ERR_OPERATION_INVALID = 55
VIR_ERR_NO_SECRET = 66
VIR_ERR_OPERATION_TIMEOUT = 68
VIR_ERR_ARGUMENT_UNSUPPORTED = 74
VIR_ERR_BLOCK_COPY_ACTIVE = 83
VIR_ERR_AGENT_UNRESPONSIVE = 86
VIR_ERR_NO_DOMAIN_CHECKPOINT = 103
VIR_ERR_NO_DOMAIN_BACKUP = 104
VIR_ERR_CHECKPOINT_INCONSISTENT = 109
# Since libvirt 11.2; VIR_ERR_INTERNAL_ERROR before.
VIR_ERR_AGENT_COMMAND_FAILED = 113
# virDomainShutoffReason
VIR_DOMAIN_SHUTOFF_CRASHED = 3
VIR_DOMAIN_SHUTOFF_MIGRATED = 4
VIR_DOMAIN_SHUTOFF_SAVED = 5
# virDomainEventType, and virDomainEventStoppedDetailType
VIR_DOMAIN_EVENT_STOPPED = 5
VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN = 0
VIR_DOMAIN_EVENT_STOPPED_CRASHED = 2
# virDomainEventID
VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2 = 16
# virDomainBlockJobType
VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT = 4
# virDomainGetJobStatsFlags
VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED = 2
# virDomainCheckpointCreateFlags, virDomainCheckpointXMLFlags, virDomainCheckpointDeleteFlags
VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE = 1
VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE = 4
VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN = 2
VIR_DOMAIN_CHECKPOINT_XML_SIZE = 4
VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY = 2
# virDomainAgentResponseTimeoutValues: wait for the agent without a limit, which is the default.
VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK = -2
# The words of `virsh` for each number of an enumeration, from 0 on: virDomainState, virDomainJobType, virDomainJobOperation,
# virDomainBlockJobType.
STATES = ("nostate", "running", "blocked", "paused", "shutdown", "shutoff", "crashed", "pmsuspended")
JOB_TYPES = ("none", "bounded", "unbounded", "completed", "failed", "cancelled")
OPERATIONS = (
    "unknown",
    "start",
    "save",
    "restore",
    "incoming migration",
    "outgoing migration",
    "snapshot",
    "snapshot revert",
    "dump",
    "backup",
    "snapshot delete",
)
BLOCK_JOB_TYPES = ("unknown", "pull", "copy", "commit", "active-commit", "backup")
