"""Who may have a stream, how many, and for how long: on two real workers with one Redis."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from flask import Flask

from flask_noc_realtime import NocRealtime
from tests.conftest import GunicornFactory, RedisFactory
from tests.gunicorn_server import GunicornServer
from tests.processes import wait_until
from tests.redis_server import RedisServer
from tests.server.client import Site
from tests.sse_client import SSEClient

APP = "tests.server.transport_apps:create_app()"
LEASE = 2.0
PROMPT = 1.0
SOON = ("2", "3", "4")


class Cluster:
    """Two workers and their Redis."""

    def __init__(self, server: GunicornServer, redis: RedisServer, stack: ExitStack) -> None:
        self.server = server
        self.redis = redis
        self.site = Site(server.address)
        self._stack = stack

    def stream(self, user: str, query: str = "", **headers: str) -> SSEClient:
        """Ask for a stream as *user*."""
        sent = {
            "X-User": user,
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        client = self.site.stream(query, headers=sent)
        self._stack.callback(client.close)
        return client

    def live(self, user: str, query: str = "", **headers: str) -> SSEClient:
        """Return a stream of *user* that has begun."""
        client = self.stream(user, query, **headers)
        assert client.status == 200, client.problem()
        assert client.next_event().type == "stream.open"
        return client

    def live_on(self, worker: int, user: str) -> SSEClient:
        """Return a stream of *user* that *worker* serves; others are closed again."""
        while True:
            client = self.stream(user)
            if client.status == 200 and int(client.headers["x-worker"]) == worker:
                assert client.next_event().type == "stream.open"
                return client
            self.give_back(client, user)

    def give_back(self, client: SSEClient, user: str) -> None:
        """Close *client*; its place, if it had one, is free on return."""
        held = self.held(user)
        client.close()
        if held and client.status == 200:
            wait_until(lambda: self.held(user) < held, PROMPT, "the place is free")

    def ask_worker(self, worker: int, user: str) -> SSEClient:
        """Ask *worker* for a stream of *user*, whatever it says."""
        while True:
            client = self.stream(user)
            if int(client.headers["x-worker"]) == worker:
                return client
            client.close()

    def held(self, user: str) -> int:
        """Return how many places of *user* Redis knows."""
        places: int = self.redis.client().hlen(f"{{noc}}:streams:{user}")
        return places


@pytest.fixture
def cluster(
    request: pytest.FixtureRequest, redis_server: RedisFactory, gunicorn: GunicornFactory
) -> Iterator[Cluster]:
    """Return two workers with a limit of three; more settings by `settings`."""
    redis = redis_server()
    settings = {"MAX_STREAMS_PER_USER": "3", "LEASE": str(LEASE), "URL": redis.url}
    settings |= getattr(request, "param", {})
    env = {f"NOC_REALTIME_{key}": value for key, value in settings.items()}
    with ExitStack() as stack:
        yield Cluster(gunicorn(APP, workers=2, env=env), redis, stack)


def settings(**values: str) -> pytest.MarkDecorator:
    """Have the `cluster` of a test configured so."""
    return pytest.mark.parametrize("cluster", [values], indirect=True, ids=[""])


def ended(client: SSEClient, timeout: float = PROMPT) -> str:
    """Return the reason a stream gives for its end, which is the last it says."""
    reason: str = client.until_end(timeout)[-1].json["reason"]
    return reason


def test_the_fourth_stream_is_refused_whichever_worker_it_reaches(cluster: Cluster) -> None:
    """429, Retry-After, and a problem body; other users have their own three."""
    one, other = cluster.server.worker_pids()
    for worker in (one, other, one):
        cluster.live_on(worker, "7")
    for worker in (one, other):
        refused = cluster.ask_worker(worker, "7")
        assert refused.status == 429
        assert refused.headers["retry-after"] in SOON
        assert refused.headers["content-type"] == "application/problem+json"
        assert "3 streams" in refused.problem()["detail"]
    cluster.live("8")


def test_a_closed_stream_makes_room_at_once(cluster: Cluster) -> None:
    """The place is given back when the connection ends, not when a lease lapses."""
    streams = [cluster.live("7") for _ in range(3)]
    for client in streams:
        client.close()
        begun = time.monotonic()
        wait_until(lambda: cluster.stream("7").status == 200, PROMPT, "there is room")
        assert time.monotonic() - begun < LEASE / 2


def test_the_places_of_a_killed_worker_are_free_within_the_lease(cluster: Cluster) -> None:
    """SIGKILL gives nothing back; those of the living still count."""
    one, other = cluster.server.worker_pids()
    cluster.live_on(one, "7")
    cluster.live_on(one, "7")
    cluster.live_on(other, "7")
    os.kill(one, signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: other in cluster.server.worker_pids(), 5, "the other lives")
    assert cluster.ask_worker(other, "7").status == 429
    opened: list[SSEClient] = []

    def two_more() -> bool:
        client = cluster.ask_worker(other, "7")
        opened.extend([client] if client.status == 200 else [])
        return len(opened) == 2

    wait_until(two_more, LEASE + PROMPT, "two places are free")
    assert LEASE / 3 < time.monotonic() - killed < LEASE + PROMPT
    assert cluster.ask_worker(other, "7").status == 429


@settings(STREAM_LIMIT="evict")
def test_the_oldest_stream_gives_way_whichever_worker_serves_it(cluster: Cluster) -> None:
    """It is told why, within a second, and the others go on."""
    one, other = cluster.server.worker_pids()
    streams = [cluster.live_on(worker, "7") for worker in (one, other, one)]
    for worker in (other, one, other):
        streams.append(cluster.live_on(worker, "7"))
        assert ended(streams.pop(0)) == "evicted"
    cluster.site.emit("incident.created", {"id": 1})
    for client in streams:
        assert client.next_event().type == "incident.created"


@pytest.mark.parametrize(
    ("how", "reason"), [("disconnect", "disconnected"), ("refresh", "refresh")]
)
def test_every_stream_of_a_user_ends_on_both_workers_within_a_second(
    cluster: Cluster, how: str, reason: str
) -> None:
    """And nobody else's."""
    workers = cluster.server.worker_pids()
    streams = [cluster.live_on(worker, "7") for worker in workers]
    others = [cluster.live_on(worker, "8") for worker in workers]
    cluster.site.post(f"/{how}", {"user_id": "7", "then": []})
    assert [ended(client) for client in streams] == [reason, reason]
    assert all(client.silent_for(0.2) for client in others)
    cluster.site.emit("incident.created", {"id": 1})
    for client in others:
        assert client.next_event().type == "incident.created"


