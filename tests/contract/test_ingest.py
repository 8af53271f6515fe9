"""What Alertmanager and signed webhooks post becomes events, once, with memory and with Redis."""

from __future__ import annotations

import functools
import io
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import redis
from flask import Flask

from flask_noc_realtime import Alert, NocRealtime, webhook
from flask_noc_realtime.event import Rule, split_record
from flask_noc_realtime.ingest import sign
from flask_noc_realtime.testing import capture
from tests.conftest import RedisFactory
from tests.contract.test_attacks import FRIEND, is_problem
from tests.contract.test_emitter import LossyProxy
from tests.emitted import emitted
from tests.redis_server import RedisServer

PREFIX = "/api/v1/events"
ALERTMANAGER, WEBHOOK = f"{PREFIX}/ingest/alertmanager", f"{PREFIX}/ingest/webhook"
TOKEN, SECRET = "of-alertmanager-alone", "of-the-webhooks-alone"
CREATED, UPDATED, CHANGED = "incident.created", "incident.updated", "incident.status.changed"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
EVENT = {"type": "log.added", "data": {"line": "web-1: link down"}}


class Told(NamedTuple):
    """An event as the broker has it."""

    type: str
    data: Any
    rule: Rule


class Site:
    """A worker of an app that ingests both ways."""

    def __init__(self, url: str, namespace: str, **config: Any) -> None:
        self.app = Flask("ingest")
        self.app.config.update(
            NOC_REALTIME_URL=url,
            NOC_REALTIME_NAMESPACE=namespace,
            NOC_REALTIME_HISTORY_EVENTS=20_000,
            NOC_REALTIME_INGEST_ALERTMANAGER_TOKEN=TOKEN,
            NOC_REALTIME_INGEST_SECRET=SECRET,
        )
        self.app.config.update(config)
        self.realtime = NocRealtime(self.app)
        self.client = self.app.test_client()

    @property
    def process(self) -> Any:
        """What the worker runs."""
        return self.app.extensions["noc_realtime"].process()

    def notify(self, *alerts: Any, headers: Any = BEARER, **changes: Any) -> Any:
        """Post a notification of Alertmanager."""
        return self.client.post(
            ALERTMANAGER, json=notification(*alerts, **changes), headers=headers
        )

    def send(self, payload: Any, timestamp: float | None = None, secret: str = SECRET) -> Any:
        """Post a signed webhook."""
        content = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        return self.client.post(
            WEBHOOK, data=content, headers=signature(content, timestamp, secret)
        )


def signature(content: bytes, timestamp: float | None = None, secret: str = SECRET) -> Any:
    """Return the headers of a signed webhook."""
    stamp = str(int(time.time() if timestamp is None else timestamp))
    return {
        "X-Noc-Timestamp": stamp,
        "X-Noc-Signature": "sha256=" + sign(secret.encode(), stamp, content),
    }


def alert(number: int = 1, **changes: Any) -> dict[str, Any]:
    """Return a firing alert as Alertmanager documents it."""
    return {
        "status": "firing",
        "labels": {
            "alertname": "InstanceDown",
            "instance": f"web-{number}.example:9100",
            "severity": "critical",
        },
        "annotations": {"summary": f"web-{number} is down"},
        "startsAt": "2026-01-01T09:52:26.739266876+02:00",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus.example:9090/graph?g0.expr=up+%3D%3D+0&g0.tab=1",
        "fingerprint": f"{number:016x}",
        **changes,
    }


def resolved(number: int = 1) -> dict[str, Any]:
    """Return that alert when it is over."""
    return alert(number, status="resolved", endsAt="2026-01-01T10:02:26.739266876+02:00")


def notification(*alerts: Any, **changes: Any) -> dict[str, Any]:
    """Return a body as Alertmanager documents it, with everything that is not used here."""
    firing = any(isinstance(each, dict) and each.get("status") == "firing" for each in alerts)
    return {
        "version": "4",
        "groupKey": '{}/{severity="critical"}:{alertname="InstanceDown"}',
        "truncatedAlerts": 0,
        "status": "firing" if firing else "resolved",
        "receiver": "noc",
        "groupLabels": {"alertname": "InstanceDown"},
        "commonLabels": {"alertname": "InstanceDown", "severity": "critical"},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager.example:9093",
        "alerts": alerts,
        **changes,
    }


