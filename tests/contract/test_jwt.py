"""The tokens of Flask-JWT-Extended, without a line of code in the app."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import jwt as pyjwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from flask import Flask, jsonify
from flask.testing import FlaskClient
from flask_jwt_extended import (
    JWTManager,
    create_access_token,
    create_refresh_token,
    set_access_cookies,
)

from flask_noc_realtime import NocRealtime

KEY = "a key of the tests, which has 32 bytes or more"
STREAM = "/api/v1/events/stream"
CONNECT = "/api/v1/events/connect"
POLL = "/api/v1/events/poll"


class Site:
    """An app with a JWTManager, and a client of it."""

    def __init__(self, **config: Any) -> None:
        self.app = Flask(__name__)
        self.app.config.update({"JWT_SECRET_KEY": KEY, **config})
        self.manager = JWTManager(self.app)
        self.realtime = NocRealtime(self.app)
        self.client: FlaskClient = self.app.test_client()
        self.app.add_url_rule("/login", view_func=self.login)

    def login(self) -> Any:
        """Answer with the token in a cookie."""
        response = jsonify(ok=True)
        set_access_cookies(response, create_access_token("7"))
        return response

    def token(self, user: Any = "7", **options: Any) -> str:
        """Return an access token."""
        with self.app.app_context():
            return create_access_token(user, **options)

    def poll(self, token: str | None = None, query: str = "", **headers: str) -> Any:
        """Return the answer to a poll; a token goes into the header."""
        sent = {} if token is None else {"Authorization": f"Bearer {token}"}
        return self.client.get(POLL + query, headers={**sent, **headers})

    def seen(self, token: str) -> list[str]:
        """Return which of four events the holder of *token* sees."""
        position = self.realtime.position()
        self.realtime.emit("incident.created", "all")
        self.realtime.emit("incident.created", "mine", user_id="7")
        self.realtime.emit("incident.created", "a", permissions=["a"])
        self.realtime.emit("incident.created", "b", permissions=["b"])
        answer = self.poll(token, f"?after={position}")
        assert answer.status_code == 200, answer.json
        return [event["data"] for event in answer.json["events"]]


@pytest.fixture
def site() -> Iterator[Site]:
    """Return an app with tokens in the header, which is Flask-JWT-Extended's default."""
    site = Site()
    with site.app.app_context():
        yield site


def test_claims_become_the_identity(site: Site) -> None:
    """User, role and permissions are in the token."""
    token = site.token(additional_claims={"permissions": ["a"], "role": "operator"})
    assert site.seen(token) == ["all", "mine", "a"]
    assert site.seen(site.token("8", additional_claims={"permissions": ["b"]})) == ["all", "b"]
    assert site.seen(site.token("8")) == ["all"]


def test_permissions_may_be_words_in_a_string(site: Site) -> None:
    """As the scope claim of OAuth has them."""
    assert site.seen(site.token(additional_claims={"permissions": "a b"})) == [
        "all",
        "mine",
        "a",
        "b",
    ]


def test_the_claims_are_named_by_config() -> None:
    """Tokens of another issuer."""
    site = Site(
        NOC_REALTIME_JWT_USER_CLAIM="uid",
        NOC_REALTIME_JWT_PERMISSIONS_CLAIM="scope",
        NOC_REALTIME_JWT_ROLE_CLAIM="group",
    )
    with site.app.app_context():
        claims = {"uid": "7", "scope": "b", "permissions": ["a"], "group": "x"}
        assert site.seen(site.token("somebody", additional_claims=claims)) == ["all", "mine", "b"]


@pytest.mark.parametrize("permissions", [7, {"a": 1}, [1], [""], [["a"]]])
def test_claims_of_a_wrong_shape_are_nobody(site: Site, permissions: Any) -> None:
    """What is not a list of names is not guessed at."""
    answer = site.poll(site.token(additional_claims={"permissions": permissions}))
    if isinstance(permissions, dict):
        assert answer.status_code == 200  # its keys are names
    else:
        assert answer.status_code == 401


def test_a_token_in_the_url_is_for_reading_only(site: Site) -> None:
    """An EventSource cannot set headers; a POST can."""
    token = site.token()
    assert site.client.get(f"{POLL}?token={token}").status_code == 200
    with site.client.get(f"{STREAM}?token={token}") as answer:
        assert answer.status_code == 200
    assert site.client.post(f"{CONNECT}?token={token}").status_code == 401


def test_a_header_of_another_name_and_type() -> None:
    """As the app configured it."""
    site = Site(JWT_HEADER_NAME="X-Token", JWT_HEADER_TYPE="")
    token = site.token()
    assert site.poll(**{"X-Token": token}).status_code == 200
    assert site.client.get(f"{POLL}?token={token}").status_code == 200
    assert site.poll(token).status_code == 401


def test_a_cookie_needs_its_csrf_token_to_get_a_ticket() -> None:
    """Another site can have the browser send the cookie, but not read the token."""
    site = Site(JWT_TOKEN_LOCATION=["cookies"])
    assert site.client.get("/login").status_code == 200
    assert site.client.get(POLL).status_code == 200
    refused = site.client.post(CONNECT)
    assert (refused.status_code, refused.json["title"]) == (401, "Unauthorized")
    csrf = site.client.get_cookie("csrf_access_token")
    assert csrf is not None
    assert site.client.post(CONNECT, headers={"X-CSRF-TOKEN": "guess"}).status_code == 401
    assert site.client.post(CONNECT, headers={"X-CSRF-TOKEN": csrf.value}).status_code == 200


