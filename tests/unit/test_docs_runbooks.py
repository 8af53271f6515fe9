"""What the runbooks tell to look at and to type is there."""

from __future__ import annotations

import re

from flask_noc_realtime.cli import group
from flask_noc_realtime.config import Config, key_of
from flask_noc_realtime.metrics import METRICS
from tests.documentation import DOCS

PAGE = (DOCS / "runbooks.rst").read_text()


def test_every_metric_is_exported() -> None:
    """Counters with the end that Prometheus gives them."""
    named = set(re.findall(r"\b(?:sse|dedup)_\w+", PAGE))
    exported = {m.name + "_total" * (m.kind == "counter") for m in METRICS}
    assert len(named) > 8
    assert named <= exported


def test_every_command_and_every_key_is_known() -> None:
    """By the names that users type."""
    commands = set(re.findall(r"flask noc-realtime (\w+)", PAGE))
    assert {"doctor", "stats", "tail", "rollout"} == commands <= set(group.commands)
    keys = set(re.findall(r"NOC_REALTIME_\w+", PAGE))
    assert keys <= {key_of(name) for name in Config.__dataclass_fields__}