@pytest.fixture(scope="module")
def server(module_redis_server: RedisFactory) -> RedisServer:
    """Return a Redis that the tests share, each with a namespace of its own."""
    return module_redis_server()


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    """Return where events travel."""
    if request.param == "memory":
        return "memory://"
    shared: RedisServer = request.getfixturevalue("server")
    return shared.url


only = functools.partial(pytest.mark.parametrize, "url", indirect=True)


@pytest.fixture
def make_site(url: str) -> Iterator[Callable[..., Site]]:
    """Return a factory of an app's workers, which are closed when the test is over."""
    sites: list[Site] = []
    namespace = secrets.token_hex(4)

    def make(url: str = url, **config: Any) -> Site:
        sites.append(Site(url, namespace, **config))
        return sites[-1]

    yield make
    for site in sites:
        site.process.close()


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """Return a worker."""
    return make_site()


def told(site: Site) -> list[Told]:
    """Return the events of an app so far, in their order."""
    config = site.app.config
    if config["NOC_REALTIME_URL"] == "memory://":
        return [Told(*event) for event in emitted(site.app)]
    with redis.Redis.from_url(config["NOC_REALTIME_URL"]) as client:
        rows = client.xrange(f"{{{config['NOC_REALTIME_NAMESPACE']}}}:log")
    records = [split_record(fields[b"r"]) for _, fields in rows if fields[b"r"]]
    return [Told(rule.type, json.loads(envelope)["data"], rule) for rule, envelope in records]


def types(site: Site) -> list[str]:
    """Return the types of the events so far."""
    return [event.type for event in told(site)]


def counts(answer: Any) -> tuple[int, int, int]:
    """Return what an answer says was accepted, published and failed."""
    assert answer.status_code == 202, answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    return answer.json["accepted"], answer.json["published"], answer.json["failed"]


# Alertmanager.


def test_an_alert_is_an_incident_until_it_is_resolved(site: Site) -> None:
    """With what it says of itself."""
    assert counts(site.notify(alert())) == (1, 1, 0)
    assert counts(site.notify(resolved())) == (1, 1, 0)
    created, changed = told(site)
    assert (created.type, changed.type) == (CREATED, CHANGED)
    assert created.data == {
        "fingerprint": "0000000000000001",
        "status": "firing",
        "severity": "critical",
        "labels": alert()["labels"],
        "annotations": {"summary": "web-1 is down"},
        "startsAt": "2026-01-01T09:52:26.739266876+02:00",
        "endsAt": None,
        "generatorURL": alert()["generatorURL"],
    }
    end = {"status": "resolved", "endsAt": "2026-01-01T10:02:26.739266876+02:00"}
    assert changed.data == {**created.data, **end}
    assert (created.rule.permissions, created.rule.user_id) == (None, None)


def test_a_notification_of_a_group_tells_what_is_new_of_it(site: Site) -> None:
    """Alertmanager sends the whole group whenever one of its alerts changes."""
    assert counts(site.notify(alert(1), alert(2))) == (2, 2, 0)
    worse = alert(2, annotations={"summary": "and its neighbours"})
    group = (alert(3), resolved(1), worse, alert(4), alert(4))
    assert counts(site.notify(*group)) == (5, 4, 0)
    assert counts(site.notify(*group)) == (5, 0, 0)
    assert [(event.type, int(event.data["fingerprint"], 16)) for event in told(site)] == [
        (CREATED, 1),
        (CREATED, 2),
        (CREATED, 3),
        (CHANGED, 1),
        (UPDATED, 2),
        (CREATED, 4),
    ]


