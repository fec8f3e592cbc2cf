# SPDX-License-Identifier: GPL-3.0-or-later
"""The metrics, the alert rules and the dashboard, as Prometheus' own tool reads them."""

from __future__ import annotations

import json
import re
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.virtops.live_backup.plugins.plugin_utils._metrics import attempts, metrics

from .conftest import REPOSITORY
from .sample import NOW, bad_night

FILES = REPOSITORY / "docs/monitoring"
DASHBOARD = json.loads((FILES / "dashboard.json").read_text(encoding="utf-8"))
PROMTOOL = REPOSITORY / ".build/promtool"
EXPRESSIONS = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]


def promtool(*arguments: Any, **more: Any) -> str:
    """What promtool says; it must not complain."""
    done = subprocess.run([PROMTOOL, *arguments], check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def exposed() -> str:
    night = bad_night()
    rows = [row for look in night["looks"] for row in look["status"]]
    targets = [one for look in night["looks"] for one in look["targets"]]
    return metrics(rows, targets, NOW) + attempts(night["results"], "", NOW)


def test_the_metrics_are_well_formed_and_named(exposed: str) -> None:
    assert promtool("check", "metrics", input=exposed) == ""


def test_each_metric_is_documented(exposed: str) -> None:
    told = re.findall(
        r"^\| `(\w+)` .*\|$", (REPOSITORY / "docs/monitoring.md").read_text(encoding="utf-8").split("## Metrics")[1], re.MULTILINE
    )
    assert sorted(f"live_backup_{name}" for name in told) == sorted(re.findall(r"^# TYPE (\w+) gauge$", exposed, re.MULTILINE))


def test_the_alert_rules_are_well_formed_and_of_metrics_that_there_are(exposed: str) -> None:
    assert "SUCCESS: 10 rules found" in promtool("check", "rules", FILES / "alerts.yml")
    [group] = yaml.safe_load((FILES / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]:
        assert_known(rule["expr"], exposed)


def test_the_alerts_come_when_they_should_and_not_before(tmp_path: Path) -> None:
    test = (REPOSITORY / "tests/report/alerts_test.yml").read_text(encoding="utf-8").replace("@DIRECTORY@", str(FILES))
    (tmp_path / "test.yml").write_text(test, encoding="utf-8")
    assert "SUCCESS" in promtool("test", "rules", tmp_path / "test.yml")
    names = {rule["alert"] for rule in yaml.safe_load((FILES / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]}
    fired = {one["alertname"] for case in yaml.safe_load(test)["tests"] for one in case["alert_rule_test"] if one["exp_alerts"]}
    assert fired == names, "each is seen to come"


def test_the_dashboard_asks_for_metrics_that_there_are(exposed: str, tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": expression.replace("$", "")} for number, (_title, expression) in enumerate(EXPRESSIONS)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    assert f"SUCCESS: {len(rules)} rules found" in promtool("check", "rules", tmp_path / "rules.yml")
    for _title, expression in EXPRESSIONS:
        assert_known(expression, exposed)


def assert_known(expression: str, exposed: str) -> None:
    asked = set(re.findall(r"live_backup_\w+", expression))
    assert asked and asked <= set(re.findall(r"^# TYPE (\w+) gauge$", exposed, re.MULTILINE)), expression


def test_the_dashboard_is_laid_out_without_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"], (one, other)


def test_the_dashboards_table_has_one_row_of_each_domain() -> None:
    """Grafana makes one of two rows only where all that both have is the same, and a name of a metric is not."""
    [table] = [panel for panel in DASHBOARD["panels"] if panel["type"] == "table"]
    expressions = [target["expr"] for target in table["targets"]]
    assert all(expression.startswith("max by (domain, instance) (") for expression in expressions)
    assert any("max_age_seconds" in expression for expression in expressions), "of which each domain has one, without a backup too"


def test_the_dashboard_takes_whatever_prometheus_the_user_has() -> None:
    variables = {one["name"] for one in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "instance", "domain"}
    used = [one["datasource"] for panel in DASHBOARD["panels"] for one in [panel, *panel["targets"]]]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in used)