def test_what_is_emitted_after_a_refresh_is_seen_with_the_new_rights_only(
    cluster: Cluster,
) -> None:
    """The old streams end before it; one that returns misses nothing it may see."""
    before = {"X_Permissions": "incidents.read"}
    after = {"X_Permissions": "logs.read"}
    workers = cluster.server.worker_pids()
    streams = [cluster.live_on(worker, "7") for worker in workers]
    for client in streams:
        client.close()
    wait_until(lambda: cluster.held("7") == 0, PROMPT, "the places are given back")
    for number in range(20):
        streams = [cluster.live("7", **before) for _ in range(3)]
        seen = cluster.site.emit("incident.created", {"n": number}, permissions=["incidents.read"])
        events = [
            {"type": "incident.created", "data": {"n": number}, "permissions": ["incidents.read"]},
            {"type": "log.added", "data": {"n": number}, "permissions": ["logs.read"]},
        ]
        cluster.site.post("/refresh", {"user_id": "7", "then": events})
        for client in streams:
            last = client.until_end(PROMPT)
            # One that heard of both at once ends first, and is given the event when it returns.
            given = [event.id for event in last if event.type == "incident.created"]
            assert given == [seen] * (len(last) - 1)
            assert (last[-1].type, last[-1].json["reason"]) == ("stream.close", "refresh")
            client.close()
        wait_until(lambda: cluster.held("7") == 0, PROMPT, "the places are given back")
        back = cluster.live("7", f"?last_event_id={last[-1].id}", **after)
        assert back.next_event().type == "log.added"
        assert back.silent_for(0.02)
        back.close()
        wait_until(lambda: cluster.held("7") == 0, PROMPT, "the places are given back")