def test_a_repeat_is_an_update_when_the_configured_time_is_over(
    make_site: Callable[..., Site],
) -> None:
    """With 0 each is; a resolved alert has nothing more to tell."""
    site = make_site(NOC_REALTIME_INGEST_REPEAT=0)
    for each in (alert(), alert(), resolved(), resolved()):
        assert site.notify(each).status_code == 202
    assert types(site) == [CREATED, UPDATED, CHANGED]


@only(["redis"])
def test_several_workers_tell_an_alert_once(make_site: Callable[..., Site]) -> None:
    """The Alertmanagers of a cluster may send the same at the same moment."""
    sites = [make_site() for _ in range(4)]
    burst = [alert(number) for number in range(500)]
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda site=site: answers.append(site.notify(*burst)))  # type: ignore[misc]
        for site in sites
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(counts(answer)[1] for answer in answers) == 500
    assert types(sites[0]) == [CREATED] * 500
    assert counts(sites[1].notify(resolved(7))) == (1, 1, 0)
    assert counts(sites[2].notify(resolved(7), alert(8))) == (2, 0, 0)


def test_ten_thousand_alerts_are_told_in_their_order(site: Site) -> None:
    """And once, though all of them come again."""
    burst = [alert(number) for number in range(10_000)]
    assert counts(site.notify(*burst)) == (10_000, 10_000, 0)
    assert counts(site.notify(*burst)) == (10_000, 0, 0)
    events = told(site)
    assert [int(event.data["fingerprint"], 16) for event in events] == list(range(10_000))


def test_others_have_a_turn_during_a_burst(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """After every two hundred alerts that are read, and that are told."""
    breaths: list[float] = []
    clock = SimpleNamespace(sleep=breaths.append, time=time.time)
    monkeypatch.setattr(webhook, "time", clock)
    site.notify(*(alert(number) for number in range(1000)))
    assert len(breaths) == 8
    assert all(breath > 0 for breath in breaths)


@only(["memory"])
def test_after_a_failure_in_between_the_rest_is_told(site: Site) -> None:
    """The broker went away in the third batch; the retry completes the notification."""

    @site.realtime.alert_mapper
    def map_alert(alert: Alert) -> Any:
        if alert.fingerprint == f"{450:016x}":
            site.process.broker.cut()
        return {"type": alert.type, "data": alert.fingerprint}

    burst = [alert(number) for number in range(600)]
    answer = site.notify(*burst)
    is_problem(answer, 503)
    assert int(answer.headers["Retry-After"]) >= 1
    site.process.broker.heal()
    assert len(told(site)) == 400
    site.realtime.alert_mapper(lambda alert: {"type": alert.type, "data": alert.fingerprint})
    assert counts(site.notify(*burst)) == (600, 200, 0)
    assert [int(event.data, 16) for event in told(site)] == list(range(600))


@only(["redis"])
def test_what_redis_took_though_its_answer_was_lost_is_not_told_again(
    make_site: Callable[..., Site], server: RedisServer
) -> None:
    """Neither of an alert nor of a webhook; and what it did not take is told."""
    direct = make_site()
    with LossyProxy(server.port) as proxy:
        site = make_site(f"redis://127.0.0.1:{proxy.port}/0")

        @site.realtime.alert_mapper
        def map_alert(alert: Alert) -> Any:
            # The next answer is that to the publishing of the batch.
            if alert.fingerprint == f"{250:016x}":
                proxy.lose_next_answer()
            return {"type": alert.type, "data": alert.fingerprint}

        burst = [alert(number) for number in range(600)]
        assert site.notify(alert(1000)).status_code == 202
        is_problem(site.notify(*burst), 503)
        assert proxy.lost
        assert len(told(direct)) == 401
        assert counts(direct.notify(*burst)) == (600, 200, 0)
        content = json.dumps(EVENT).encode()
        headers = signature(content)
        proxy.lose_next_answer()
        is_problem(site.client.post(WEBHOOK, data=content, headers=headers), 503)
        is_problem(direct.client.post(WEBHOOK, data=content, headers=headers), 409)
    assert types(direct) == [CREATED] * 601 + ["log.added"]


# Who may send.


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer of-alertmanager-alon",
        f"Bearer {TOKEN}x",
        f"Bearer {SECRET}",
        f"Token {TOKEN}",
        "Basic b2YtYWxlcnRtYW5hZ2VyLWFsb25lOng=",
        "Basic !!!",
        "Bearer \xe9\xff",
    ],
)
def test_without_the_token_nothing_is_told(site: Site, authorization: str | None) -> None:
    """A password in the place of the user's name is none."""
    headers = {} if authorization is None else {"Authorization": authorization}
    is_problem(site.notify(alert(), headers=headers), 401)
    assert told(site) == []


