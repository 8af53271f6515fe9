"""What templates may ask for, and the files it leads browsers to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, g, render_template_string

from flask_noc_realtime import NocRealtime
from flask_noc_realtime.asset import ASSETS

SCRIPT = "{{ noc_realtime_script() }}"


@pytest.fixture
def app() -> Iterator[Flask]:
    """Return an app with the extension, a request to it being answered."""
    app = Flask("page")
    app.config["NOC_REALTIME_PREFIX"] = "/live"
    NocRealtime(app)
    with app.test_request_context("/"):
        yield app
    app.extensions["noc_realtime"].process().close()


def attributes(tag: str) -> dict[str, str]:
    """Return those of the one tag there is."""
    (inner,) = re.findall("^<script (.*)></script>$", tag)
    found = re.findall('([a-z-]+)="([^"]*)"', inner)
    assert " ".join(f'{name}="{value}"' for name, value in found) == inner
    return dict(found)


def test_the_tag_has_all_that_the_script_needs(app: Flask) -> None:
    """Where to connect, from which position on, and the client by its content."""
    tag = attributes(render_template_string(SCRIPT))
    position = app.extensions["noc_realtime"].process().position()
    assert {name: value.partition("?")[0] for name, value in tag.items()} == {
        "type": "module",
        "src": "/live/client-page.js",
        "data-noc-realtime": "/live/client.js",
        "data-url": "/live",
        "data-since": position,
    }
    client = app.test_client()
    for address in (tag["src"], tag["data-noc-realtime"]):
        assert "immutable" in client.get(address).headers["Cache-Control"]


def test_the_tag_is_right_below_another_root(app: Flask) -> None:
    """Where a proxy strips what the app is mounted at."""
    with app.test_request_context("/", environ_overrides={"SCRIPT_NAME": "/noc"}):
        tag = attributes(render_template_string(SCRIPT))
    assert tag["data-url"] == "/noc/live"
    assert tag["src"].startswith("/noc/live/client-page.js?v=")


@pytest.mark.parametrize(
    ("types", "shown"),
    [("incident.*", "incident.*"), (["log.added", "link.*"], "log.added,link.*")],
)
def test_the_tag_narrows_to_types(app: Flask, types: Any, shown: str) -> None:
    """One, or several."""
    tag = render_template_string("{{ noc_realtime_script(types=types) }}", types=types)
    assert attributes(tag)["data-types"] == shown


def test_what_is_passed_to_the_tag_is_no_code(app: Flask) -> None:
    """Whatever it is."""
    wrong = '"><script>alert(1)</script>'
    call = "{{ noc_realtime_script(types=wrong, nonce=wrong) }}"
    tag = attributes(render_template_string(call, wrong=wrong))
    assert tag["data-types"] == tag["nonce"] == "&#34;&gt;&lt;script&gt;alert(1)&lt;/script&gt;"


def test_the_nonce_is_found_where_apps_have_it(app: Flask) -> None:
    """Passed, in the template, as a function of it, or in `g`; otherwise there is none."""
    assert "nonce" not in attributes(render_template_string(SCRIPT))
    g.csp_nonce = "of g"
    assert attributes(render_template_string(SCRIPT))["nonce"] == "of g"
    assert attributes(render_template_string(SCRIPT, csp_nonce="given"))["nonce"] == "given"
    app.jinja_env.globals["csp_nonce"] = lambda: "called"
    assert attributes(render_template_string(SCRIPT))["nonce"] == "called"
    passed = "{{ noc_realtime_script(nonce='passed') }}"
    assert attributes(render_template_string(passed))["nonce"] == "passed"


def test_an_import_map_may_have_more_than_ours(app: Flask) -> None:
    """A page has one of them, so it is the template's."""
    text = "{{ dict(noc_realtime_imports(), react='/react.js') | tojson }}"
    imports = app.json.loads(render_template_string(text))
    assert imports.pop("react") == "/react.js"
    assert set(imports) == {"flask-noc-realtime", "flask-noc-realtime/react"}
    client = app.test_client()
    assert all("immutable" in client.get(a).headers["Cache-Control"] for a in imports.values())


@pytest.mark.parametrize("name", ASSETS)
def test_a_file_is_kept_by_its_content(app: Flask, name: str) -> None:
    """An address that names it is good for ever; the plain one is checked each time."""
    client = app.test_client()
    plain = client.get(f"/live/{name}")
    assert plain.mimetype == "text/javascript"
    assert plain.headers["Cache-Control"] == "no-cache"
    assert plain.headers["X-Content-Type-Options"] == "nosniff"
    tag = plain.headers["ETag"]
    again = client.get(f"/live/{name}", headers={"If-None-Match": tag})
    assert (again.status_code, again.data) == (304, b"")
    named = client.get(f"/live/{name}?v={tag.strip(chr(34))}")
    assert named.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    other = client.get(f"/live/{name}?v=0000000000000000")
    assert other.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("path", ["package.json", "noc-realtime.js", "client-.js", "client"])
def test_nothing_else_of_the_folder_is_served(app: Flask, path: str) -> None:
    """Only what is listed."""
    assert app.test_client().get(f"/live/{path}").status_code == 404
