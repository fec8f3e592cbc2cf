# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for AWX: it keeps what the modules of awx.awx create, finds it by its fields, and refuses what AWX's own rules refuse."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import jinja2
import jinja2.sandbox

from .surveys import spec_problems

_ROOT = "/api/v2/"
# The kinds that a workflow or schedule can run, which AWX also lists together.
_RUNNABLE = {"job_templates": "job_template", "workflow_job_templates": "workflow_job_template", "projects": "project"}
_ASSOCIATED = {"success_nodes", "failure_nodes", "always_nodes", "credentials", "notification_templates_error"}


class Controller:
    """While it is entered, `url` answers; `things` is what there is, by kind."""

    def __init__(self, **there: list[str]) -> None:
        self._ids = count(1)
        self.things: dict[str, list[dict[str, Any]]] = {}
        self.surveys: dict[str, Any] = {}
        self.changes: list[str] = []
        for kind, names in there.items():
            for name in names:
                self._create(kind, {"name": name})

    def __enter__(self) -> Controller:
        controller = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # An answer is two small packets.
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            do_PATCH = do_POST

            def _answer(self, data: Any) -> None:
                status, body = controller.handle(self.command, urlsplit(self.path), data)
                encoded = b"" if status == 204 else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(encoded)))
                self.end_headers()
                self.wfile.write(encoded)

            def log_message(self, *_arguments: Any) -> None:
                """What is asked is no news."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def named(self, kind: str, name: str) -> dict[str, Any]:
        [found] = [thing for thing in self.things[kind] if thing.get("name", thing.get("identifier")) == name]
        return found

    def handle(self, method: str, address: Any, data: Any) -> tuple[int, Any]:
        """The status and body for a request: about a kind, a thing, its survey, or what it is associated with."""
        kind, *rest = address.path.removeprefix(_ROOT).strip("/").split("/")
        if method != "GET":
            self.changes.append(f"{method} {address.path}")
        if not rest:
            return self._list(kind, dict(parse_qsl(address.query))) if method == "GET" else self._change(kind, None, data)
        [thing] = [one for one in self.things[kind] if one["id"] == int(rest[0])]
        if len(rest) == 1:
            return (200, thing) if method == "GET" else self._change(kind, thing, data)
        if rest[1] == "survey_spec":
            if method == "GET":
                return 200, self.surveys.get(thing["name"], {})
            found = list(spec_problems(data))
            self.surveys[thing["name"]] = data
            return (400, {"error": "; ".join(found)}) if found else (200, {})
        assert rest[1] in _ASSOCIATED, rest
        listed = thing.setdefault(f"_{rest[1]}", [])
        if method == "GET":
            return 200, {"count": len(listed), "next": None, "results": [{"id": one} for one in listed]}
        listed.append(data["id"])
        return 204, None

    def _list(self, kind: str, fields: dict[str, str]) -> tuple[int, Any]:
        kinds = _RUNNABLE if kind == "unified_job_templates" else [kind]
        found = [
            thing
            for one in kinds
            for thing in self.things.get(one, [])
            if all(str(thing.get(field)) == value for field, value in fields.items())
        ]
        return 200, {"count": len(found), "next": None, "results": found}

    def _change(self, kind: str, thing: dict[str, Any] | None, data: dict[str, Any]) -> tuple[int, Any]:
        found = list(problems(kind, data))
        if found:
            return 400, {"__all__": found}
        if thing is None:
            return 201, self._create(kind, data)
        thing.update(data)
        return 200, thing

    def _create(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        number = next(self._ids)
        url = f"{_ROOT}{kind}/{number}/"
        thing = {"id": number, "url": url, "type": _RUNNABLE.get(kind, kind), "related": {"survey_spec": f"{url}survey_spec/"}, **data}
        if kind == "projects":
            thing |= {"scm_revision": "", "summary_fields": {}}
        self.things.setdefault(kind, []).append(thing)
        return thing


def problems(kind: str, data: dict[str, Any]) -> Iterator[str]:
    """What AWX would refuse a thing for."""
    if kind == "schedules":
        yield from rule_problems(data["rrule"])
    if kind == "credential_types":
        yield from credential_type_problems(data["inputs"], data["injectors"])


def rule_problems(rule: str) -> Iterator[str]:
    """What AWX would refuse a schedule's rule for."""
    starts = re.findall(r"DTSTART(;TZID=[^:\s]+)?:\d{8}T\d{6}(Z?)(?=\s)", rule)
    if len(starts) != 1 or len(re.findall("DTSTART", rule)) != 1:
        yield "a rule has one start, before it"
    elif starts[0] == ("", ""):
        yield "a start has a time zone, or Z"
    repeated = re.findall(r"RRULE:(\S+)", rule)
    if not repeated:
        yield "there is no RRULE"
    for one in repeated:
        parts = dict(part.partition("=")[::2] for part in one.split(";"))
        if parts.get("FREQ") not in ("MINUTELY", "HOURLY", "DAILY", "WEEKLY", "MONTHLY", "YEARLY"):
            yield f"{one}: there is no such frequency"
        if not parts.get("INTERVAL", "").isdigit():
            yield f"{one}: it needs an interval"
    if re.search("EXDATE|RDATE", rule):
        yield "single dates are not supported"


def credential_type_problems(inputs: dict[str, Any], injectors: dict[str, Any]) -> Iterator[str]:
    """What AWX would refuse a credential type for."""
    fields = inputs["fields"]
    ids = [field["id"] for field in fields]
    if len(set(ids)) < len(ids) or "tower" in ids or not all(one.isidentifier() for one in ids):
        yield "the fields' ids are to be different identifiers, and none is tower"
    known = {"id", "label", "help_text", "type", "format", "secret", "multiline", "choices", "default", "ask_at_runtime"}
    for field in fields:
        if not {"id", "label"} <= set(field) <= known:
            yield f"field {field['id']}: {', '.join(sorted(set(field) - known)) or 'no label'}"
        if field.get("format", "url") not in ("ssh_private_key", "url") or field.get("type", "string") not in ("string", "boolean"):
            yield f"field {field['id']}: unknown format or type"
    if not set(inputs.get("required", [])) <= set(ids):
        yield "what is required is no field"
    if not set(injectors) <= {"file", "env", "extra_vars"}:
        yield "it injects neither file nor env nor extra_vars"
    files = injectors.get("file", {})
    if not all(re.fullmatch(r"template(\.[A-Za-z_]\w*)?", name) for name in files) or "template" in files and len(files) > 1:
        yield "files are one template, or templates with names"
    if any(name.startswith("ANSIBLE_") or not name.isidentifier() for name in injectors.get("env", {})):
        yield "a name of the environment that AWX keeps for itself"
    names = {name.partition(".")[2]: "/a/file" for name in files}
    values = {**dict.fromkeys(ids, "a value"), "tower": {"filename": names.get("", names)}}
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    for group in injectors.values():
        for name, template in group.items():
            try:
                environment.from_string(template).render(values)
            except jinja2.TemplateError as error:
                yield f"{name}: {error}"
