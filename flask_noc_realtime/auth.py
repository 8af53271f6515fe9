"""Who is asking for a stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from flask import Request

from .audience import Audience, TypeFilter
from .config import Config
from .errors import ConfigError, IdentityError


@dataclass(frozen=True, slots=True)
class Identity:
    """The user behind a request, as the app's identity loader sees them.

    :ivar user_id: receives events emitted with this user_id.
    :ivar role: the user's role.
    :ivar permissions: receives events emitted with any of these permissions.
    :ivar expires_at: an aware time after which the identity is void, and its streams end.
    :raises ConfigError: naming the field that is wrong.
    """

    user_id: str | None = None
    role: str | None = None
    permissions: frozenset[str] = frozenset()
    expires_at: datetime | None = None

    def __post_init__(self) -> None:
        for name in ("user_id", "role"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise ConfigError(f"Identity.{name} is {value!r}; pass a non-empty str or None.")
        object.__setattr__(self, "permissions", _names(self.permissions))
        if self.expires_at is not None and self.expires_at.utcoffset() is None:
            raise ConfigError(
                "Identity.expires_at has no time zone; pass datetime.fromtimestamp(exp, "
                "timezone.utc)."
            )

    def audience(self, types: TypeFilter) -> Audience:
        """Return the audience class of this identity's streams."""
        return Audience(self.permissions, types)

    def remaining(self, now: datetime) -> float | None:
        """Return the seconds left at *now*, or None when there is no end."""
        return None if self.expires_at is None else (self.expires_at - now).total_seconds()


def _names(value: Collection[str]) -> frozenset[str]:
    # A str is a collection as well: of letters.
    if isinstance(value, str) or not isinstance(value, Collection):
        raise ConfigError(f"Identity.permissions is {value!r}; pass a collection of str.")
    names = frozenset(value)
    if not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"Identity.permissions is {value!r}; pass non-empty str only.")
    return names


ANONYMOUS = Identity()

IdentityLoader = Callable[[Request], "Identity | None"]


def encode_ticket(identity: Identity, position: str) -> bytes:
    """Encode what a ticket stands for; *position* is the newest when it was issued."""
    expires_at = identity.expires_at and identity.expires_at.astimezone(timezone.utc).isoformat()
    fields = [identity.user_id, identity.role, sorted(identity.permissions), expires_at, position]
    return json.dumps(fields).encode()


def decode_ticket(value: bytes) -> tuple[Identity, str]:
    """Read what `encode_ticket` wrote.

    :raises IdentityError: when it was not.
    """
    try:
        user_id, role, permissions, expires_at, position = json.loads(value)
        until = None if expires_at is None else datetime.fromisoformat(expires_at)
        return Identity(user_id, role, permissions, until), str(position)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise IdentityError("The ticket does not stand for an identity.") from error


def jwt_loader(config: Config) -> IdentityLoader:
    """Return a loader that reads the tokens of Flask-JWT-Extended.

    It takes them where the app does, in the header or a cookie with its CSRF rules, and in
    ``?token=`` of a GET, since a browser's EventSource cannot set headers. Revocation, the
    token type and the app's own verifications are Flask-JWT-Extended's.
    """
    from flask_jwt_extended import verify_jwt_in_request
    from flask_jwt_extended.config import config as settings
    from flask_jwt_extended.exceptions import JWTExtendedException, NoAuthorizationError
    from jwt import ExpiredSignatureError, PyJWTError

    def load(request: Request) -> Identity | None:
        token = request.args.get("token")
        if token and request.method == "GET":
            name = settings.header_name
            if name not in request.headers:
                variable = f"HTTP_{name.upper().replace('-', '_')}"
                request.environ[variable] = f"{settings.header_type} {token}".strip()
            locations = ["headers"]
        elif "HTTP_COOKIE" not in request.environ and settings.header_name not in request.headers:
            return None  # What verifying would find out, without the exceptions.
        else:
            locations = [
                where for where in settings.token_location if where in ("headers", "cookies")
            ]
        try:
            verified = verify_jwt_in_request(locations=locations or ["headers"])
        except NoAuthorizationError:
            return None
        except ExpiredSignatureError:
            raise IdentityError("The token has expired; get a new one.") from None
        except (JWTExtendedException, PyJWTError) as error:
            # Its text may quote the token.
            raise IdentityError(f"The token is not accepted ({type(error).__name__}).") from None
        return None if verified is None else _from_claims(verified[1])

    def _from_claims(claims: dict[str, Any]) -> Identity:
        user_id = claims.get(config.jwt_user_claim or settings.identity_claim_key)
        permissions = claims.get(config.jwt_permissions_claim) or ()
        if isinstance(permissions, str):
            permissions = permissions.split()  # RFC 6749, section 3.3
        expires = claims.get("exp")
        try:
            return Identity(
                None if user_id is None else str(user_id),
                claims.get(config.jwt_role_claim),
                _names(permissions),
                None if expires is None else datetime.fromtimestamp(expires, timezone.utc),
            )
        except (ConfigError, OverflowError, ValueError, TypeError) as error:
            raise IdentityError(f"The claims of the token are not an identity: {error}") from None

    return load
