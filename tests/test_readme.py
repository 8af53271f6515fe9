"""The README is run, so that it cannot promise what is not there."""

from __future__ import annotations

import json
import re
import shlex
from http.client import HTTPConnection
from pathlib import Path

from flask import Flask

from flask_noc_realtime import NocRealtime
from tests.conftest import GunicornFactory
from tests.sse_client import SSEClient

ROOT = Path(__file__).resolve().parent.parent

_SERVICE_ROUTE = """
def count_open_incidents():
    counts.append(len(counts))
    return len(counts)

counts = []

@app.post("/incidents")
def create_incident():
    return IncidentService().create("core switch down")
"""


def blocks(language: str) -> list[str]:
    """Return the README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)


def test_the_readme_works_as_written(tmp_path: Path, gunicorn: GunicornFactory) -> None:
    """Its server, its gunicorn command, its browser's URL and its service, together."""
    (tmp_path / "app.py").write_text("\n".join([*blocks("python"), _SERVICE_ROUTE]))
    command = next(block for block in blocks("sh") if "gunicorn" in block)
    program, *args, app = shlex.split(command)
    assert program == "gunicorn"
    server = gunicorn(app, args=args, env={"PYTHONPATH": str(tmp_path)})
    (url,) = re.findall(r'EventSource\("(.*?)"\)', *blocks("js"))
    with SSEClient(server.address, url) as client:
        assert client.status == 200
        assert client.next_event().type == "stream.open"
        connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("POST", "/incidents")
        response = connection.getresponse()
        assert response.status == 200
        response.read()
        connection.close()
        event = client.next_event()
        assert [stats(server.port) for _ in range(3)] == [1, 1, 1]
        connection.request("POST", "/incidents")
        connection.getresponse().read()
        connection.close()
        assert [stats(server.port) for _ in range(3)] == [2, 2, 2]
    assert event.type == "incident.created"
    assert event.json["data"] == {"id": 7, "title": "core switch down"}


def stats(port: int) -> int:
    """Return what the README's dashboard shows."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/stats")
    shown: int = json.loads(connection.getresponse().read())["open"]
    connection.close()
    return shown


def test_the_browser_listens_to_events_that_exist() -> None:
    """Each listener is for a type of the catalogue, or a control event."""
    (browser,) = blocks("js")
    names = set(re.findall(r'addEventListener\("(.*?)"', browser))
    assert names
    assert names <= {*NocRealtime().types(), "stream.open", "stream.reset", "stream.close"}


def test_the_readme_keeps_its_size() -> None:
    """A newcomer is shown a server of 8 lines, a browser of 3, and a coalesced view of 4."""
    server, *_, coalesced = blocks("python")
    assert len(coalesced.splitlines()) == 4
    (browser,) = blocks("js")
    assert len(server.splitlines()) == 8
    assert len(browser.splitlines()) == 3


def test_every_config_key_of_the_readme_exists() -> None:
    """A key that is misspelt would be ignored without a word."""
    app = Flask("app")
    NocRealtime(app)
    config = app.extensions["noc_realtime"].config
    for key in re.findall(r"NOC_REALTIME_([A-Z_]+)", (ROOT / "README.md").read_text()):
        assert hasattr(config, key.lower()), key


def test_every_link_of_the_readme_leads_somewhere() -> None:
    """Each relative link names a file of the repository."""
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