def test_the_token_may_be_a_password(site: Site) -> None:
    """As Alertmanager's basic_auth sends it, with any user name."""
    answer = site.client.post(ALERTMANAGER, json=notification(alert()), auth=("noc", TOKEN))
    assert counts(answer) == (1, 1, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"X-Noc-Signature": ""},
        {"X-Noc-Signature": "sha256="},
        {"X-Noc-Signature": "sha256=" + "0" * 64},
        {"X-Noc-Signature": "\xe9"},
        {"X-Noc-Timestamp": ""},
        {"X-Noc-Timestamp": "0"},
        {"X-Noc-Timestamp": "x"},
        signature(b"another body"),
        signature(json.dumps(EVENT).encode(), secret=TOKEN),
        signature(json.dumps(EVENT).encode(), timestamp=time.time() - 1000),
        signature(json.dumps(EVENT).encode(), timestamp=time.time() + 10_000),
    ],
)
def test_without_a_right_signature_nothing_is_told(site: Site, wrong: dict[str, str]) -> None:
    """Of that body, by that secret, of now."""
    content = json.dumps(EVENT).encode()
    headers = {**signature(content), **wrong}
    is_problem(site.client.post(WEBHOOK, data=content, headers=headers), 401)
    assert told(site) == []


@pytest.mark.parametrize("path", [ALERTMANAGER, WEBHOOK])
def test_without_a_secret_there_is_no_such_address(
    make_site: Callable[..., Site], path: str
) -> None:
    """By default neither is there; each has a secret of its own."""
    names = {ALERTMANAGER: "ALERTMANAGER_TOKEN", WEBHOOK: "SECRET"}
    site = make_site(**{f"NOC_REALTIME_INGEST_{names[path]}": ""})
    content = json.dumps(notification(alert())).encode()
    unknown = site.client.post(f"{PREFIX}/ingest/nothing", data=content)
    is_problem(unknown, 404)
    for method in ("POST", "GET", "OPTIONS", "PUT"):
        headers = {**BEARER, **signature(content)}
        answer = site.client.open(path, method=method, data=content, headers=headers)
        assert (answer.status_code, answer.text) == (404, unknown.text)
    assert told(site) == []


@pytest.mark.parametrize("path", [ALERTMANAGER, WEBHOOK])
def test_another_method_is_405(site: Site, path: str) -> None:
    """And says which one is meant."""
    for method in ("GET", "PUT", "DELETE"):
        answer = site.client.open(path, method=method, headers=BEARER)
        is_problem(answer, 405)
        assert answer.headers["Allow"] == "POST, OPTIONS"


def test_no_page_of_another_origin_may_send(site: Site) -> None:
    """Not even one that knows the token."""
    is_problem(site.notify(alert(), headers={**BEARER, "Origin": FRIEND}), 403)
    assert told(site) == []


def test_no_secret_reaches_a_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """At any level, whatever goes wrong."""
    caplog.set_level(logging.DEBUG)
    site.realtime.alert_mapper(lambda alert: {}[alert.type])
    assert counts(site.notify(alert())) == (1, 0, 1)
    site.notify(alert(), headers={"Authorization": f"Bearer {TOKEN}x"})
    site.notify(None)
    assert counts(site.send(EVENT)) == (1, 1, 0)
    site.send(b"{")
    state = site.app.extensions["noc_realtime"]
    for secret in (TOKEN, SECRET):
        assert secret not in caplog.text
        assert secret not in repr(state.config)


