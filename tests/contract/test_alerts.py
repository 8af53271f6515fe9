"""The alerting rules and the dashboard: what they say of metrics, and when they speak."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from flask_noc_realtime.event import Catalogue
from flask_noc_realtime.metrics import METRICS, metrics_in
from tests.conftest import require
from tests.documentation import DOCS

RULES = DOCS / "prometheus" / "noc-realtime.rules.yml"
DASHBOARD = DOCS / "grafana" / "noc-realtime.json"
TESTS = Path(__file__).with_name("alerts.yml")

# What Prometheus itself adds, or a histogram has.
OF_TARGETS = {"job", "instance", "le"}
ENDINGS = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
KEYWORDS = {"and", "bool", "offset", "or", "unless"}
GROUPS = re.compile(r"\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)")
SELECTOR = re.compile(r"(\w+)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')


def exported() -> dict[str, set[tuple[str, str]]]:
    """Return the samples the code exports, with the labels they have from the beginning."""
    registry = CollectorRegistry()
    metrics_in(registry, Catalogue())
    samples: dict[str, set[tuple[str, str]]] = {}
    for family in registry.collect():
        for sample in family.samples:
            samples.setdefault(sample.name, set()).update(sample.labels.items())
    return samples


def names(query: str) -> set[str]:
    """Return the metrics a PromQL query reads."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", GROUPS.sub(" ", query))
    return set(re.findall(r"\b[a-zA-Z_:]\w*\b(?!\s*\()", bare)) - KEYWORDS


def alerts() -> list[dict[str, Any]]:
    """Return the alerting rules."""
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def panels() -> list[dict[str, Any]]:
    """Return the panels of the dashboard that show something."""
    found = json.loads(DASHBOARD.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def queries() -> Iterator[str]:
    """Yield every query of the rules and of the dashboard."""
    yield from (rule["expr"] for rule in alerts())
    yield from (target["expr"] for panel in panels() for target in panel["targets"])


@pytest.mark.parametrize(
    ("query", "read"),
    [
        ('sum by (job, le) (rate(a_bucket{job=~"x|y"}[5m])) > 1', {"a_bucket"}),
        ("60 * a_total / on (job) group_left () (b > 10) and c[5m:1m]", {"a_total", "b", "c"}),
    ],
)
def test_the_metrics_of_a_query_are_found(query: str, read: set[str]) -> None:
    """And neither functions, nor labels, nor durations."""
    assert names(query) == read


def test_every_query_reads_metrics_that_are_exported() -> None:
    """An alert on a name that nobody exports would be silent for ever."""
    samples = exported()
    for query in queries():
        assert names(query) and names(query) <= samples.keys(), query


def test_every_label_of_a_query_is_one_the_metric_has() -> None:
    """With values that there are, all of them written down before the first is counted."""
    samples = exported()
    for query in queries():
        for name, matchers in SELECTOR.findall(query):
            for label, value in MATCHER.findall(matchers):
                if label not in OF_TARGETS:
                    wanted = {(label, each) for each in value.split("|")}
                    assert wanted <= samples[name], query


def test_the_dashboard_shows_every_metric() -> None:
    """Whoever looks for one finds it there."""
    targets = [target for panel in panels() for target in panel["targets"]]
    shown = set().union(*(names(target["expr"]) for target in targets))
    for metric in METRICS:
        assert shown & {metric.name + ending for ending in ENDINGS[metric.kind]}, metric.name


def test_the_dashboard_follows_its_variables_and_no_panel_hides_another() -> None:
    """Of one app, in one Prometheus; in a grid of 24 columns."""
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and max(cells)[0] < 24, panel["title"]
        taken |= cells
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            selectors = SELECTOR.findall(target["expr"])
            assert selectors and {found[1] for found in selectors} == {'job=~"$job"'}


def test_every_alert_speaks_when_it_should_and_not_before() -> None:
    """As promtool says, which evaluates them over time."""
    promtool = require("promtool")
    done = subprocess.run(
        [promtool, "test", "rules", str(TESTS)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test_in_which_it_speaks_and_a_section_of_the_page() -> None:
    """So that neither is forgotten with a new one."""
    spoken = {
        test["alertname"]
        for world in yaml.safe_load(TESTS.read_text())["tests"]
        for test in world.get("alert_rule_test", ())
        if test["exp_alerts"]
    }
    page = (DOCS / "alerts.rst").read_text()
    for rule in alerts():
        assert rule["alert"] in spoken
        assert f"\n{rule['alert']}\n~~~" in page
        assert rule["labels"]["severity"] in ("critical", "warning")
