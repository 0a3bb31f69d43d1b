"""Access tokens: what is taken, what is refused and as what, under each algorithm; and that no token is ever quoted."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from hypothesis import given
from hypothesis import strategies as st

from events.errors import HublogError, Misconfigured, NotAdmitted, TokenExpired, TokenInvalid, TokenMissing
from events.ids import b64url
from service.access.bearer import LEEWAY_S, TOKEN_CHARS_MAX, Verifier, mint, token_of
from service.access.claims import payload_of
from service.access.keys import Algorithm, Keys, read_keys

SECRET, OTHER = bytes(range(32)), bytes(range(1, 33))
RSA = generate_private_key(65_537, 2048)
ED = Ed25519PrivateKey.generate()
DAY_S = 86_400  # of what is made while tests are collected, long before they run


def private_pem(key: Any) -> str:
    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem.decode()


def public_pem(key: Any) -> str:
    pem: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem.decode()


def ring(*secrets: bytes) -> Keys:
    return read_keys("HS256", ",".join(b64url(secret) for secret in secrets or (SECRET,)), setting="KEY")


def payload(**claims: Any) -> dict[str, Any]:
    return {"sub": "ann", "exp": time.time() + 60, **claims}


def signed(claims: dict[str, Any], key: Any = SECRET, algorithm: str = "HS256", **header: Any) -> str:
    return jwt.encode(claims, key, algorithm=algorithm, headers=header)


def by_hand(claims: dict[str, Any], secret: bytes) -> str:
    """Signed by HS256, also where the library refuses to: claims that are wrong, a key that is a PEM."""
    parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    return f"{text.decode()}.{b64url(hmac.new(secret, text, hashlib.sha256).digest())}"


def refusal(token: str, verifier: Verifier | None = None) -> NotAdmitted:
    with pytest.raises(NotAdmitted) as refused:
        (verifier or Verifier(ring()))(token)
    return refused.value


@pytest.mark.parametrize(
    ("algorithm", "minting", "verifying"),
    [
        ("HS256", b64url(SECRET), b64url(SECRET)),
        ("RS256", private_pem(RSA), public_pem(RSA)),
        ("EdDSA", private_pem(ED), public_pem(ED)),
        ("EdDSA", public_pem(Ed25519PrivateKey.generate()) + private_pem(ED), private_pem(ED)),
    ],
)
def test_what_is_minted_is_taken(algorithm: Algorithm, minting: str, verifying: str) -> None:
    claims = payload_of(
        user="ann",
        hubs=["chat", "games"],
        scopes=["hublog:read"],
        metadata={"device": "phone"},
        now_s=int(time.time()),
        ttl_s=60,
    )
    token = mint(read_keys(algorithm, minting, setting="KEY"), claims, issuer="us", audience="hublog")
    found = Verifier(read_keys(algorithm, verifying, setting="KEY"), issuer="us", audience="hublog")(token)
    assert (found.user, found.hubs, found.scopes) == ("ann", {"chat", "games"}, {"hublog:read"})
    assert json.loads(bytes(found.metadata)) == {"device": "phone"}
    assert found.expires_at_s == claims["exp"] + LEEWAY_S


def test_public_keys_mint_nothing() -> None:
    with pytest.raises(Misconfigured, match="mint where the private key is"):
        mint(read_keys("EdDSA", public_pem(ED), setting="KEY"), payload(), issuer=None, audience=None)


def test_keys_rotate() -> None:
    old, both, new = ring(SECRET), ring(OTHER, SECRET), ring(OTHER)
    before, after = (mint(keys, payload(), issuer=None, audience=None) for keys in (old, both))
    assert [Verifier(both)(token).user for token in (before, after)] == ["ann", "ann"]
    assert Verifier(new)(after).user == "ann"
    assert isinstance(refusal(before, Verifier(new)), TokenInvalid)


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"sub": 7}, "`sub` is not a text"),
        ({"sub": ""}, "`sub` has 0 bytes"),
        ({"sub": "x" * 257}, "`sub` has 257 bytes"),
        ({"sub": "a\0b"}, "NUL"),
        ({"exp": None}, "missing"),
        ({"exp": "soon"}, "cannot be read"),
        ({"exp": float("inf")}, "cannot be read"),
        ({"exp": 10**400}, "not a time"),
        ({"exp": float("nan")}, "cannot be read"),
        ({"nbf": time.time() + DAY_S}, "not valid yet"),
        ({"iat": time.time() + DAY_S}, "not valid yet"),
        ({"aud": "somebody"}, "`aud`"),
        ({"hubs": "chat"}, "`hubs`"),
        ({"hubs": ["No Hub"]}, "`hubs`"),
        ({"hubs": [1]}, "`hubs`"),
        ({"hubs": {"chat": 1}}, "`hubs`"),
        ({"hubs": ["a"] * 257}, "`hubs`"),
        ({"scope": ["hublog:read"]}, "`scope`"),
        ({"scope": "a  b"}, "`scope`"),
        ({"meta": []}, "`meta` is not an object"),
        ({"meta": {"a": "x" * 2048}}, "`meta` has"),
        ({"meta": json.loads('{"a":' * 200 + "1" + "}" * 200)}, "`meta` is nested"),
    ],
)
def test_claims_that_are_wrong_are_named(claims: dict[str, Any], why: str) -> None:
    whole = payload(**claims)
    if whole["exp"] is None:
        del whole["exp"]
    refused = refusal(by_hand(whole, SECRET))
    assert isinstance(refused, TokenInvalid)
    assert why in refused.message


def test_no_hubs_are_no_hubs_and_no_claim_is_all() -> None:
    assert Verifier(ring())(signed(payload(hubs=[]))).hubs == frozenset()
    assert Verifier(ring())(signed(payload())).hubs is None


def test_clocks_may_differ_a_little_and_no_more() -> None:
    now_s = time.time()
    assert Verifier(ring())(signed(payload(exp=now_s - LEEWAY_S / 2))).user == "ann"
    assert isinstance(refusal(signed(payload(exp=now_s - LEEWAY_S - 2))), TokenExpired)


@pytest.mark.parametrize(
    ("asked", "claims", "why"),
    [
        ({"issuer": "us"}, {}, "missing"),
        ({"issuer": "us"}, {"iss": "them"}, "HUBLOG_JWT_ISSUER"),
        ({"audience": "hublog"}, {}, "missing"),
        ({"audience": "hublog"}, {"aud": ["a", "b"]}, "HUBLOG_JWT_AUDIENCE"),
    ],
)
def test_issuer_and_audience_are_asked_for_where_set(asked: dict[str, str], claims: dict[str, Any], why: str) -> None:
    assert why in refusal(signed(payload(**claims)), Verifier(ring(), **asked)).message
    right = signed(payload(iss="us", aud=["x", "hublog"]))
    assert Verifier(ring(), issuer="us", audience="hublog")(right).user == "ann"


def test_the_algorithm_is_never_the_tokens() -> None:
    pem = public_pem(RSA)
    public = Verifier(read_keys("RS256", pem, setting="KEY"))
    # The public key taken for a secret: the classic confusion.
    assert "HUBLOG_JWT_ALGORITHM" in refusal(by_hand(payload(), pem.encode()), public).message
    unsigned = jwt.encode(payload(), None, algorithm="none")
    for verifier in (public, Verifier(ring())):
        assert "HUBLOG_JWT_ALGORITHM" in refusal(unsigned, verifier).message
    assert "HUBLOG_JWT_ALGORITHM" in refusal(signed(payload(), RSA, "RS256")).message


@given(st.text(max_size=80) | st.from_regex(r"[\w-]{0,40}\.[\w-]{0,40}\.[\w-]{0,20}", fullmatch=True))
def test_nonsense_is_invalid_and_never_quoted(text: str) -> None:
    refused = refusal(text)
    assert isinstance(refused, TokenInvalid)
    assert len(text) < 4 or text not in refused.wire()


@pytest.mark.parametrize(
    "head", [b"[" * 3000, b'{"alg":"HS256","crit":["x"]}', b'{"alg":null}', b'{"alg":"HS256","kid":7}', b"7", b"\xff"]
)
def test_heads_that_are_no_heads_are_refused(head: bytes) -> None:
    token = base64.urlsafe_b64encode(head).rstrip(b"=").decode() + ".e30.AAAA"
    assert isinstance(refusal(token), TokenInvalid)


def test_endless_tokens_are_not_read() -> None:
    assert "characters" in refusal("x" * (TOKEN_CHARS_MAX + 1)).message


@pytest.mark.parametrize(
    ("authorization", "access_token", "found"),
    [
        ("Bearer abc", None, "abc"),
        ("bearer  abc ", None, "abc"),
        ("Bearer abc", "def", "abc"),
        (None, "def", "def"),
        (None, None, TokenMissing),
        (None, "", TokenMissing),
        ("Basic YTpi", "def", "def"),
        ("Basic YTpi", None, TokenInvalid),
        ("Bearer", None, TokenInvalid),
        ("", None, TokenInvalid),
    ],
)
def test_where_a_token_stands(authorization: str | None, access_token: str | None, found: Any) -> None:
    if isinstance(found, str):
        assert token_of(authorization, access_token) == found
        return
    with pytest.raises(HublogError) as refused:
        token_of(authorization, access_token)
    assert type(refused.value) is found


@pytest.mark.parametrize(
    ("algorithm", "text", "why"),
    [
        ("HS256", b64url(bytes(31)), "key 1 of KEY has 31 bytes"),
        ("HS256", b64url(SECRET) + ",not base64!", "key 2 of KEY is not base64url"),
        ("HS256", "", "key 1 of KEY has 0 bytes"),
        ("HS256", public_pem(RSA), "is not base64url"),
        ("RS256", b64url(SECRET), "holds 0 keys"),
        ("RS256", public_pem(ED), "not an RSA key"),
        ("RS256", public_pem(generate_private_key(65_537, 1024)), "has 1024 bits"),
        ("EdDSA", public_pem(RSA), "not an Ed25519 key"),
        ("EdDSA", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "cannot be read"),
        ("EdDSA", public_pem(ED) * 9, "holds 9 keys"),
    ],
)
def test_keys_that_do_not_fit_are_named_and_not_shown(algorithm: Algorithm, text: str, why: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        read_keys(algorithm, text, setting="KEY")
    assert why in refused.value.message
    assert not text or text not in refused.value.message
    assert refused.value.__cause__ is None


def test_the_repr_of_keys_shows_none() -> None:
    assert repr(ring()) == "<1 HS256 keys>"
    assert b64url(SECRET) not in repr(Verifier(ring()))
    assert repr(SECRET) not in repr(Verifier(ring()))