def connect(cluster: Cluster, user: str) -> Any:
    """Return a ticket and the URL it opens."""
    answer: Any = cluster.site.ask("POST", "/api/v1/events/connect", headers={"X-User": user})
    assert answer.status == 200
    return json.loads(answer.text) | {"worker": int(answer.headers["X-Worker"])}


def test_a_ticket_opens_one_stream_on_any_worker(cluster: Cluster) -> None:
    """It stands for the identity it was issued to, and is used up."""
    crossed = False
    for number in range(200):
        ticket = connect(cluster, "7")
        with SSEClient(cluster.server.address, ticket["url"]) as client:
            assert client.status == 200
            crossed = crossed or int(client.headers["x-worker"]) != ticket["worker"]
            position = cluster.site.emit("incident.created", {"n": number}, user_id="7")
            assert client.events_until(lambda e: e.type == "incident.created")[-1].id == position
            with SSEClient(cluster.server.address, ticket["url"]) as again:
                assert (again.status, again.problem()["title"]) == (401, "Unauthorized")
        wait_until(lambda: cluster.held("7") == 0, PROMPT, "the place is given back")
        if crossed:
            break
    assert crossed, "no ticket was used on the worker that did not issue it"


def test_a_ticket_is_void_once_its_user_was_disconnected(cluster: Cluster) -> None:
    """What was granted before is withdrawn with the streams."""
    ticket = connect(cluster, "7")
    other = connect(cluster, "8")
    cluster.site.post("/disconnect", {"user_id": "7", "then": []})
    statuses = {}
    for name, each in (("7", ticket), ("8", other)):
        with SSEClient(cluster.server.address, each["url"]) as client:
            statuses[name] = client.status
    # A worker that has not heard of it yet lets the stream in and ends it when it does.
    if statuses["7"] == 200:
        assert ended(client) == "disconnected"
    else:
        assert statuses["7"] == 401
    assert statuses["8"] == 200


@settings(TICKET_TTL="1")
def test_a_ticket_lapses(cluster: Cluster) -> None:
    """It must be used soon."""
    ticket = connect(cluster, "7")
    key = cluster.redis.client().keys("{noc}:kept:*")
    assert len(key) == 1
    wait_until(lambda: not cluster.redis.client().exists(key[0]), 3, "Redis forgets it")
    with SSEClient(cluster.server.address, ticket["url"]) as client:
        assert client.status == 401


@pytest.mark.parametrize("cluster", [{"TRANSPORT": "portable"}, {}], indirect=True, ids=str)
def test_a_stream_ends_with_its_identity(cluster: Cluster) -> None:
    """It says why, and does not go on for a moment with rights that are over."""
    client = cluster.live("7", X_Expires_In="1.5")
    begun = time.monotonic()
    assert ended(client, 3) == "expired"
    assert 0.8 < time.monotonic() - begun < 2.0
    wait_until(lambda: cluster.held("7") == 0, PROMPT, "the place is given back")
    late = cluster.stream("7", X_Expires_In="-1")
    assert (late.status, late.problem()["title"]) == (401, "Unauthorized")


def test_a_client_that_does_not_read_is_closed_all_the_same(cluster: Cluster) -> None:
    """Its bytes wait in the kernel, and it would otherwise hold its place for ever."""
    client = cluster.live("7", X_Expires_In="1.5")
    cluster.site.burst("log.added", 0, 400, size=50_000)
    wait_until(lambda: cluster.held("7") == 0, 4, "the place is given back")
    with pytest.raises((EOFError, ConnectionError)):
        while True:
            client.next_event()


