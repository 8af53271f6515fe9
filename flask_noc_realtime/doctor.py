"""What is wrong with what an app runs in, and what to do about it.

A check is a function of facts that others gathered; it knows no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from .errors import BrokerUnavailable
from .surroundings import COMPUTED, RedisFacts, Surroundings, Workers
from .visit import Visit

OK, WARN, FAIL = "ok", "warn", "fail"

_OLDEST = {"gunicorn": "21.2", "gevent": "24.10.1"}
_OLDEST_REDIS = "6.2"
_OTHER_FILES = 200
"""What a worker has open beside its streams, and room to spare."""
_SILENCE = 30.0
"""Seconds after which the first balancers end what is silent."""
_FULL = 0.8
_SLOW_REDIS = 0.02
_BUFFERED_EVENTS = 32
_SLOW_OPEN = 1.0
_LATE = 1.25
_LATE_SECONDS = 1.0
_AFFINITY = re.compile(
    r"\b(AWSALB\w*|AWSELB\w*|BIGipServer\S*?|GCLB|INGRESSCOOKIE|ROUTEID|SERVERID|SRV|route|sticky)=",
    re.I,
)

_USE_GEVENT = (
    "Run `gunicorn -k gevent`, or set worker_class = 'gevent' in gunicorn.conf.py. If its command "
    "line says so, there is nothing to do."
)
_UNBUFFERED = (
    "Let the proxy pass on X-Accel-Buffering, or switch its buffering off for this path; "
    "middleware must not collect the body."
)


class Finding(NamedTuple):
    """What a check found.

    :ivar level: ``ok``, ``warn`` or ``fail``.
    :ivar what_to_do: empty where there is nothing to do.
    """

    level: str
    what: str
    what_to_do: str = ""


# The app, and the machine it is on.


def check_versions(here: Surroundings) -> Finding:
    """Tell whether gunicorn and gevent are there, and new enough."""
    named = " and ".join(f"{name} {version or '(none)'}" for name, version in here.versions.items())
    old = [name for name, version in here.versions.items() if _older(version, _OLDEST[name])]
    if old:
        wanted = " ".join(f"'{name}>={_OLDEST[name]}'" for name in old)
        return Finding(FAIL, f"Installed: {named}.", f"pip install --upgrade {wanted}")
    return Finding(OK, f"Installed: {named}.")


def check_worker_class(here: Surroundings) -> Finding:
    """Tell whether a stream costs a file descriptor, a thread, or a whole worker."""
    kind = here.settings.get("worker_class", "")
    threads = _number(here.settings.get("threads", 1))
    if kind == COMPUTED or (kind != "gevent" and here.settings.get("threads") == COMPUTED):
        return Finding(WARN, "gunicorn.conf.py computes the worker class.", _USE_GEVENT)
    if kind == "gthread" or (kind in ("", "sync") and threads > 1):
        return _judge_threads(threads, here.streams)
    if kind == "gevent" and not here.settings.get("certfile"):
        return Finding(OK, "The worker class is gevent: it patches, and streams are detached.")
    level, what, what_to_do = _WORKER_CLASSES.get(kind, _ANOTHER_CLASS)
    return Finding(level, what.format(kind), what_to_do)


_WORKER_CLASSES = {
    "": Finding(
        WARN,
        "Neither GUNICORN_CMD_ARGS nor gunicorn.conf.py names a worker class; by itself gunicorn "
        "takes sync, where one stream holds up a whole worker.",
        _USE_GEVENT,
    ),
    "sync": Finding(
        FAIL, "The worker class is sync: one stream holds up a whole worker.", _USE_GEVENT
    ),
    "gevent": Finding(
        WARN,
        "gunicorn ends TLS itself: each stream holds a greenlet of the worker.",
        "End TLS in a proxy in front of it.",
    ),
}
_ANOTHER_CLASS = Finding(
    WARN,
    "The worker class is {}: unless it is made from gunicorn's gevent, each stream holds a thread "
    "or greenlet.",
    _USE_GEVENT,
)


def _judge_threads(threads: int, streams: int) -> Finding:
    what = f"gunicorn has {threads} threads a worker, and each stream holds one"
    if threads <= streams:
        return Finding(FAIL, f"{what}: {streams} streams leave none for pages.", _USE_GEVENT)
    return Finding(WARN, f"{what}.", _USE_GEVENT)


def check_broker(here: Surroundings) -> Finding:
    """Tell whether events reach the streams of every worker."""
    if here.config.url != "memory://":
        return Finding(OK, "Events travel through Redis, to every worker.")
    workers = here.settings.get("workers", COMPUTED)
    if _number(workers) == 1:
        return Finding(OK, "Events stay in memory, in the one worker there is.")
    what = "Events stay in memory: each reaches the streams of one worker"
    what_to_do = "Set NOC_REALTIME_URL to the URL of a Redis, or run one worker."
    if workers == COMPUTED:
        return Finding(WARN, f"{what}, and it does not show here how many there are.", what_to_do)
    return Finding(FAIL, f"{what}, and gunicorn runs {workers}.", what_to_do)


def check_identity(here: Surroundings) -> Finding:
    """Tell whether anybody can have a stream."""
    if here.identifies:
        return Finding(OK, "The app can tell who asks for a stream.")
    if here.config.allow_anonymous:
        return Finding(OK, "Anybody may have a stream of the events without permissions.")
    return Finding(
        FAIL,
        "The app cannot tell who asks: it answers every stream with 401.",
        "Register a function with @realtime.identity_loader, use Flask-JWT-Extended, or set "
        "NOC_REALTIME_ALLOW_ANONYMOUS.",
    )


def check_heartbeat(here: Surroundings) -> Finding:
    """Tell whether heartbeats come before what is in between gives up."""
    what = f"A stream is never silent for more than {here.config.heartbeat:g} s"
    if here.config.heartbeat < _SILENCE:
        return Finding(OK, f"{what}.")
    return Finding(
        WARN,
        f"{what}; balancers end what is silent for 30 or 60 s.",
        "Set NOC_REALTIME_HEARTBEAT to 15.",
    )


def check_open_files(here: Surroundings) -> Finding:
    """Tell whether there is a file descriptor for each stream."""
    needed = here.streams + _OTHER_FILES
    what = f"A process of this shell may open {here.open_files:.0f} files"
    if here.open_files >= needed:
        return Finding(OK, f"{what}: enough for {here.streams} streams.")
    return Finding(
        FAIL,
        f"{what}, and a worker with {here.streams} streams needs {needed}.",
        _raise_files(needed),
    )


def _raise_files(needed: int) -> str:
    return f"Raise `ulimit -n`; in a systemd unit, LimitNOFILE={2 * needed}."


def check_gauges(here: Surroundings) -> Finding:
    """Tell whether the metrics of a worker that is gone go too."""
    if not here.counts_together:
        return Finding(OK, "No metrics are left by a worker that ends.")
    if "child_exit" in here.settings:
        return Finding(OK, "gunicorn.conf.py has a child_exit, for metrics of a worker that ends.")
    return Finding(
        WARN,
        "PROMETHEUS_MULTIPROC_DIR is set and gunicorn.conf.py has no child_exit: the streams of a "
        "worker that was killed count for ever.",
        "from flask_noc_realtime.gunicorn import child_exit",
    )


# Redis.


def check_redis_version(redis: RedisFacts) -> Finding:
    """Tell whether it is new enough, and quick."""
    what = f"Redis {redis.version} answers in {redis.seconds * 1000:.1f} ms."
    if _older(redis.version, _OLDEST_REDIS):
        return Finding(FAIL, what, f"Use Redis {_OLDEST_REDIS} or newer.")
    if redis.seconds > _SLOW_REDIS:
        return Finding(WARN, what, "Bring it nearer: every emit and strict page waits for it.")
    return Finding(OK, what)


def check_redis_writes(redis: RedisFacts) -> Finding:
    """Tell whether anything can be emitted."""
    if not redis.refused:
        return Finding(OK, "It takes writes.")
    return Finding(
        FAIL,
        f"It takes no write: {redis.refused}",
        "Free memory or disk, or set NOC_REALTIME_URL to the primary, with a user that may write.",
    )


def check_redis_memory(redis: RedisFacts) -> Finding:
    """Tell whether it keeps the log, and has room."""
    if redis.policy.startswith("allkeys"):
        return Finding(
            FAIL if redis.maximum else WARN,
            f"maxmemory-policy is {redis.policy}: Redis may evict the log, and all streams are "
            "reset.",
            "Set maxmemory-policy to noeviction; give a cache with another policy its own Redis.",
        )
    if redis.policy.startswith("volatile"):
        return Finding(
            WARN,
            f"maxmemory-policy is {redis.policy}: Redis may evict tickets and leases.",
            "Set maxmemory-policy to noeviction.",
        )
    if redis.maximum and redis.used > _FULL * redis.maximum:
        return Finding(
            WARN,
            f"{redis.used / redis.maximum:.0%} of maxmemory is used; when it is full, nothing can "
            "be emitted.",
            "Raise maxmemory; the log takes about NOC_REALTIME_HISTORY_BYTES of it.",
        )
    return Finding(OK, f"maxmemory-policy is {redis.policy}, and there is room.")


def check_redis_persistence(redis: RedisFacts) -> Finding:
    """Tell whether the log survives a restart."""
    if redis.appends:
        return Finding(OK, "appendonly is yes: the log survives a restart.")
    lost = "are lost with a restart, and all streams are reset"
    what = {
        None: f"appendonly is no: events {lost}.",
        "": f"It writes nothing to disk: all events {lost}.",
    }.get(redis.save, f"It writes snapshots alone: the events since the last one {lost}.")
    return Finding(WARN, what, "Set appendonly to yes.")


def check_redis_buffer(redis: RedisFacts) -> Finding:
    """Tell whether a worker may be busy for a moment without being cut off."""
    limit = redis.buffer
    needed = _BUFFERED_EVENTS * redis.event_bytes
    if limit is None:
        return Finding(
            WARN,
            "It does not say how far a subscriber may be behind.",
            f"See that client-output-buffer-limit allows {needed} bytes to pubsub.",
        )
    if 0 < limit < needed:
        return Finding(
            WARN,
            f"A worker that is {limit} bytes behind is cut off, which is fewer than "
            f"{_BUFFERED_EVENTS} of the largest events.",
            f'Set client-output-buffer-limit to "pubsub 32mb 8mb 60", at least {needed} bytes.',
        )
    return Finding(OK, "client-output-buffer-limit leaves a worker time to be busy.")


# The workers that run.


def check_workers_answer(found: Workers) -> Finding:
    """Tell whether every worker has time for an answer."""
    answered = len(found.answered)
    if not found.asked and not answered:
        return Finding(OK, "No worker has served a stream yet.")
    if found.asked is None or answered >= found.asked:
        return Finding(OK, f"All {answered} workers that have served a stream answer.")
    return Finding(
        FAIL,
        f"{found.asked - answered} of {found.asked} workers do not answer.",
        "`flask noc-realtime stats` names those that do. Look for a view that computes without "
        "giving way, or waits for what gevent does not patch: it holds up every stream of its "
        "worker.",
    )


def check_transports(found: Workers) -> Finding:
    """Tell whether streams cost no more than they need."""
    detached = sum(worker.detached for worker in found.answered)
    portable = sum(worker.portable for worker in found.answered)
    what = f"{detached} streams are detached, and {portable} hold a thread or greenlet each"
    if not portable:
        return Finding(OK, f"{what}.")
    return Finding(
        WARN,
        f"{what}.",
        "Run `gunicorn -k gevent` without TLS on the worker itself, and let no middleware change "
        "the body of a stream; see the log of the workers.",
    )


def check_worker_files(found: Workers) -> Finding:
    """Tell whether the workers of this machine have a file descriptor for each stream."""
    limits = [worker.open_files for worker in found.answered if worker.open_files is not None]
    if not limits:
        return Finding(OK, "No worker of this machine shows how many files it may open.")
    least, needed = min(limits), found.streams + _OTHER_FILES
    what = f"A worker of this machine may open {least:.0f} files"
    if least >= needed:
        return Finding(OK, f"{what}: enough for {found.streams} streams.")
    return Finding(
        FAIL, f"{what}, and needs {needed} for {found.streams} streams.", _raise_files(needed)
    )


def check_emits(found: Workers) -> Finding:
    """Tell whether what they emitted was published."""
    dropped = sum(worker.dropped for worker in found.answered)
    queued = sum(worker.queued for worker in found.answered)
    if not dropped and not queued:
        return Finding(OK, "All they emitted is published.")
    return Finding(
        WARN,
        f"Of what they emitted {queued} events wait for Redis, and {dropped} were given up.",
        "See how long Redis was away, and NOC_REALTIME_QUEUE_EVENTS; an outbox loses nothing.",
    )


# The app as it is reached by a URL.


def check_health(seen: Visit) -> Finding:
    """Tell whether there is an app, and how it says it is."""
    if seen.health is None:
        return Finding(
            FAIL if seen.opened is None else WARN,
            f"Its health is answered with {seen.health_status or 'nothing'}, and not by this "
            "extension.",
            "See that the URL is the app's, with the path it is mounted under, that the proxy "
            "passes the prefix on, and that no before_request sends it elsewhere.",
        )
    if seen.health["status"] == "ok":
        return Finding(OK, "It says that it is well, with its broker.")
    return Finding(
        FAIL,
        f"It says it is {seen.health['status']}; the broker is {seen.health.get('broker')}.",
        "Without its broker nothing reaches a stream: check Redis from that machine. A worker that "
        "is draining is being replaced; ask again.",
    )


def check_answer(seen: Visit) -> Finding:
    """Tell whether a stream is given, and not a page."""
    kind = seen.headers.get("content-type", "nothing")
    if seen.status == 200 and kind.startswith("text/event-stream"):
        return Finding(OK, "A stream is answered with 200 and text/event-stream.")
    if seen.status == 200:
        return Finding(FAIL, f"A stream is answered with {kind}.", _LOGIN)
    if 300 <= seen.status < 400:
        to = seen.headers.get("location", "nowhere").partition("?")[0]
        return Finding(FAIL, f"A stream is answered with {seen.status}, to {to}.", _LOGIN)
    return Finding(
        WARN if seen.status == 204 else FAIL,
        f"A stream is answered with {seen.status or 'nothing'}.",
        _STATUSES.get(seen.status, "See the log of the app and that of the proxy."),
    )


_LOGIN = (
    "Browsers cannot follow a stream to a login page. Have the app's before_request pass over "
    'requests whose request.blueprint is "noc_realtime", and the proxy over its prefix.'
)
_STATUSES = {
    204: "The rollout leaves this user to polling: `flask noc-realtime rollout --allow USER`.",
    401: "Say who asks, by --token or --header; without, browsers that are logged in may be fine.",
    403: "See that the proxy passes Host and X-Forwarded-Proto on, and the app believes it.",
    404: "See that the URL has the path the app is mounted under, and the proxy passes it on.",
    429: "This user has as many streams as NOC_REALTIME_MAX_STREAMS_PER_USER allows.",
    502: "The proxy does not reach the app.",
    503: "The worker is full or has no broker, or the proxy has no worker.",
    504: "The proxy waits for the end of the answer: switch its buffering off for this path.",
}


def check_opening(seen: Visit) -> Finding:
    """Tell whether the first bytes come at once."""
    if seen.opened is None:
        return Finding(FAIL, "Nothing came of the stream: something holds it back.", _UNBUFFERED)
    what = f"stream.open came after {seen.opened * 1000:.0f} ms"
    if seen.opened > _SLOW_OPEN:
        return Finding(WARN, f"{what}.", "See whether workers are busy, or something buffers.")
    return Finding(OK, f"{what}: nothing buffers it.")


def check_heartbeats(seen: Visit) -> Finding:
    """Tell whether what the app sends arrives when it is sent."""
    gaps = silences(seen)
    longest, due = max(gaps), seen.heartbeat
    if longest > due * _LATE + _LATE_SECONDS:
        return Finding(
            FAIL,
            f"It was silent for {longest:.1f} s, and sends something every {due:g} s: what comes "
            "is held back.",
            _UNBUFFERED,
        )
    if not seen.arrivals:
        return Finding(WARN, "It ended before a heartbeat was due.", "Watch longer with --wait.")
    return Finding(OK, f"It was silent for {longest:.1f} s at most, and may be for {due:g} s.")


def silences(seen: Visit) -> list[float]:
    """Return the seconds between what came, from the opening to the end."""
    times = [0.0, *seen.arrivals, seen.watched]
    return [after - before for before, after in pairwise(times)]


def check_lasting(seen: Visit) -> Finding:
    """Tell whether it stays open."""
    if not seen.ended:
        return Finding(OK, f"It was open for all of the {seen.watched:.1f} s that it was watched.")
    if seen.closing:
        return Finding(
            WARN,
            f"The app ended it after {seen.watched:.1f} s: {seen.closing}.",
            "Clients come back by themselves. See NOC_REALTIME_STREAM_LIFETIME, and for how long "
            "tokens are good.",
        )
    silent = silences(seen)[-1]
    return Finding(
        FAIL,
        f"Something in between ended it after {seen.watched:.1f} s, {silent:.1f} s after what came "
        "last.",
        "Have proxies and balancers wait for longer than NOC_REALTIME_HEARTBEAT, such as by "
        "proxy_read_timeout, and look for a limit on how long an answer may take.",
    )


def check_compression(seen: Visit) -> Finding:
    """Tell whether it is sent as it is."""
    encoding = seen.headers.get("content-encoding", "")
    if encoding in ("", "identity"):
        return Finding(OK, "It is not compressed.")
    return Finding(
        WARN,
        f"It is compressed with {encoding}, which takes memory for each stream and may hold events "
        "back.",
        "Leave text/event-stream out of what the proxy compresses.",
    )


def check_http_version(seen: Visit) -> Finding:
    """Tell whether streams take connections from pages."""
    if seen.offers_h2:
        return Finding(OK, "HTTP/2 is offered: streams take no connections from pages.")
    what = f"It speaks HTTP/{seen.version}"
    six = "a browser has six connections for all its tabs, and each stream holds one"
    if seen.version == "1.0":
        return Finding(WARN, f"{what}; {six}.", "Have the proxy speak HTTP/1.1, better HTTP/2.")
    if seen.offers_h2 is None:
        return Finding(OK, f"{what}: {six}. The module for browsers shares one among them.")
    return Finding(WARN, f"{what}; {six}.", "Switch HTTP/2 on in the proxy that ends TLS.")


def check_stickiness(seen: Visit) -> Finding:
    """Tell whether a browser is bound to a machine."""
    found = _AFFINITY.findall(seen.headers.get("set-cookie", ""))
    if not found:
        workers = len({worker for worker in seen.workers if worker})
        return Finding(
            OK,
            f"{len(seen.workers)} connections reached {workers} of the workers. No cookie of a "
            "balancer binds a browser to one, and none need.",
        )
    return Finding(
        WARN,
        f"The cookie {found[0]} binds a browser to a machine.",
        "None is needed: a stream resumes on any worker, and clients spread out more evenly.",
    )


Check = Callable[[Any], Finding]

_HERE: Sequence[Check] = (
    check_versions,
    check_worker_class,
    check_broker,
    check_identity,
    check_heartbeat,
    check_open_files,
    check_gauges,
)
_REDIS: Sequence[Check] = (
    check_redis_version,
    check_redis_writes,
    check_redis_memory,
    check_redis_persistence,
    check_redis_buffer,
)
_WORKERS: Sequence[Check] = (
    check_workers_answer,
    check_transports,
    check_worker_files,
    check_emits,
)
_ANSWER: Sequence[Check] = (check_health, check_answer)
_STREAM: Sequence[Check] = (
    check_opening,
    check_heartbeats,
    check_lasting,
    check_compression,
    check_http_version,
    check_stickiness,
)


def judge_surroundings(here: Surroundings) -> list[Finding]:
    """Return what is found where the app is."""
    return [check(here) for check in _HERE]


def judge_redis(redis: RedisFacts) -> list[Finding]:
    """Return what is found of its Redis."""
    return [check(redis) for check in _REDIS]


def judge_workers(found: Workers) -> list[Finding]:
    """Return what is found of its workers."""
    return [check(found) for check in (_WORKERS if found.answered else _WORKERS[:1])]


def unreachable(error: BrokerUnavailable) -> Finding:
    """Return what is found of a Redis that does not answer."""
    return Finding(FAIL, f"{error}.", "From another machine too: is its port open to this one?")


def judge_visit(seen: Visit) -> list[Finding]:
    """Return what is found of a stream."""
    if seen.error and not seen.status:
        held = seen.health is not None
        what = f"A stream could not be opened: {seen.error}."
        to_do = _UNBUFFERED if held else "See that the URL is right, and that something listens."
        return [*([check_health(seen)] if held else []), Finding(FAIL, what, to_do)]
    findings = [check(seen) for check in _ANSWER]
    if findings[-1].level != OK:
        return findings
    opening = check_opening(seen)
    return findings + ([check(seen) for check in _STREAM] if seen.opened is not None else [opening])


def _number(value: Any) -> int:
    """Return a setting as gunicorn reads it; 0 for none that it would take."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return 0


def _older(version: str, oldest: str) -> bool:
    numbers = [[int(part) for part in re.findall(r"\d+", each)[:3]] for each in (version, oldest)]
    return numbers[0] < numbers[1]
