"""The folder static is an npm package, and the page about React is true of it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import npm
from tests.browser.react import TIMEOUT, aliases
from tests.conftest import require
from tests.documentation import blocks
from tests.gunicorn_server import GunicornServer
from tests.processes import wait_until
from tests.server.client import Site

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "flask_noc_realtime" / "static"
NAME = "flask-noc-realtime"

TYPES = """
import { QueryClient } from "@tanstack/react-query";
import { createElement } from "react";
import { connect, type State } from "flask-noc-realtime";
import * as noc from "flask-noc-realtime/react";

interface Incident { id: number; title: string }

const client = new QueryClient();
const stream = connect({ types: ["incident.*"], onState: (state: State) => state.name });
const stop: () => void = noc.bindQueryClient(client, stream, {
  "incident.created": noc.prepend(["incidents", { open: true }], { at: "items", limit: 10 }),
  "incident.updated": [noc.patch<Incident>(["incidents"]), noc.invalidate(["stats"])],
  "log.added": noc.append<{ run: number }>(["runs", (line) => line.run, "log"]),
  "incident.*": {
    keys: [["stats"]],
    update: (cache, data, event) => cache.change(["stats", event.type], (old) => [old, data]),
  },
});

export function Footer() {
  const own = noc.useNocStream({ since: null, token: async ({ refresh }) => `${refresh}` });
  noc.useNocEvents<Incident>(own, ["incident.*"], ({ title }, { id }) => [title, id]);
  const { name, gaps } = noc.useNocState(noc.useNocStream());
  const delivered: number = noc.useNocState(own, (snapshot) => snapshot.delivered);
  return createElement("p", null, name, gaps, delivered);
}

export const pages = [
  createElement(noc.NocProvider, { stream }, "below"),
  createElement(noc.NocProvider, { url: "/events", types: "log.*" }, createElement(Footer)),
];

// @ts-expect-error: an updater has keys.
noc.bindQueryClient(client, stream, { "log.added": { update() {} } });
// @ts-expect-error: an option that is none.
noc.prepend(["incidents"], { limits: 10 });
"""
SETTINGS = {
    "compilerOptions": {
        "strict": True,
        "noEmit": True,
        "target": "es2022",
        "module": "esnext",
        "moduleResolution": "bundler",
        "types": [],
    },
    "files": ["page.ts"],
}
APP = """
import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { NocProvider } from "flask-noc-realtime/react";
import { Incidents } from "./incidents.jsx";
import { counted } from "./counted.jsx";
import { Wallboard } from "./wallboard.jsx";

Object.assign(window, { counted, played: [] });
const play = (type) => played.push(type);
const { position } = document.querySelector("main").dataset;
createRoot(document.querySelector("main")).render(
  <StrictMode>
    <QueryClientProvider client={new QueryClient()}>
      <NocProvider since={position}><Incidents /></NocProvider>
    </QueryClientProvider>
    <Wallboard position={position} play={play} />
  </StrictMode>,
);
"""

FILES = ("wallboard.jsx", "incidents.jsx", "counted.jsx", "app.jsx")
EXAMPLES = dict(zip(FILES, [*blocks("react", "jsx"), APP], strict=True))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the command of the page was run."""
    require("npm")
    folder = tmp_path_factory.mktemp("project")
    (folder / "package.json").write_text("{}")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    quiet = {"npm_config_audit": "false", "npm_config_fund": "false"}
    (command,) = blocks("react", "sh")
    npm.run(["sh", "-ec", command], folder, PATH=path, PYTHONPATH=str(ROOT), **quiet)
    return folder


def test_it_is_installed_with_what_it_needs_and_no_more(project: Path) -> None:
    """Nor does anything come along: React and TanStack Query are the project's own."""
    (installed,) = (path for path in (project / "node_modules").iterdir() if path.name[0] != ".")
    assert installed.name == NAME
    modules = {path.name for path in STATIC.iterdir() if path.name.endswith((".js", ".d.ts"))}
    assert {path.name for path in installed.iterdir()} == modules | {"package.json"}
    described = json.loads((installed / "package.json").read_text())
    assert described["sideEffects"] is False
    for entry in described["exports"].values():
        for path in entry.values() if isinstance(entry, dict) else [entry]:
            assert (installed / path).exists(), path


def test_a_server_may_import_it(project: Path) -> None:
    """Which has no page and no window, and renders with it."""
    code = f"import('{NAME}').then((module) => console.log(typeof module.connect))"
    assert npm.run(["node", "-e", code], project) == "function\n"


def test_typescript_knows_what_it_is_given(project: Path, packages: Path) -> None:
    """Strictly, and with the types of React and TanStack Query."""
    for package in ("@tanstack", "@types", "csstype"):
        (project / "node_modules" / package).symlink_to(packages / "node_modules" / package)
    (project / "page.ts").write_text(TYPES)
    (project / "tsconfig.json").write_text(json.dumps(SETTINGS))
    npm.run([str(packages / "node_modules" / ".bin" / "tsc"), "-p", "."], project)


def test_the_examples_of_the_page_work_together(
    project: Path, packages: Path, page: Any, pages: GunicornServer
) -> None:
    """Bundled as an app would be."""
    for name, text in EXAMPLES.items():
        (project / name).write_text(text)
    source = f"import {json.dumps(str(project / 'app.jsx'))}"
    script = npm.bundle(packages, source, *aliases("19"), "--jsx=automatic")
    site = Site(pages.address)
    page.route(
        "**/vendor.js", lambda route: route.fulfill(body=script, content_type="text/javascript")
    )
    page.route("**/api/incidents", lambda route: route.fulfill(json=[]))
    page.goto(pages.url + "/react")
    page.evaluate("import('/vendor.js')")
    text = "document.querySelector('main').innerText"
    wait_until(lambda: page.evaluate(text) == "live", TIMEOUT, "the footer says so")
    site.emit("incident.created", {"id": 7, "title": "down", "status": "open"})
    site.emit(
        "incident.created", {"id": 8, "title": "up", "status": "open", "severity": "critical"}
    )
    site.emit("incident.status.changed", {"id": 7, "status": "closed"})
    shown = "up: open\ndown: closed\nlive"
    wait_until(lambda: page.evaluate(text) == shown, TIMEOUT, "the list follows")
    assert page.evaluate("played") == ["incident.created"]
    changing = "counted.update({ change: (key, change) => (window.changed = change({ all: 9 })) }"
    assert page.evaluate(f"{changing}, {{ open: 3 }}) ?? changed") == {"all": 9, "open": 3}
    assert [text for text in page.problems if "React DevTools" not in text] == []