def test_a_ticket_is_good_beside_a_cookie_that_has_expired() -> None:
    """The browser sends it along, and the ticket would be used up for nothing."""
    site = Site(JWT_TOKEN_LOCATION=["headers", "cookies"])
    bearer = {"Authorization": f"Bearer {site.token()}"}
    url = site.client.post(CONNECT, headers=bearer).json["url"]
    site.client.set_cookie("access_token_cookie", site.token(expires_delta=timedelta(seconds=-5)))
    with site.client.get(url) as answer:
        assert answer.status_code == 200


def test_a_cookie_is_no_token_where_the_app_takes_none(site: Site) -> None:
    """Without its CSRF rules it would be a hole."""
    site.client.set_cookie("access_token_cookie", site.token())
    assert site.client.get(POLL).status_code == 401


def test_a_revoked_token_is_refused_from_then_on(site: Site) -> None:
    """The app's blocklist is asked each time."""
    revoked: set[str] = set()

    @site.manager.token_in_blocklist_loader
    def blocked(header: Any, claims: Any) -> bool:
        return claims["jti"] in revoked

    token = site.token()
    assert site.poll(token).status_code == 200
    revoked.add(pyjwt.decode(token, options={"verify_signature": False})["jti"])
    assert site.poll(token).status_code == 401
    assert site.client.get(f"{POLL}?token={token}").status_code == 401


def test_a_refresh_token_is_refused(site: Site) -> None:
    """It is for getting access tokens."""
    assert site.poll(create_refresh_token("7")).status_code == 401


def unsigned(header: dict[str, Any], claims: dict[str, Any], key: bytes | None) -> str:
    """Return a token as an attacker writes it, with an HMAC of *key* or no signature."""
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in (header, claims)
    ]
    body = b".".join(parts)
    digest = b"" if key is None else hmac.new(key, body, hashlib.sha256).digest()
    return (body + b"." + base64.urlsafe_b64encode(digest).rstrip(b"=")).decode()


def claims_of(token: str) -> dict[str, Any]:
    """Return the claims of a good token."""
    claims: dict[str, Any] = pyjwt.decode(token, options={"verify_signature": False})
    return claims


def refused(site: Site, token: str) -> None:
    """Check that *token* is refused wherever it is shown, and named nowhere."""
    bearer = {"Authorization": f"Bearer {token}"}
    answers = [
        site.client.get(POLL, headers=bearer),
        site.client.get(STREAM, headers=bearer),
        site.client.post(CONNECT, headers=bearer),
        site.client.get(f"{POLL}?token={token}"),
        site.client.get(f"{STREAM}?token={token}"),
    ]
    for answer in answers:
        assert answer.status_code == 401
        assert answer.content_type == "application/problem+json"
        assert token not in answer.text
        assert token.rpartition(".")[0] not in answer.text or not token


def test_no_token_is_refused(site: Site) -> None:
    """Closed by default."""
    for path in (POLL, STREAM):
        answer = site.client.get(path)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert site.client.post(CONNECT).status_code == 401


def test_an_expired_token_is_refused_and_says_so(site: Site) -> None:
    """The client knows then that it needs a new one."""
    token = site.token(expires_delta=timedelta(seconds=-1))
    refused(site, token)
    assert "expired" in site.poll(token).json["detail"]


def test_a_token_of_another_key_is_refused(site: Site) -> None:
    """Whoever signed it."""
    refused(
        site, pyjwt.encode(claims_of(site.token()), "another key of 32 bytes or more!!", "HS256")
    )


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", "", None])
def test_a_token_without_a_signature_is_refused(site: Site, name: Any) -> None:
    """RFC 8725, section 2.1: alg none."""
    claims = claims_of(site.token())
    refused(site, unsigned({"typ": "JWT", "alg": name}, claims, None))
    refused(site, unsigned({"typ": "JWT", "alg": name}, claims, KEY.encode()))


def test_a_public_key_is_no_secret() -> None:
    """RFC 8725, section 2.1: an RS256 app must not take an HMAC of its public key."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    secret = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    site = Site(
        JWT_ALGORITHM="RS256", JWT_PRIVATE_KEY=secret.decode(), JWT_PUBLIC_KEY=public.decode()
    )
    token = site.token()
    assert site.poll(token).status_code == 200
    for alg in ("HS256", "RS256"):
        refused(site, unsigned({"typ": "JWT", "alg": alg}, claims_of(token), public))


def test_a_token_whose_claims_were_changed_is_refused(site: Site) -> None:
    """The signature is of all of it."""
    head, body, signature = site.token().split(".")
    claims = {**claims_of(f"{head}.{body}.{signature}"), "permissions": ["a"]}
    forged = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    refused(site, f"{head}.{forged}.{signature}")


@pytest.mark.parametrize("token", ["x", "a.b.c", "..", "%00", "\u2603", "a" * 7000])
def test_what_is_no_token_is_refused(site: Site, token: str) -> None:
    """Garbage is the client's fault, never a 500."""
    assert site.client.get(POLL, query_string={"token": token}).status_code == 401


def test_a_stream_lasts_as_long_as_its_token(site: Site) -> None:
    """The claim exp is the end of the identity."""
    state = site.app.extensions["noc_realtime"]
    with site.app.test_request_context(
        headers={"Authorization": f"Bearer {site.token()}"}
    ) as context:
        identity = state.identity(context.request)
    left = identity.expires_at - datetime.now(timezone.utc)
    assert timedelta(minutes=14) < left <= timedelta(minutes=15)