# What they send.


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"", "The body is not JSON."),
        (b'{"version": "4"', "The body is not JSON."),
        (notification(alert(), version="3"), "version is not '4', the version of"),
        (notification(alert(1), alert(2, status="pending")), "alerts[1].status is neither"),
        (notification(alert(1), alert(2, labels={"a": 1})), "alerts[1].labels does not map"),
    ],
)
def test_a_malformed_notification_is_refused_whole(site: Site, content: Any, detail: str) -> None:
    """And the sender is told what is wrong with it."""
    data = content if isinstance(content, bytes) else json.dumps(content)
    answer = site.client.post(ALERTMANAGER, data=data, headers=BEARER)
    is_problem(answer, 422)
    assert answer.json["detail"].startswith(detail)
    assert told(site) == []


@pytest.mark.parametrize(
    ("payload", "detail"),
    [
        (b"\xff", "The body is not JSON."),
        (7, "The body is not an object."),
        ([], "The body has no event."),
        ([EVENT, {**EVENT, "timestamp": 1}], "[1] has 'timestamp'; use data, permissions, "),
        ([EVENT, {**EVENT, "type": "no.such"}], "[1]: Unknown event type 'no.such'"),
        ([EVENT, {**EVENT, "type": "stream.close"}], "[1]: 'stream.close' is a control event"),
        ({**EVENT, "type": 7}, "The body: 7 is not an event type"),
        ({**EVENT, "permissions": []}, "The body: permissions is empty"),
        ({**EVENT, "permissions": [1]}, "The body: permissions is [1]"),
        ({**EVENT, "user_id": 7}, "The body: user_id is 7"),
        ({**EVENT, "data": ["\ud800"]}, "The body: The event is not JSON: data[0] holds half"),
        ([EVENT, {**EVENT, "data": "x" * 300_000}], "[1]: The event 'log.added' takes 300"),
    ],
)
def test_a_malformed_event_is_refused_with_all_others(
    site: Site, payload: Any, detail: str
) -> None:
    """And the sender is told which, and may send it again when it is mended."""
    for _ in range(2):
        answer = site.send(payload)
        is_problem(answer, 422)
        assert answer.json["detail"].startswith(detail)
    assert told(site) == []


def chunked(site: Site, path: str, content: bytes, headers: Any) -> Any:
    """Post a body as servers hand it on that came in chunks: its length is not known."""
    environ = {"wsgi.input": io.BytesIO(content), "wsgi.input_terminated": True}
    return site.client.post(path, headers=headers, environ_overrides=environ)


@pytest.mark.parametrize("path", [ALERTMANAGER, WEBHOOK])
def test_an_oversize_body_is_refused_however_it_is_sent(
    make_site: Callable[..., Site], path: str
) -> None:
    """With its length said before, or in chunks; one of just that size is taken."""
    payload = notification(alert()) if path == ALERTMANAGER else EVENT
    exact = json.dumps(payload).encode().ljust(4096)
    site = make_site(NOC_REALTIME_INGEST_MAX_BYTES=4096, MAX_CONTENT_LENGTH=100)
    for content in (exact + b" ", exact + b" " * 100_000):
        headers = {**BEARER, **signature(content)}
        is_problem(site.client.post(path, data=content, headers=headers), 413)
        is_problem(chunked(site, path, content, headers), 413)
    assert told(site) == []
    headers = {**BEARER, **signature(exact)}
    assert counts(chunked(site, path, exact, headers)) == (1, 1, 0)
    assert site.client.post(path, data=exact, headers=headers).status_code in (202, 409)


def test_other_routes_take_no_more_than_before(site: Site) -> None:
    """A burst is for these two alone."""
    is_problem(site.client.post(f"{PREFIX}/connect", data=b"x" * 65_537), 413)
    is_problem(site.client.post(f"{PREFIX}/ingest/nothing", data=b"x" * 65_537), 413)
    assert site.client.post(ALERTMANAGER, data=b"x" * 65_537, headers=BEARER).status_code == 422


