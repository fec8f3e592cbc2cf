# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules that AWX has for surveys and for their answers, and the answers that it passes to a playbook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Question = Mapping[str, Any]

# The types of questions, and what their answers and defaults are.
_TEXTS = ("text", "textarea", "password")
_NUMBERS: dict[str, tuple[type, ...]] = {"integer": (int,), "float": (int, float)}
_CHOICES = ("multiplechoice", "multiselect")
_NEEDED: dict[str, type] = {"question_name": str, "variable": str, "type": str, "required": bool}


def spec_problems(survey: Any) -> Iterator[str]:
    """What AWX would refuse a survey for; and what it takes, but no launch could pass."""
    if not isinstance(survey, dict) or not isinstance(survey.get("spec"), list) or not survey["spec"]:
        yield "a survey has a list of questions, and one at least"
        return
    for name in ("name", "description"):
        if not isinstance(survey.get(name), str):
            yield f"the survey's {name} is to be a string"
    variables: set[str] = set()
    for number, question in enumerate(survey["spec"]):
        missing = [name for name, kind in _NEEDED.items() if not isinstance(question.get(name), kind)]
        found = [f"{name} is missing or of another type" for name in missing] or list(_question_problems(question))
        if question.get("variable") in variables:
            found.append("its variable is asked for twice")
        variables.add(question.get("variable", ""))
        yield from (f"question {number}, {question.get('variable')}: {problem}" for problem in found)


def _question_problems(question: Question) -> Iterator[str]:
    kind, default = question["type"], question.get("default", "")
    if kind not in (*_TEXTS, *_NUMBERS, *_CHOICES):
        yield f"there is no type {kind}"
        return
    if not question["variable"].isidentifier():
        yield "its variable is none"
    for bound in ("min", "max"):
        if not isinstance(question.get(bound, 0), int):
            yield f"{bound} is to be an integer"
    if kind in _CHOICES:
        choices = _lines(question.get("choices", []))
        if not choices or not all(isinstance(choice, str) for choice in choices):
            yield "its choices are to be strings, and one at least"
        elif any(choice not in choices for choice in _lines(default)):
            yield f"its default {default!r} is none of its choices"
        elif kind == "multiplechoice" and len(_lines(default)) > 1:
            yield "it has more than one default"
        elif kind == "multiplechoice" and not _lines(default):
            yield "it has no default, and AWX takes no empty choice"
    elif default != "":
        yield from answer_problems(question, default)
        if kind != "password" and str(default).startswith("$encrypted$"):
            yield "its default is a word that AWX keeps for itself"


def _lines(value: Any) -> list[Any]:
    return [line for line in value.splitlines() if line.strip()] if isinstance(value, str) else value


def answer_problems(question: Question, answer: Any) -> Iterator[str]:
    """What AWX would refuse an answer for."""
    kind = question["type"]
    kinds = (list,) if kind == "multiselect" else _NUMBERS.get(kind, (str,))
    if type(answer) not in kinds:
        yield f"{answer!r} is of another type than {kind}"
    elif kind in _CHOICES:
        if any(one not in _lines(question["choices"]) for one in (answer if kind == "multiselect" else [answer])):
            yield f"{answer!r} is none of its choices"
    else:
        size = len(answer) if isinstance(answer, str) else answer
        if question.get("min") is not None and size < question["min"] or question.get("max") is not None and size > question["max"]:
            yield f"{answer!r} is beyond its bounds"


def answers(survey: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a launch from the form passes: a question that is left as it is gives its default, or an empty string."""
    passed = {question["variable"]: question.get("default", "") for question in survey["spec"]} | dict(given)
    for question in survey["spec"]:
        for problem in answer_problems(question, passed[question["variable"]]):
            raise ValueError(f"{question['variable']}: {problem}")
    if set(passed) != {question["variable"] for question in survey["spec"]}:
        raise ValueError(f"AWX passes nothing that is not asked for: {sorted(passed)}")
    return passed


def defaults(survey: Mapping[str, Any]) -> dict[str, Any]:
    """What a schedule or workflow passes, which answers nothing."""
    return {question["variable"]: question["default"] for question in survey["spec"] if "default" in question}
