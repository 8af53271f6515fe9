"""The scripts the blueprint serves: their size, their caching, and what pages do with them."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.browser.network import TIMEOUT, Network
from tests.conftest import require
from tests.documentation import blocks
from tests.processes import wait_until

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "flask_noc_realtime/static"
SCRIPTS = {
    "client.js": "noc-realtime.js",
    "client.classic.js": "noc-realtime.classic.js",
}

TYPES = """
import { connect, type NocEvent, type Snapshot, type Stream } from "noc-realtime.js";

const stream: Stream = connect({
  url: "/api/v1/events",
  since: null,
  types: ["incident.*"],
  token: async ({ refresh, signal }) => (refresh && signal.aborted ? "new" : "old"),
  ticket: () => fetch("/connect").then((answer) => answer.json() as Promise<{ url: string }>),
  share: "auto",
  dom: document.body,
  onState: ({ name, reason }) => console.log(name satisfies string, reason satisfies string | null),
  onGap: ({ reason, position }) => console.log(reason, position),
  onWire: (text) => console.log(text.length),
});
const off = stream.on<{ id: number }>("incident.created", ({ id }, event) => {
  const same: NocEvent<{ id: number }> = event;
  console.log(id.toFixed(), same.timestamp);
});
off();
const { tabs, streams, lastEventAge, gaps, since, leads }: Snapshot = stream.snapshot();
if (leads) stream.reconnect();
console.log(tabs + streams + gaps + since, lastEventAge?.toFixed());
stream.subscribe(() => console.log(stream.snapshot().name))();
stream.close();
NocRealtime.connect({ share: true }).close();
document.addEventListener("noc:state", ({ detail }) => console.log(detail.name));
// @ts-expect-error: there is no such option.
connect({ tokens: "a" });
"""


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_kept_by_its_content(name: str) -> None:
    """An address that names it is good for ever; the plain one is checked each time."""
    from tests.server.apps import create

    client = create().test_client()
    plain = client.get(f"/api/v1/events/{name}")
    assert plain.data == (STATIC / SCRIPTS[name]).read_bytes()
    assert plain.mimetype == "text/javascript"
    assert plain.headers["X-Content-Type-Options"] == "nosniff"
    assert plain.headers["Cache-Control"] == "no-cache"
    tag = plain.headers["ETag"]
    again = client.get(f"/api/v1/events/{name}", headers={"If-None-Match": tag})
    assert (again.status_code, again.data) == (304, b"")
    named = client.get(f"/api/v1/events/{name}?v={tag.strip(chr(34))}")
    assert named.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    other = client.get(f"/api/v1/events/{name}?v=0000000000000000")
    assert other.headers["Cache-Control"] == "no-cache"


def test_the_module_weighs_less_than_eight_kilobytes() -> None:
    """As it is sent, compressed."""
    assert len(gzip.compress((STATIC / "noc-realtime.js").read_bytes(), 9)) < 8 * 1024


@pytest.mark.usefixtures("packages")
def test_the_scripts_are_built_from_the_sources_beside_them(tmp_path: Path) -> None:
    """Run `make client` after a change of a source, and commit what it builds."""
    require("make")
    command = ["make", "client", f"VENV={sys.prefix}", f"STATIC={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in SCRIPTS.values():
        assert (tmp_path / name).read_bytes() == (STATIC / name).read_bytes(), name


def test_the_types_describe_the_module(tmp_path: Path, packages: Path) -> None:
    """TypeScript accepts what the documentation shows, and refuses what there is not."""
    tsc = packages / "node_modules/.bin/tsc"
    source = tmp_path / "page.mts"
    source.write_text(TYPES.replace("noc-realtime.js", str(STATIC / "noc-realtime.js")))
    options = ["--noEmit", "--strict", "--target", "es2022", "--lib", "es2022,dom"]
    done = subprocess.run([tsc, *options, str(source)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.browser
def test_a_page_without_modules_has_a_script(network: Network) -> None:
    """It sets one name, and shares its stream with the other tabs of such pages."""
    tabs = network.tabs(2)
    for tab in tabs:
        tab.page.add_script_tag(url="/api/v1/events/client.classic.js")
        tab.page.evaluate(
            """() => {
              window.numbers = [];
              window.stream = NocRealtime.connect();
              stream.on("log.added", ({ n }) => numbers.push(n));
            }"""
        )
        tab.wait_for_state("live")
    network.emit()
    for tab in tabs:
        tab.wait_for(list(range(5)))
        assert tab.snapshot["way"] == "worker"
    assert network.streams == 1


@pytest.mark.browser
def test_events_are_dispatched_in_the_document_for_pages_that_ask(network: Network) -> None:
    """On the document or an element, with the state and the gaps; without handlers of its own."""
    network.page.evaluate(
        """async () => {
          const { connect } = await import("/api/v1/events/client.js");
          window.heard = [];
          const note = ({ type, target, detail }) =>
            heard.push([type, target.nodeName, detail.data ?? detail.name ?? detail.reason]);
          for (const type of ["noc:log.added", "noc:state", "noc:gap"]) {
            document.addEventListener(type, note);
          }
          const since = "1-1";
          window.one = connect({ dom: true, share: false, since });
          window.other = connect({ dom: document.querySelector("main"), share: false, since });
        }"""
    )
    network.page.wait_for_function("heard.filter(([type]) => type === 'noc:gap').length === 2")
    network.emit(1)
    network.page.wait_for_function("heard.filter(([type]) => /log/.test(type)).length === 2")
    heard = network.page.evaluate("heard")
    for name in ("#document", "MAIN"):
        assert [event for event in heard if event[1] == name] == [
            ["noc:state", name, "live"],
            ["noc:gap", name, "unknown-position"],
            ["noc:log.added", name, {"n": 0}],
        ]


@pytest.mark.browser
def test_a_page_need_not_know_the_prefix(network: Network) -> None:
    """The script was served from it."""
    page = network.page

    def elsewhere(route: Any) -> None:
        route.fulfill(response=route.fetch(url=route.request.url.replace("/else/", "/api/v1/")))

    page.route("**/else/events/client.js", elsewhere)
    with page.expect_request("**/else/events/stream"):
        page.evaluate(
            """async () => {
              const { connect } = await import("/else/events/client.js");
              window.stream = connect({ share: false });
            }"""
        )


PAGE = """<link rel="icon" href="data:,"><script>
  window.rows = [];
  const addRow = ({ n }) => rows.push(n);
  const showFooter = () => {};