@settings(MAX_STREAMS="2", MAX_STREAMS_PER_USER="0")
def test_a_worker_that_is_full_says_so(cluster: Cluster) -> None:
    """503 with Retry-After: a balancer or the client tries again."""
    one, other = cluster.server.worker_pids()
    for worker in (one, one, other, other):
        cluster.live_on(worker, str(worker))
    refused = cluster.stream("9")
    assert refused.status == 503
    assert refused.headers["retry-after"] in SOON
    assert "2 streams" in refused.problem()["detail"]


def test_head_takes_no_place(cluster: Cluster) -> None:
    """It asks what a GET would be answered with, and opens nothing."""
    for _ in range(5):
        answer: Any = cluster.site.ask("HEAD", "/api/v1/events/stream", headers={"X-User": "7"})
        assert (answer.status, answer.headers["Content-Type"][:17]) == (200, "text/event-stream")
    wait_until(lambda: cluster.held("7") == 0, PROMPT, "no place is taken")


def test_a_worker_that_leaves_gives_its_places_back(cluster: Cluster) -> None:
    """Browsers come back before a lease could lapse."""
    streams = [cluster.live("7") for _ in range(3)]
    cluster.server.send_signal(signal.SIGHUP)
    assert {ended(client, 10) for client in streams} == {"shutdown"}
    wait_until(lambda: cluster.stream("7").status == 200, PROMPT, "there is room again")


@pytest.fixture
def operator(cluster: Cluster) -> Iterator[NocRealtime]:
    """Return the extension of a process beside the workers, as the command line is one."""
    app = Flask("operator")
    app.config["NOC_REALTIME_URL"] = cluster.redis.url
    yield NocRealtime(app)
    app.extensions["noc_realtime"].process().close()


# A portable stream gives its place back only when it is written to.
@pytest.mark.parametrize(
    "cluster",
    [{"TRANSPORT": "portable", "MAX_STREAMS_PER_USER": "0"}, {"TRANSPORT": "detached"}],
    indirect=True,
    ids=lambda settings: settings["TRANSPORT"],
)
def test_a_rollout_reaches_both_workers_within_a_second(
    cluster: Cluster, operator: NocRealtime
) -> None:
    """User 8 has place 8363 of 10,000, and is moved out and in again; user 7, before it, stays."""
    workers = cluster.server.worker_pids()
    staying = [cluster.live_on(worker, "7") for worker in workers]
    leaving = [cluster.live_on(worker, "8") for worker in workers]
    operator.rollout(75)
    assert [ended(client) for client in leaving] == ["rollout", "rollout"]
    for worker in workers:
        left = cluster.ask_worker(worker, "8")
        assert (left.status, left.headers["x-noc-rollout"]) == (204, "polling")
    wait_until(lambda: cluster.held("8") == 0, PROMPT, "the places are given back")
    assert all(client.silent_for(0.1) for client in staying)
    operator.rollout(90)
    told: set[int] = set()

    def both_told() -> bool:
        answer = poll(cluster, "", **{"X-User": "8"})
        told.update([int(answer.headers["X-Worker"])] if json.loads(answer.text)["stream"] else [])
        return told == set(workers)

    wait_until(both_told, 5, "both workers let user 8 in again")
    for worker in workers:
        assert cluster.live_on(worker, "8").status == 200
    cluster.site.emit("incident.created", {"id": 1})
    for client in staying:
        assert client.next_event().type == "incident.created"


def poll(cluster: Cluster, query: str, **headers: str) -> Any:
    """Return the answer to a poll of user 7."""
    sent = {"X-User": "7", "X-Permissions": "incidents.read", **headers}
    return cluster.site.ask("GET", f"/api/v1/events/poll{query}", headers=sent)


