"""Answers: what of a view's response may be given to others, and how each of them gets it."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from flask import Flask, Request, Response, current_app
from werkzeug.datastructures import Headers

CACHE = "noc-realtime"
"""Our name in ``Cache-Status`` (RFC 9211)."""

HEADERS = frozenset(
    {
        "cache-control",
        "content-disposition",
        "content-language",
        "content-type",
        "etag",
        "expires",
        "last-modified",
        "link",
        "location",
        "retry-after",
        "vary",
        "www-authenticate",
    }
)
"""Response headers that everybody gets, besides those a policy names."""

_OWN = frozenset({"content-length", "date", "x-noc-position"})
_CONDITIONS = (
    "HTTP_IF_NONE_MATCH",
    "HTTP_IF_MODIFIED_SINCE",
    "HTTP_IF_MATCH",
    "HTTP_IF_UNMODIFIED_SINCE",
)
_MAGIC = b"noc-answer-1\n"
_SIGNATURE_BYTES = 32


class _Given(Headers):
    """Headers that came out of others: to check each again takes as long as all else of a hit."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._list = pairs


class _Model:
    """Makes responses like one that was made before; to make one anew takes as long as all else.

    :ivar plain: whether the response held only what may be given to others.
    """

    def __init__(self, response: Response) -> None:
        self._kind = type(response)
        held = {k: v for k, v in vars(response).items() if k not in ("headers", "response")}
        self._fixed = {k: v for k, v in held.items() if isinstance(v, (str, int, type(None)))}
        self._lists = [name for name, value in held.items() if value == []]
        # What a class of the app's own does when it makes one, it does for each.
        own = self._kind.__init__ is not Response.__init__
        self.plain = not own and len(self._fixed) + len(self._lists) == len(held)

    def copy(self, body: bytes, headers: Headers) -> Response:
        response = self._kind.__new__(self._kind)
        response.__dict__.update(self._fixed, headers=headers, response=[body])
        for name in self._lists:
            response.__dict__[name] = []
        return response


class NotShareable(Exception):
    """A response belongs to the one who asked; the text says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response that may be given to everyone with the same key.

    :ivar position: the position of events that the view's data is known to include.
    :ivar at: the time it was begun to be worked out, as the system's clock has it.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    position: str
    at: float
    _pairs: tuple[tuple[str, str], ...] = field(init=False, repr=False, compare=False)
    _models: dict[type[Response], _Model] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        pairs = (*self.headers, ("Content-Length", str(len(self.body))))
        object.__setattr__(self, "_pairs", pairs)

    @classmethod
    def of(
        cls,
        response: Response,
        *,
        allowed: Collection[str],
        varies: Collection[str],
        max_bytes: int,
        private: bool = False,
        position: str,
        at: float,
    ) -> Answer:
        """Take from *response* what everybody gets.

        :param allowed: names of further headers, in lower case.
        :param varies: names of the request headers that are in the key, in lower case.
        :param private: say so to caches on the way, who know nothing of our scopes.
        :raises NotShareable: when it is not for everybody.
        """
        headers = response.headers
        if "Set-Cookie" in headers:
            raise NotShareable("it sets a cookie")
        control = response.cache_control
        if control.no_store or control.private:
            raise NotShareable("its Cache-Control says private or no-store")
        undeclared = {name.lower() for name in response.vary} - set(varies)
        if undeclared:
            raise NotShareable(f"it varies by {', '.join(sorted(undeclared))}")
        if response.is_streamed or response.direct_passthrough:
            raise NotShareable("it is streamed")
        body = response.get_data()
        if len(body) > max_bytes:
            raise NotShareable(f"it has {len(body)} bytes and the limit is {max_bytes}")
        kept = [
            (name, value)
            for name, value in headers
            if name.lower() in HEADERS or name.lower() in allowed
        ]
        if response.status_code == 200 and "ETag" not in headers:
            kept.append(("ETag", f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'))
        if private and "Cache-Control" not in headers:
            kept.append(("Cache-Control", "private"))
        return cls(response.status_code, tuple(kept), body, position, at)

    def respond(self, request: Request, status: str, age: float | None = None) -> Response:
        """Return the response for *request*, a 304 where its conditions say so.

        :param status: what ``Cache-Status`` says after our name.
        :param age: seconds since the answer was worked out, when it comes from a store.
        """
        pairs = [*self._pairs, ("Cache-Status", f"{CACHE}; {status}")]
        if age is not None:
            pairs.append(("Age", str(int(age) if age > 0 else 0)))
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
        response = self._response(app.response_class, _Given(pairs))
        environ = request.environ
        if self.status == 200 and not environ.keys().isdisjoint(_CONDITIONS):
            response.make_conditional(environ)
        return response

    def _response(self, kind: type[Response], headers: Headers) -> Response:
        model = self._models.get(kind)
        if model is not None and model.plain:
            return model.copy(self.body, headers)
        typed = "Content-Type" in headers
        response = kind([self.body], self.status, headers)
        if not typed:
            # The class adds a Content-Type of its own where the view had none.
            del response.headers["Content-Type"]
        self._models[kind] = _Model(response)
        return response

    def seal(self, secret: bytes, key: bytes) -> bytes:
        """Encode the answer so that `unseal` can tell it was written for *key* by one of us."""
        fields = [self.status, self.headers, self.position, self.at]
        content = json.dumps(fields, separators=(",", ":")).encode() + b"\n" + self.body
        return _MAGIC + _sign(secret, key, content) + content

    @classmethod
    def unseal(cls, data: bytes, secret: bytes, key: bytes) -> Answer | None:
        """Read what `seal` wrote; return None for anything else."""
        start = len(_MAGIC) + _SIGNATURE_BYTES
        content = data[start:]
        if not data.startswith(_MAGIC):
            return None
        if not hmac.compare_digest(data[len(_MAGIC) : start], _sign(secret, key, content)):
            return None
        # What we signed, we wrote: it can be read.
        head, _, body = content.partition(b"\n")
        status, headers, position, at = json.loads(head)
        return cls(status, tuple((name, value) for name, value in headers), body, position, at)


def dropped(response: Response, allowed: Collection[str]) -> set[str]:
    """Return the headers of *response* that an answer leaves out without saying so."""
    names = {name.lower() for name in response.headers.keys()}
    return names - HEADERS - _OWN - set(allowed)


def now() -> float:
    """Return the time that ages are counted from, which processes share."""
    return time.time()


def _sign(secret: bytes, key: bytes, content: bytes) -> bytes:
    # Without the key, one who may write to the store could show one page in place of another.
    return hmac.digest(secret, _MAGIC + len(key).to_bytes(4, "big") + key + content, "sha256")