</script>
"""


@pytest.mark.browser
def test_the_pages_of_the_documentation_show_incidents(network: Network) -> None:
    """Each as it stands there."""
    pages = [
        block.replace("{{ noc_realtime_position() }}", network.position)
        for block in blocks("browser", "html")
        if "connect(" in block
    ]
    assert len(pages) == 3
    shown: list[str] = []
    network.page.route(
        "**/snapshot", lambda route: route.fulfill(content_type="text/html", body=shown[-1])
    )
    for number, page in enumerate(pages):
        shown.append(PAGE + page)
        network.page.goto("about:blank")
        wait_until(lambda: network.streams == 0, TIMEOUT, "the last page has none")
        network.page.goto(network.proxy.url + "/snapshot")
        wait_until(lambda: network.streams == 1, TIMEOUT, "it has a stream")
        network.site.ask("GET", f"/incident/{number}")
        network.page.wait_for_function("(n) => rows.includes(n)", arg=number)
    assert network.page.problems == []


@pytest.mark.browser
def test_the_tokens_and_tickets_of_the_documentation_open_a_stream(network: Network) -> None:
    """Each as it stands there."""
    snippets = [block for block in blocks("browser", "js") if "connect(" in block]
    assert len(snippets) == 2
    for snippet in snippets:
        network.page.evaluate(
            """async (snippet) => {
              const { connect } = await import("/api/v1/events/client.js");
              const session = { token: "a", accessToken: async () => "a" };
              const run = new Function("connect", "session", snippet);
              run((options) => (window.stream = connect(options)), session);
            }""",
            snippet,
        )
        network.wait_for_state("live")