def test_a_poll_waits_for_an_event_it_may_show(cluster: Cluster) -> None:
    """At most as long as it was asked to, and not for those of others."""
    now = json.loads(poll(cluster, "").text)
    assert now["events"] == [] and now["reset"] is None
    begun = time.monotonic()
    query = f"?after={now['position']}&wait="
    assert json.loads(poll(cluster, query + "0.3").text)["events"] == []
    assert 0.3 <= time.monotonic() - begun < 1.5
    cluster.site.emit("log.added", {"n": 1}, permissions=["logs.read"])
    with ExitStack() as stack:
        from concurrent.futures import ThreadPoolExecutor

        pool = stack.enter_context(ThreadPoolExecutor(1))
        waiting = pool.submit(poll, cluster, query + "20")
        wait_until(lambda: not waiting.done(), 1, "it waits")
        cluster.site.emit("log.added", {"n": 2}, permissions=["logs.read"])
        position = cluster.site.emit("incident.created", {"n": 3}, permissions=["incidents.read"])
        answer = waiting.result(5)
    body = json.loads(answer.text)
    assert [(event["id"], event["data"]) for event in body["events"]] == [(position, {"n": 3})]
    assert body["position"] == position


def test_a_poll_of_what_did_not_change_is_304(cluster: Cluster) -> None:
    """The browser's own cache asks with the ETag."""
    first = json.loads(poll(cluster, "").text)
    query = f"?after={first['position']}"
    answer = poll(cluster, query)
    etag = answer.headers["ETag"]
    same = poll(cluster, query, **{"If-None-Match": etag})
    assert (same.status, same.text) == (304, b"")
    assert poll(cluster, query, **{"If-None-Match": etag, "X-User": "8"}).status == 200
    cluster.site.emit("incident.created", {"n": 1})

    def changed() -> bool:
        return bool(poll(cluster, query, **{"If-None-Match": etag}).status == 200)

    wait_until(changed, PROMPT, "both workers know the event")


class Polled:
    """One worker, and sockets that ask it for long polls."""

    def __init__(self, server: GunicornServer, stack: ExitStack) -> None:
        self.server = server
        self.site = Site(server.address)
        self._stack = stack

    def ask(self, seconds: int = 25) -> socket.socket:
        """Return the connection of a poll of user 7 that may wait for *seconds*."""
        after = self.site.ask("GET", "/state").headers["X-Noc-Position"]
        client = socket.create_connection(self.site.address, timeout=20)  # type: ignore[arg-type]
        self._stack.callback(client.close)
        head = f"GET /api/v1/events/poll?after={after}&wait={seconds} HTTP/1.1"
        client.sendall(f"{head}\r\nHost: localhost\r\nX-User: 7\r\n\r\n".encode())
        return client

    def waits(self, count: int) -> None:
        """Wait until *count* polls do."""
        wait_until(lambda: self.site.state()["waiting"] == count, 10, f"{count} polls wait")


@pytest.fixture(params=[("gevent", "--worker-connections"), ("gthread", "--threads")], ids=str)
def polled(request: pytest.FixtureRequest, gunicorn: GunicornFactory) -> Iterator[Polled]:
    """Return a worker that can answer eight at a time, three of them long polls of one user."""
    worker_class, option = request.param
    env = {"NOC_REALTIME_MAX_STREAMS_PER_USER": "3"}
    server = gunicorn(APP, worker_class=worker_class, args=[option, "8"], env=env)
    with ExitStack() as stack:
        yield Polled(server, stack)


def test_long_polls_hold_up_nobody_and_end_with_their_clients_and_their_worker(
    polled: Polled,
) -> None:
    """One user asks for more than the server has threads; who has gone holds none, and no exit."""
    clients = [polled.ask() for _ in range(12)]
    polled.waits(3)
    for client in clients:
        client.close()
    begun = time.monotonic()
    polled.waits(0)
    assert time.monotonic() - begun < 10
    client = polled.ask()
    polled.waits(1)
    begun = time.monotonic()
    assert polled.server.stop() == 0
    assert time.monotonic() - begun < 10
    assert client.recv(65536).startswith(b"HTTP/1.1 200 OK")
