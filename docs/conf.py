"""The Sphinx configuration; the tables of config keys and of metrics come from the code."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from pallets_sphinx_themes import ProjectLink
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import flask_noc_realtime
from flask_noc_realtime.config import Config, key_of
from flask_noc_realtime.metrics import METRICS

project = "flask_noc_realtime"
copyright = "2026 the flask_noc_realtime authors"
author = "the flask_noc_realtime authors"
release = version = flask_noc_realtime.__version__

extensions = ["sphinx.ext.autodoc", "pallets_sphinx_themes"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
exclude_patterns = ["_build"]
nitpicky = False

html_theme = "flask"
html_title = f"flask_noc_realtime ({version})"
html_copy_source = False
html_show_sourcelink = False
html_context = {"project_links": [ProjectLink("Changes", "changes.html")]}
html_sidebars = {
    "index": ["project.html", "localtoc.html", "searchbox.html"],
    "**": ["localtoc.html", "relations.html", "searchbox.html"],
}


class ConfigTable(SphinxDirective):
    """Show every key of `Config` with its default and its meaning."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        meanings = dict(re.findall(r":ivar (\w+): (.*?)(?=\n\s*:ivar|\Z)", Config.__doc__, re.S))
        lines = [".. list-table::", "   :header-rows: 1", "   :widths: 35 15 50", ""]
        lines += ["   * - Key", "     - Default", "     - Meaning"]
        for field in fields(Config):
            meaning = " ".join(meanings[field.name].split())
            lines += [f"   * - ``{key_of(field.name)}``", f"     - ``{_shown(field.default)}``"]
            lines.append(f"     - {meaning[0].upper()}{meaning[1:]}")
        self.env.note_dependency(str(Path(flask_noc_realtime.__file__).with_name("config.py")))
        return self.parse_text_to_nodes(StringList(lines, "config.py"))


def _shown(default: object) -> str:
    """Return a default as code; no default is a secret, though its type hides it."""
    return repr(str(default) if isinstance(default, str) else default)


class MetricsTable(SphinxDirective):
    """Show every metric with its kind, its label and its meaning."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        lines = [".. list-table::", "   :header-rows: 1", "   :widths: 30 15 55", ""]
        lines += ["   * - Name", "     - Kind", "     - Meaning"]
        for metric in METRICS:
            values = ", ".join(f"``{value}``" for value in metric.values)
            values += " and those the app knows" if metric.label == "type" else ""
            label = f" By ``{metric.label}``: {values}." if metric.label else ""
            lines += [f"   * - ``{metric.name}``", f"     - {metric.kind}"]
            lines.append(f"     - {metric.help}{label}")
        self.env.note_dependency(str(Path(flask_noc_realtime.__file__).with_name("metrics.py")))
        return self.parse_text_to_nodes(StringList(lines, "metrics.py"))


def setup(app: Sphinx) -> None:
    """Register the directives."""
    app.add_directive("config-table", ConfigTable)
    app.add_directive("metrics-table", MetricsTable)
