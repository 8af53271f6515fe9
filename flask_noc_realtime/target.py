"""Where a running app is, as somebody outside of it reaches it."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from .errors import ParameterError

_FORM = "Use an http:// or https:// URL of host, port and path; send tokens by --token or --header."
_SINGLE = {"authorization", "host"}
_PORTS = {"http": 80, "https": 443}


class Target(NamedTuple):
    """An address, and what is sent with each request to it.

    :ivar path: what the app is mounted under, without a slash at its end.
    :ivar headers: pairs of a name and a value.
    """

    secure: bool
    host: str
    port: int
    path: str
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, url: str, headers: Iterable[str] = ()) -> Target:
        """Read a base URL, and headers written as ``Name: value``.

        :raises ParameterError: when one of them is not understood; it quotes nothing of what may
            hold a secret.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS[parts.scheme]
            (parts.hostname or "").encode("idna")
        except (KeyError, ValueError):
            raise ParameterError(_FORM) from None
        if not re.fullmatch(r"[!-~]*", parts.path):
            raise ParameterError("Percent-encode the path of the URL.")
        if not parts.hostname or parts.username is not None or parts.query or parts.fragment:
            raise ParameterError(_FORM)
        pairs = _joined([_header(text) for text in headers])
        path = parts.path.rstrip("/")
        return cls(parts.scheme == "https", parts.hostname, port, path, pairs)

    @property
    def host_header(self) -> str:
        """What the ``Host`` header says (RFC 9112, section 3.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def scheme(self) -> str:
        """``http`` or ``https``."""
        return "https" if self.secure else "http"

    @property
    def shown(self) -> str:
        """The URL again."""
        return f"{self.scheme}://{self.host_header}{self.path}"

    def tls(self, *protocols: str) -> ssl.SSLContext | None:
        """Return what connects with TLS, offering *protocols*; None for plain http."""
        if not self.secure:
            return None
        context = ssl.create_default_context()
        context.set_alpn_protocols(list(protocols))
        return context

    def carrying(self, token: str | None) -> Target:
        """Return the same address with a bearer token, in place of what said who asks."""
        if token is None:
            return self
        bearer = _header(f"Authorization: Bearer {token}")
        return self._replace(headers=_joined([*self.headers, bearer]))


def _joined(pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return one header for all of a name (RFC 9110, section 5.3; RFC 6265, section 4.2.1).

    Of those that hold one value, the last.
    """
    found: dict[str, tuple[str, str]] = {}
    for name, value in pairs:
        key = name.lower()
        if key in found and key not in _SINGLE:
            name, before = found[key]
            value = f"{before}{'; ' if key == 'cookie' else ', '}{value}"
        found[key] = name, value
    return tuple(found.values())


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    name, value = name.strip(), value.strip()
    if not colon or not name or not (name + value).isascii() or not (name + value).isprintable():
        raise ParameterError("A header is written as 'Name: value', in one line of ASCII.")
    return name, value