def test_a_body_that_a_hook_of_the_app_has_read_is_read_again(site: Site) -> None:
    """Old apps log what they are sent."""
    site.app.before_request(lambda: site.app.logger.debug("%d", len(webhook.request.get_data())))
    assert counts(site.notify(alert())) == (1, 1, 0)
    assert counts(site.send(EVENT)) == (1, 1, 0)


# Signed webhooks.


def test_a_webhook_emits_one_event_or_several(site: Site) -> None:
    """In their order, seen by whom they say."""
    assert counts(site.send(EVENT)) == (1, 1, 0)
    both = {**EVENT, "type": "notification.sent", "permissions": ["b", "a"], "user_id": "7"}
    assert counts(site.send([both, {**EVENT, "permissions": None}])) == (2, 2, 0)
    first, second, third = told(site)
    assert (first.type, first.data) == ("log.added", EVENT["data"])
    assert (second.rule.permissions, second.rule.user_id) == ({"a", "b"}, "7")
    assert (third.rule.permissions, third.rule.user_id) == (None, None)


def test_a_webhook_is_accepted_once(make_site: Callable[..., Site], url: str) -> None:
    """On whichever worker, and however its signature is spelt; a new timestamp makes a new one."""
    one = make_site()
    two = one if url == "memory://" else make_site()
    now = time.time()
    assert counts(one.send([EVENT, EVENT], now)) == (2, 2, 0)
    for site in (one, two):
        is_problem(site.send([EVENT, EVENT], now), 409)
    content = json.dumps([EVENT, EVENT]).encode()
    headers = signature(content, now)
    headers["X-Noc-Signature"] = headers["X-Noc-Signature"].removeprefix("sha256=")
    is_problem(two.client.post(WEBHOOK, data=content, headers=headers), 409)
    headers["X-Noc-Signature"] = headers["X-Noc-Signature"].upper()
    is_problem(two.client.post(WEBHOOK, data=content, headers=headers), 401)
    assert counts(two.send([EVENT, EVENT], now + 1)) == (2, 2, 0)
    assert len(told(one)) == 4


def test_of_simultaneous_replays_one_is_accepted(site: Site) -> None:
    """Whichever comes first."""
    content, answers = json.dumps(EVENT).encode(), []
    headers = signature(content)

    def send() -> None:
        client = site.app.test_client()
        answers.append(client.post(WEBHOOK, data=content, headers=headers).status_code)

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answers) == [202] + [409] * 7
    assert types(site) == ["log.added"]


def test_a_large_webhook_is_told_in_parts_that_pass(site: Site) -> None:
    """In order; what is more than a round trip takes goes in several."""
    events = [{**EVENT, "data": {"n": n, "x": "x" * 100_000}} for n in range(40)]
    assert counts(site.send(events)) == (40, 40, 0)
    assert [event.data["n"] for event in told(site)] == list(range(40))


# What the app says.


def test_who_may_see_what_is_ingested_is_configured(make_site: Callable[..., Site]) -> None:
    """Unless the event itself says so."""
    site = make_site(NOC_REALTIME_INGEST_PERMISSIONS=["Incidents.Read", "admin"])
    site.notify(alert())
    site.send([EVENT, {**EVENT, "permissions": ["logs"]}, {**EVENT, "permissions": None}])
    default = {"Incidents.Read", "admin"}
    assert [event.rule.permissions for event in told(site)] == [
        default,
        default,
        {"logs"},
        default,
    ]


