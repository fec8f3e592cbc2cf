# SPDX-License-Identifier: GPL-3.0-or-later
"""The checker of surveys: what AWX refuses is refused."""

from __future__ import annotations

from typing import Any

import pytest

from .surveys import answers, spec_problems

TEXT = {"question_name": "Domains", "variable": "backup_domains", "type": "text", "required": False}
CHOICE = {**TEXT, "type": "multiplechoice", "choices": ["no", "yes"], "default": "no"}
NUMBER = {**TEXT, "type": "integer", "default": 5, "min": 1, "max": 9}


def survey(*questions: Any) -> dict[str, Any]:
    return {"name": "", "description": "", "spec": list(questions)}


@pytest.mark.parametrize(
    "good", [TEXT, {**TEXT, "default": ""}, CHOICE, {**CHOICE, "choices": "no\nyes\n"}, NUMBER, {**NUMBER, "default": ""}]
)
def test_good_questions(good: dict[str, Any]) -> None:
    assert list(spec_problems(survey(good))) == []


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({}, "a list of questions"),
        (survey(), "one at least"),
        ({"spec": [TEXT]}, "name is to be a string"),
        (survey({name: value for name, value in TEXT.items() if name != "required"}), "required is missing"),
        (survey({**TEXT, "required": "yes"}), "required is missing or of another type"),
        (survey(TEXT, TEXT), "asked for twice"),
        (survey({**TEXT, "type": "boolean"}), "no type boolean"),
        (survey({**TEXT, "variable": "backup-domains"}), "its variable is none"),
        (survey({**TEXT, "default": ["*"]}), "another type"),
        (survey({**TEXT, "default": "$encrypted$"}), "keeps for itself"),
        (survey({**TEXT, "max": "9"}), "max is to be an integer"),
        (survey({**TEXT, "max": 3, "default": "long"}), "beyond its bounds"),
        (survey({**CHOICE, "choices": [True, False]}), "to be strings"),
        (survey({**CHOICE, "choices": []}), "one at least"),
        (survey({**CHOICE, "default": "perhaps"}), "none of its choices"),
        (survey({**CHOICE, "default": "no\nyes"}), "more than one default"),
        (survey({**CHOICE, "default": ""}), "no empty choice"),
        (survey({**NUMBER, "default": "5"}), "another type"),
        (survey({**NUMBER, "default": 10}), "beyond its bounds"),
    ],
)
def test_bad_surveys(bad: dict[str, Any], problem: str) -> None:
    assert problem in "; ".join(spec_problems(bad))


def test_answers() -> None:
    other = {**CHOICE, "variable": "backup_verify"}
    assert answers(survey(TEXT, other), {}) == {"backup_domains": "", "backup_verify": "no"}
    assert answers(survey(TEXT, other), {"backup_domains": "db1"})["backup_domains"] == "db1"
    for wrong in ({"backup_verify": ""}, {"backup_domains": ["db1"]}, {"backup_keep": ""}):
        with pytest.raises(ValueError):
            answers(survey(TEXT, other), wrong)
