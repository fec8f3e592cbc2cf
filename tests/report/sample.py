# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet on the morning after a bad night, as the modules tell it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import NAMESPACE_DNS, uuid5

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import rfc3339
from ansible_collections.virtops.live_backup.plugins.plugin_utils._objectives import objectives
from ansible_collections.virtops.live_backup.plugins.plugin_utils._status import brief, status

# The role tells the time itself.
MORNING = datetime.now(timezone.utc).replace(second=0, microsecond=0)
NOW = MORNING.timestamp()
NIGHT = MORNING - timedelta(hours=5, minutes=30)
HOSTILE = "<script>alert(1)</script>\"'&{{ 1 + 1 }}"
GIB = 2**30
# What libvirt_domain_info says of a domain whose metadata has no policy.
POLICY: dict[str, Any] = {
    "wanted": True,
    "policy": {"backup": True, "every": "", "exclude_disks": [], "keep": {}, "objectives": {}},
    "policy_problem": "",
}


def backup_id(began: datetime) -> str:
    return began.strftime("%Y%m%dT%H%M%SZ")


def uuid(name: str) -> str:
    return str(uuid5(NAMESPACE_DNS, name))


def domain(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "uuid": uuid(name), "claim": None, "restore": None, "error": "", **POLICY, **more}


def backup_set(name: str, began: datetime, seconds: float = 95.5, gib: float = 3, **more: Any) -> dict[str, Any]:
    """As backup_set_info lists one."""
    began_at = began.timestamp()
    started, instant, finished = (rfc3339(began_at + offset) for offset in (0, 0.8, seconds))
    return {
        "domain": name,
        "uuid": uuid(name),
        "backup_id": backup_id(began),
        "status": "good",
        "good": True,
        "findings": [],
        "method": "push",
        "level": "full",
        "consistency": "filesystem",
        "instant": instant,
        "ahead": False,
        "finished": finished,
        "bytes": int(gib * GIB),
        "proof": None,
        "manifest": {"started": started, "consistency": {"frozen_ms": 163}},
        **more,
    }


def proof(level: str, at: datetime, *, verified: bool = True, rto_ms: int | None = None, findings: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "level": level,
        "verified": verified,
        "outcome": "verified" if verified else "timed out",
        "at": rfc3339(at.timestamp()),
        "rto_ms": rto_ms,
        "findings": list(findings),
    }


def partial(name: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("method", "level", "consistency", "instant", "finished", "proof", "manifest"))
    return {**backup_set(name, NIGHT), **nothing, "status": "partial", "good": False, "bytes": 0}


def nights(name: str, count: int, *, until: int = 0, minute: int = 0, **more: Any) -> list[dict[str, Any]]:
    """One set a night, up to `until` nights ago."""
    begins = [NIGHT - timedelta(days=ago, minutes=-minute) for ago in reversed(range(until, until + count))]
    return [backup_set(name, began, **more) for began in begins]


def look(
    hypervisor: str,
    domains: list[dict[str, Any]],
    sets: list[dict[str, Any]],
    given: dict[str, dict[str, str]] | None = None,
    copied: list[dict[str, Any]] | None = None,
    **more: Any,
) -> dict[str, Any]:
    there = None if copied is None else {"target": "ssh://vault/copies", "sets": copied, "error": ""}
    rows = status(domains, sets, hypervisor, NOW, lambda one: objectives(one, given or {}, "26h"), there)
    return {
        "hypervisor": hypervisor,
        "status": rows,
        "sets": brief(sets),
        "claims": [],
        "restores": [],
        "matched": ["*"],
        "unmatched": [],
        "targets": [{"target": "/srv/backup", "free": 700 * GIB, "size": 1000 * GIB}],
        "msg": "",
        **more,
    }