def test_the_app_may_map_alerts_itself(make_site: Callable[..., Site]) -> None:
    """To an event of its own, for whom it likes, or to none."""
    site = make_site(NOC_REALTIME_INGEST_PERMISSIONS="incidents.read")
    site.realtime.register_type("link.flapped")
    seen: list[Alert] = []

    @site.realtime.alert_mapper
    def map_alert(alert: Alert) -> Any:
        seen.append(alert)
        if alert.labels["instance"].startswith("web-2."):
            return None
        team = ["team.web"] if alert.status == "firing" else None
        return {"type": "link.flapped", "data": alert.type, "permissions": team, "user_id": "7"}

    assert counts(site.notify(alert(1), alert(2))) == (2, 1, 0)
    assert counts(site.notify(alert(1), resolved(2), resolved(1))) == (3, 1, 0)
    assert [each.fingerprint[-1] for each in seen] == ["1", "2", "2", "1"]
    first, second = told(site)
    assert (first.type, first.data) == ("link.flapped", CREATED)
    assert (first.rule.permissions, first.rule.user_id) == ({"team.web"}, "7")
    assert (second.data, second.rule.permissions) == (CHANGED, {"incidents.read"})


@pytest.mark.parametrize(
    "mapped",
    [
        lambda alert: {}["team"],
        lambda alert: {"type": "no.such", "data": 1},
        lambda alert: {"type": CREATED},
        lambda alert: {"type": CREATED, "data": 1, "to": "all"},
        lambda alert: {"type": CREATED, "data": object()},
        lambda alert: (CREATED, 1),
    ],
)
def test_an_alert_that_cannot_be_mapped_is_left_out_and_logged(
    site: Site, mapped: Callable[[Alert], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The sender can do nothing about it, and the others are told; later it has another chance."""

    @site.realtime.alert_mapper
    def map_alert(alert: Alert) -> Any:
        wrong = alert.fingerprint[-1] in "23"
        return mapped(alert) if wrong else {"type": alert.type, "data": alert.fingerprint[-1]}

    assert counts(site.notify(*(alert(number) for number in range(1, 5)))) == (4, 2, 2)
    assert [event.data for event in told(site)] == ["1", "4"]
    first, rest = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert first.getMessage() == f"No 'incident.created' of '{2:016x}' was emitted."
    assert first.exc_info
    assert rest.getMessage() == "2 alerts were not emitted; the first is above."
    site.realtime.alert_mapper(lambda alert: {"type": alert.type, "data": alert.fingerprint[-1]})
    assert counts(site.notify(alert(1), alert(2))) == (2, 1, 0)
    assert told(site)[-1][:2] == (CREATED, "2")


def test_an_app_that_wants_its_errors_gets_them(make_site: Callable[..., Site]) -> None:
    """The sender gets the app's 500, tries again, and nothing is told twice."""
    site = make_site(NOC_REALTIME_EMIT_ERRORS="raise")
    site.app.config["PROPAGATE_EXCEPTIONS"] = False
    site.realtime.alert_mapper(lambda alert: {}[alert.type])
    assert site.notify(alert()).status_code == 500
    assert told(site) == []


def test_nothing_is_ingested_while_the_app_is_muted(site: Site) -> None:
    """And nothing is remembered as said."""
    with site.realtime.muted():
        assert counts(site.notify(alert())) == (1, 0, 0)
        now = time.time()
        assert counts(site.send(EVENT, now)) == (1, 0, 0)
    assert told(site) == []
    assert counts(site.notify(alert())) == (1, 1, 0)
    assert counts(site.send(EVENT, now)) == (1, 1, 0)


def test_the_tests_of_an_app_see_what_is_ingested(site: Site) -> None:
    """As whatever else it emits."""
    with capture() as events:
        site.notify(alert())
        site.notify(alert())
        site.send(EVENT)
    assert events.types == [CREATED, "log.added"]
    assert all(event.position for event in events)


def test_while_the_broker_is_away_the_sender_is_to_try_again(
    make_site: Callable[..., Site], url: str
) -> None:
    """Nothing waits here: Alertmanager itself repeats what was answered with 503."""
    site = make_site("redis://127.0.0.1:1/0" if url != "memory://" else url)
    if url == "memory://":
        site.process.broker.cut()
    for answer in (site.notify(alert()), site.send(EVENT)):
        is_problem(answer, 503)
        assert int(answer.headers["Retry-After"]) >= 1
