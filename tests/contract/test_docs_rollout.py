"""The page about the rollout, and what the one about deployment says of health, as they stand."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest
from click.testing import Result
from flask import Flask

from flask_noc_realtime import NocRealtime, Rollout
from flask_noc_realtime.cli import group
from flask_noc_realtime.metrics import METRICS
from flask_noc_realtime.testing import process_of
from tests.conftest import RedisFactory
from tests.documentation import DOCS, blocks

CONFIGURE, CHANGE, COMPARE = blocks("rollout", "python")


@pytest.fixture
def app() -> Flask:
    """Return an app that is configured as the page says."""
    app = Flask("page")
    app.config["NOC_REALTIME_ALLOW_ANONYMOUS"] = True
    exec(CONFIGURE, {"app": app})
    return app


def test_the_app_changes_it_as_the_page_says(app: Flask) -> None:
    """Line by line, and back to what is configured."""
    realtime = NocRealtime(app)
    seen = [realtime.rollout()]
    for line in CHANGE.strip().splitlines():
        exec(line, {"realtime": realtime})
        seen.append(realtime.rollout())
    ada, bob = frozenset({"ada"}), frozenset({"bob"})
    expected = [Rollout(5), Rollout(25), Rollout(25, ada, bob), Rollout(25, ada), Rollout(25, ada)]
    assert seen == [*expected, Rollout(5)]
    names: dict[str, Any] = {"realtime": realtime}
    realtime.rollout(allow=["ada"], percent=0)
    exec(COMPARE, names)
    assert names["cohorts"] == {"ada": "stream", "bob": "polling", "cyd": "polling"}


def test_the_metrics_that_the_page_compares_exist() -> None:
    """By the names that Prometheus shows."""
    named = set(re.findall(r"\bsse_\w+", (DOCS / "rollout.rst").read_text()))
    known = {metric.name + "_total" * (metric.kind == "counter") for metric in METRICS}
    assert len(named) == 6
    assert named <= known


def test_an_operator_changes_it_as_the_page_says(app: Flask, redis_server: RedisFactory) -> None:
    """Each command does what its comment says."""
    app.config["NOC_REALTIME_URL"] = redis_server().url
    NocRealtime(app)
    (script,) = blocks("rollout", "sh")
    results: list[Result] = []
    for line in script.strip().splitlines():
        words = shlex.split(line, comments=True)
        assert words[:2] == ["flask", "noc-realtime"]
        results.append(app.test_cli_runner().invoke(group, words[2:]))
    process_of(app).close()
    assert [result.output for result in results] == [
        "percent: 5 (NOC_REALTIME_ROLLOUT)\nallow: -\ndeny: -\n",
        "percent: 25 (stored)\nallow: -\ndeny: -\n",
        "percent: 25 (stored)\nallow: ada\ndeny: bob\n",
        "percent: 25 (stored)\nallow: -\ndeny: bob\n",
        "percent: 50 (stored)\nallow: -\ndeny: bob, cyd\n",
        "percent: 5 (NOC_REALTIME_ROLLOUT)\nallow: -\ndeny: -\n",
    ]


@pytest.mark.parametrize(
    ("page", "section", "route"),
    [
        ("rollout", "What clients see", "config"),
        ("access", "Polling", "poll"),
        ("deployment", "Health", "health"),
    ],
)
def test_an_answer_has_the_fields_that_the_page_shows(
    page: str, section: str, route: str, app: Flask
) -> None:
    """No more and no fewer."""
    NocRealtime(app)
    (shown,) = blocks(page, "json", section)
    answer = app.test_client().get(f"/api/v1/events/{route}").json
    assert json.loads(shown).keys() == answer.keys()