def result(hypervisor: str, name: str, *, minute: float = 0, seconds: float = 95.5, gib: float = 3, **more: Any) -> dict[str, Any]:
    """As the role backup tells one."""
    began = NIGHT.timestamp() + minute * 60
    done = {
        "status": "published", "bytes": int(gib * GIB), "seconds": seconds, "consistency": "filesystem", "frozen_ms": 163, "method": "push",
        "level": "full", "level_reason": "it was asked for",
        "started": rfc3339(began), "instant": rfc3339(began + 0.8), "finished": rfc3339(began + seconds), "proof": "check",
        "rto_seconds": None, "group": "", "group_problem": "", "group_spread_ms": None, "msg": f"{name}: done",
    }  # fmt: skip
    return {"domain": name, "uuid": uuid(name), "hypervisor": hypervisor, "backup_id": backup_id(NIGHT), **done, **more}


def failed(hypervisor: str, name: str, msg: str) -> dict[str, Any]:
    nothing = {"bytes": 0, "seconds": 0, "consistency": "", "frozen_ms": None, "started": "", "instant": "", "finished": "", "proof": ""}
    return result(hypervisor, name, **nothing, status="failed", msg=f"{name}: {msg}" if name else msg)


def bad_night() -> dict[str, Any]:
    """The looks, the results and the hosts of four hypervisors."""
    dead = {"alive": False, "backup_id": backup_id(NIGHT), "msg": "A run that is gone has left its overlays."}
    proven = proof("boot", NIGHT + timedelta(hours=1), rto_ms=8123)
    web = nights("web1", 9, minute=2, seconds=240, gib=11.5)
    web[3] |= {"status": "damaged", "good": False, "findings": ["vda.qcow2: it has 512 bytes, not 12348030976"]}
    db = [*nights("db1", 3, until=40, gib=2), *nights("db1", 14, proof=proven)]
    app = nights("app1", 5, minute=1)
    app[1] |= {"good": False, "proof": proof("boot", NIGHT, verified=False, findings=("The guest was not up within 300 s.",))}
    hostile = nights(HOSTILE, 1)
    full = "No space left on device. 1.2 GiB are free at /srv/backup, and up to 3.4 GiB are needed. Make room and run again."
    return {
        "looks": [
            look("kvm1.example.org", [domain("db1"), domain("web1")], db + web),
            look("kvm2.example.org", [domain("app1"), domain("mail", claim=dead), domain(HOSTILE)],
                 app + nights("mail", 4, until=3) + [partial("mail")] + hostile),
            look("kvm3.example.org", [domain("new1")], []),
        ],
        "results": [
            result("kvm1.example.org", "db1", group="shop", group_spread_ms=78, rto_seconds=8.123, proof="boot"),
            result("kvm1.example.org", "web1", minute=2, seconds=240, gib=11.5),
            result("kvm2.example.org", "app1", minute=1, group_problem="its domains were captured within 1674 ms, and it may be 250."),
            result("kvm2.example.org", HOSTILE),
            failed("kvm2.example.org", "mail", full),
            failed("kvm3.example.org", "", "kvm3.example.org: There is no domain that matches."),
        ],
        "hosts": ["kvm1.example.org", "kvm2.example.org", "kvm3.example.org", "kvm4.example.org"],
    }  # fmt: skip


def good_night() -> dict[str, Any]:
    proven = proof("check", NIGHT + timedelta(hours=1))
    sets = [*nights("db1", 7, proof=proven), *nights("web1", 7, minute=2, proof=proven)]
    here = look("kvm1.example.org", [domain("db1"), domain("web1")], sets, copied=sets[:6])
    return {"looks": [here], "results": [], "hosts": ["kvm1.example.org"]}


def large_night() -> dict[str, Any]:
    """60 hypervisors of 10 domains. On every third one, a domain fails for the same reason."""
    looks, results = [], []
    proven = proof("check", NIGHT + timedelta(hours=1))
    for host in (f"kvm{number:02}.example.org" for number in range(60)):
        names = [f"{host.partition('.')[0]}-vm{number}" for number in range(10)]
        ill = names[3] if int(host[3:5]) % 3 == 0 else ""
        sets = [one for name in names for one in nights(name, 12, until=3 if name == ill else 0, proof=proven)]
        looks.append(look(host, [domain(name) for name in names], sets))
        results += [failed(host, name, "It is full.") | {"code": "no_free_space"} if name == ill else result(host, name) for name in names]
    return {"looks": looks, "results": results, "hosts": [one["hypervisor"] for one in looks]}
