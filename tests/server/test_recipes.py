"""What docs/recipes holds, run by the programs it is for; only addresses and paths differ."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flask_noc_realtime.config import Config
from tests.certificate import Certificate
from tests.conftest import RedisFactory, require
from tests.documentation import recipe
from tests.gunicorn_server import ROOT, GunicornServer
from tests.nginx import SURROUNDINGS
from tests.processes import free_port, wait_until
from tests.server.apps import create
from tests.server.client import Site
from tests.sse_client import SSEClient

APP = "tests.server.apps:create()"
TOKEN = "a-token-nobody-may-read"
SHORT = {"60s": "2s"}
"""What the proxies wait for the app and for the client, and what they wait here."""


class Proxy:
    """A program in front of the app, as its recipe says.

    :param command: runs it.
    :param log: is where it logs requests.
    """

    def __init__(self, command: list[str], port: int, directory: Path, log: str) -> None:
        self.site = Site(("127.0.0.1", port))
        self._log = directory / log
        with (directory / "output").open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=directory,
                env={**os.environ, "HOME": str(directory), "XDG_CONFIG_HOME": str(directory)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def log(self) -> str:
        """Return the requests it logged so far."""
        return self._log.read_text()

    def ready(self, tls: Any) -> bool:
        """Tell whether the app answers through it."""
        assert self._process.poll() is None, self._log.with_name("output").read_text()
        self.site.tls = tls
        try:
            return self.site.ask("GET", "/pid").status == 200
        except OSError:
            return False

    def stop(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait(10)


def nginx(directory: Path, app: str, certificate: Certificate) -> Proxy:
    """Return an nginx, in which others may have switched compression on."""
    port = free_port()
    places = {
        "443": f"127.0.0.1:{port}",
        "127.0.0.1:8000": app,
        "/etc/ssl/noc/certificate.pem": certificate.certificate,
        "/etc/ssl/noc/key.pem": certificate.key,
        "/var/log/nginx": directory,
        **SHORT,
    }
    config = directory / "nginx.conf"
    config.write_text(SURROUNDINGS.format(directory=directory, sites=recipe("nginx.conf", places)))
    command = [require("nginx"), "-p", str(directory), "-e", str(directory / "error.log")]
    return Proxy([*command, "-c", str(config)], port, directory, "noc.log")


def haproxy(directory: Path, app: str, certificate: Certificate) -> Proxy:
    """Return an HAProxy, which logs to where it is told to."""
    port = free_port()
    both = directory / "noc.pem"
    both.write_text(certificate.certificate.read_text() + certificate.key.read_text())
    places = {
        ":443": f"127.0.0.1:{port}",
        "127.0.0.1:8000": app,
        "/etc/haproxy/noc.pem": both,
        "/dev/log": "stdout format raw",
        "40000": 200,
        **SHORT,
    }
    config = directory / "haproxy.cfg"
    config.write_text(recipe("haproxy.cfg", places))
    return Proxy([require("haproxy"), "-db", "-f", str(config)], port, directory, "output")


def caddy(directory: Path, app: str, certificate: Certificate) -> Proxy:
    """Return a Caddy, which gets its certificate here instead of from an authority."""
    port = free_port()
    places = {
        "noc.example.com {": f"https://127.0.0.1:{port} {{\n\ttls {certificate.certificate} "
        f"{certificate.key}",
        "\tgrace_period 1m": f"\tgrace_period 1m\n\tadmin off\n\tauto_https disable_redirects\n"
        f"\tdefault_sni 127.0.0.1\n\tstorage file_system {directory}",
        "127.0.0.1:8000": app,
        "/var/log/caddy": directory,
    }
    config = directory / "Caddyfile"
    config.write_text(recipe("Caddyfile", places))
    command = [require("caddy"), "run", "--adapter", "caddyfile", "--config", str(config)]
    return Proxy(command, port, directory, "noc.log")


PROXIES: dict[str, Callable[[Path, str, Certificate], Proxy]] = {
    "nginx": nginx,
    "haproxy": haproxy,
    "caddy": caddy,
}


@pytest.fixture(scope="module")
def server(
    module_redis_server: RedisFactory, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GunicornServer]:
    """Serve from two workers, as gunicorn.conf.py says."""
    server = GunicornServer(
        APP,
        tmp_path_factory.mktemp("gunicorn"),
        workers=2,
        env={
            "NOC_REALTIME_URL": module_redis_server().url,
            "NOC_REALTIME_TRANSPORT": "detached",
            "NOC_REALTIME_HEARTBEAT": "0.5",
        },
        config=recipe("gunicorn.conf.py", {}),
    ).start()
    yield server
    server.close()


@pytest.fixture(scope="module", params=PROXIES)
def proxy(
    request: pytest.FixtureRequest,
    server: GunicornServer,
    certificate: Certificate,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:
    """Return each proxy in turn."""
    directory = tmp_path_factory.mktemp(request.param)
    proxy = PROXIES[request.param](directory, f"127.0.0.1:{server.port}", certificate)
    try:
        tls = certificate.client_context()
        wait_until(lambda: proxy.ready(tls), 20, f"{request.param} answers")
        yield proxy
    finally:
        proxy.stop()


def open_stream(proxy: Proxy, query: str = "", **options: Any) -> SSEClient:
    """Open a stream as a page of the site does, whose browser takes any compression."""
    origin = f"https://127.0.0.1:{proxy.site.address[1]}"
    headers = {"Accept-Encoding": "gzip, deflate, br, zstd", "Origin": origin}
    return proxy.site.stream(query, headers=headers, **options)


def emit(server: GunicornServer, first: int, count: int = 1) -> list[str]:
    """Emit numbered events past the proxy; return their positions."""
    answer: Any = Site(server.address).ask("GET", f"/emit?first={first}&count={count}")
    positions: list[str] = json.loads(answer.text)
    return positions


def numbers(client: SSEClient, last: int, timeout: float = 10.0) -> list[int]:
    """Return the numbers of the events up to *last*."""
    events = client.events_until(
        lambda e: e.type == "log.added" and e.json["data"]["n"] == last, timeout
    )
    return [event.json["data"]["n"] for event in events if event.type == "log.added"]


def test_a_stream_passes_at_once_and_as_it_was_sent(server: GunicornServer, proxy: Proxy) -> None:
    """Neither buffered nor compressed, and byte for byte."""
    with open_stream(proxy) as client, SSEClient(server.address) as direct:
        assert client.status == 200
        assert client.headers["content-type"].startswith("text/event-stream")
        assert "content-encoding" not in client.headers
        for each in (client, direct):
            # What is buffered waits for some kilobytes of heartbeats.
            assert each.next_event(5.0).type == "stream.open"
        for number in range(20):
            emit(server, number)
            assert numbers(client, number) == [number]
        assert numbers(direct, 19) == list(range(20))
        through, sent = (
            [frame for frame in bytes(each.body).split(b"\n\n") if b"log.added" in frame]
            for each in (client, direct)
        )
        assert len(through) == 20
        assert through == sent


def test_a_stream_passes_over_http2(
    server: GunicornServer, proxy: Proxy, certificate: Certificate
) -> None:
    """Over HTTP/1.1 a browser has six connections to the site, for all of its tabs."""
    url = "https://{}:{}/api/v1/events/stream".format(*proxy.site.address)
    command = [require("curl"), "-siN", "--max-time", "20", "--http2", url]
    command += ["--cacert", str(certificate.authority)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
        assert curl.stdout is not None
        assert curl.stdout.readline().startswith(b"HTTP/2 200")
        assert b"event: stream.open\n" in iter(curl.stdout.readline, b"")
        emit(server, 0)
        assert b"event: log.added\n" in iter(curl.stdout.readline, b"")
        curl.kill()


def test_an_idle_stream_outlasts_what_the_proxy_waits(proxy: Proxy) -> None:
    """Heartbeats come through, four times as often as they must."""
    with open_stream(proxy, "?types=incident.created") as client:
        assert client.next_event().type == "stream.open"
        begun = time.monotonic()
        while time.monotonic() - begun < 2.5:
            assert client.next_event(1.9).type == "heartbeat"


@pytest.mark.parametrize("name", ["nginx.conf", "haproxy.cfg"])
def test_a_proxy_waits_for_four_heartbeats(name: str) -> None:
    """Those of the default length; Caddy waits for ever."""
    waits = re.findall(r"(?:read_timeout|timeout (?:client|server)) (\d+)s", recipe(name, {}))
    assert min(map(int, waits)) >= 4 * Config().heartbeat


def test_what_a_killed_worker_did_not_send_is_sent_by_another(
    server: GunicornServer, proxy: Proxy
) -> None:
    """The proxy ends the stream with it; the next begins where that one was."""
    with open_stream(proxy) as client:
        assert client.next_event().type == "stream.open"
        emit(server, 0)
        assert numbers(client, 0) == [0]
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
        client.until_end(10)
    wait_until(lambda: proxy.ready(proxy.site.tls), 20, "another worker answers")
    emit(server, 1, 5)
    with open_stream(proxy, last_event_id=client.last_event_id) as again:
        emit(server, 6)
        assert numbers(again, 6) == [1, 2, 3, 4, 5, 6]


def test_neither_a_token_nor_a_ticket_is_logged(server: GunicornServer, proxy: Proxy) -> None:
    """By the proxy and by gunicorn, which still show every request."""
    logs = (server.log, proxy.log)
    before = [len(log()) for log in logs]
    host = {"Host": "{}:{}".format(*proxy.site.address)}
    answer: Any = proxy.site.ask("POST", f"/api/v1/events/connect?token={TOKEN}", headers=host)
    ticket = json.loads(answer.text)["ticket"]
    for path in (f"/{ticket}?types=log.added", f"?token={TOKEN}&types=log.added"):
        with open_stream(proxy, path) as client:
            assert client.next_event().type == "stream.open"
    answer = proxy.site.ask("GET", f"/api/v1/events/stream/{ticket}", headers=host)
    assert answer.status == 401
    for log, start in zip(logs, before, strict=True):
        wait_until(lambda log=log, start=start: logged(log()[start:]) >= WANTED, 10, "the lines")  # type: ignore[misc]
        assert ticket not in log()
        assert TOKEN not in log()


WANTED = Counter({"connect": 1, "stream": 1, "stream/": 2})


def logged(text: str) -> Counter[str]:
    """Return what was asked for below the prefix; a ticket is a dash, or nothing at all."""
    return Counter(re.findall(r"/api/v1/events/(connect|stream/?)-?[ \"]", text))


def test_the_unit_starts_reloads_and_stops_the_app(
    redis_server: RedisFactory, tmp_path: Path
) -> None:
    """It says when it is ready, as Type=notify has it; systemd knows all that the unit says."""
    analyze = require("systemd-analyze")
    port = free_port()
    (tmp_path / "app.py").write_text("from tests.server.apps import create\n\napp = create()\n")
    config = recipe("gunicorn.conf.py", {"127.0.0.1:8000": f"127.0.0.1:{port}"})
    (tmp_path / "gunicorn.conf.py").write_text(config)
    unit = tmp_path / "noc.service"
    places = {"/srv/noc/.venv/bin": Path(sys.executable).parent, "/srv/noc": tmp_path}
    unit.write_text(recipe(unit.name, places))
    verify = [analyze, "verify", "--man=no", "--recursive-errors=no", str(unit)]
    verified = subprocess.run(verify, capture_output=True, text=True, timeout=60)
    assert (verified.returncode, verified.stderr) == (0, "")

    said = dict(re.findall(r"^(\w+)=(.+)$", unit.read_text(), re.M))
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "NOC_REALTIME_URL": redis_server().url,
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "GUNICORN_CMD_ARGS": "--no-control-socket -w 1",
    }
    site = Site(("127.0.0.1", port))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(env["NOTIFY_SOCKET"])
        notified.settimeout(20)
        main = subprocess.Popen(shlex.split(said["ExecStart"]), cwd=tmp_path, env=env)
        try:
            assert b"READY=1" in notified.recv(1024)
            first: Any = site.ask("GET", "/pid")
            with site.stream() as client:
                assert client.next_event().type == "stream.open"
                reload = said["ExecReload"].replace("$MAINPID", str(main.pid))
                subprocess.run(shlex.split(reload), check=True, timeout=20)
                assert client.until_end(20)[-1].type == "stream.close"
            wait_until(lambda: site.ask("GET", "/pid").text != first.text, 20, "a new worker")  # type: ignore[attr-defined]
            main.send_signal(signal.SIGTERM)
            assert main.wait(float(said["TimeoutStopSec"])) == 0
        finally:
            if main.poll() is None:
                main.kill()
                main.wait(10)


@pytest.mark.parametrize("which", [0, -1])
def test_kubernetes_knows_all_that_the_manifests_say(which: int) -> None:
    """By its own schemas, the oldest and the newest, which here refuse what they do not know."""
    require("kubernetes_validate")
    from kubernetes_validate import utils

    version = utils.all_versions()[which]
    manifests = list(yaml.safe_load_all(recipe("kubernetes.yaml", {})))
    for manifest in manifests:
        utils.validate(manifest, version, strict=True)
    manifests[0]["spec"]["template"]["spec"]["containers"][0]["readinessProb"] = {}
    with pytest.raises(utils.ValidationError, match="readinessProb"):
        utils.validate(manifests[0], version, strict=True)


def test_the_manifests_fit_together_and_to_the_app() -> None:
    """Probes ask routes that there are, and a pod has the time that its draining takes."""
    deployment, service, budget, ingress = yaml.safe_load_all(recipe("kubernetes.yaml", {}))
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    assert budget["spec"]["selector"]["matchLabels"] == labels
    (path,) = ingress["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"]["service"] == {"name": "noc", "port": {"name": "http"}}
    (container,) = template["spec"]["containers"]
    (port,) = container["ports"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    assert f"0.0.0.0:{port['containerPort']}" in container["command"]

    app = create()
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == port["name"]
        assert app.test_client().get(container[probe]["httpGet"]["path"]).status_code == 200
    app.extensions["noc_realtime"].process().close()

    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    graceful = number_in("gunicorn.conf.py", r"graceful_timeout = (\d+)")
    assert template["spec"]["terminationGracePeriodSeconds"] > wait + graceful
    assert number_in("noc.service", r"TimeoutStopSec=(\d+)") > graceful
    waits = ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-read-timeout"]
    assert int(waits) >= 4 * Config().heartbeat


def number_in(name: str, pattern: str) -> int:
    """Return the number that *pattern* finds in a recipe."""
    (number,) = re.findall(pattern, recipe(name, {}))
    return int(number)


def test_a_celery_task_reaches_the_streams(server: GunicornServer, tmp_path: Path) -> None:
    """From a process of the pool, which has no app."""
    require("celery")
    (tmp_path / "tasks.py").write_text(recipe("tasks.py", {}))
    url = server.env["NOC_REALTIME_URL"]
    env = {**server.env, "CELERY_BROKER_URL": url.replace("/0", "/1"), "PYTHONPATH": str(ROOT)}
    celery = [sys.executable, "-m", "celery", "-A", "tasks"]
    worker = [*celery, "worker", "-c", "1", "--without-gossip", "--without-mingle"]
    with SSEClient(server.address) as client, (tmp_path / "log").open("wb") as log:
        assert client.next_event().type == "stream.open"
        running = subprocess.Popen(worker, cwd=tmp_path, env=env, stdout=log, stderr=log)
        try:
            call = [*celery, "call", "tasks.restart", "--args", '["core-1"]']
            subprocess.run(call, cwd=tmp_path, env=env, check=True, timeout=60, capture_output=True)
            events = client.events_until(lambda e: e.type == "automation.completed", 60)
        finally:
            running.terminate()
            running.wait(30)
    said = [(e.type, e.json["data"]) for e in events if e.type.startswith("automation")]
    server_named = {"server": "core-1"}
    assert said == [("automation.started", server_named), ("automation.completed", server_named)]
