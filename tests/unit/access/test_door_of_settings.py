"""The door that a process makes of its settings, and the mistakes that it names."""

from pathlib import Path

import pytest

from events.errors import Misconfigured, OriginRefused, TokenInvalid, TokenMissing
from events.ids import b64url
from service.process.access import COUNTED, make_door, mint
from service.settings import Settings

KEY, OTHER = b64url(bytes(32)), b64url(bytes(range(32)))
SERVED = {"HUBLOG_NATS_URL": "nats://127.0.0.1:4222", "HUBLOG_SECRETS": KEY}


def settings(**more: str) -> Settings:
    return Settings.read({**SERVED, **{f"HUBLOG_{name}": value for name, value in more.items()}}, "gateway")


def token(told: Settings, user: str = "ann") -> str:
    return mint(told, user=user, hubs=(), scopes=(), metadata=None, ttl_s=60)


def test_the_door_is_locked_unless_it_is_said_to_be_open() -> None:
    door = make_door(settings(JWT_KEY=KEY))
    assert door.locked
    with pytest.raises(TokenMissing):
        door.claims(None)
    unlocked = make_door(settings(AUTH="none"))
    assert not unlocked.locked
    assert unlocked.claims(None) is None
    assert unlocked.claims("Bearer whatever", "and more") is None


def test_a_key_may_stand_in_a_file_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{OTHER}\n{KEY}\n")
    door = make_door(settings(JWT_KEY_FILE=str(file)))
    for signer in (KEY, OTHER):
        claims = door.claims(None, token(settings(JWT_KEY=signer)))
        assert claims is not None
        assert claims.user == "ann"
    with pytest.raises(TokenInvalid):
        door.claims(None, token(settings(JWT_KEY=b64url(b"x" * 32))))


def test_what_is_wrong_with_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"HUBLOG_JWT_KEY_FILE .*/none cannot be read: No such file"):
        make_door(settings(JWT_KEY_FILE=str(tmp_path / "none")))
    (tmp_path / "weak").write_text("c2hvcnQ")
    with pytest.raises(Misconfigured, match=r"key 1 of HUBLOG_JWT_KEY_FILE .*/weak has 5 bytes"):
        make_door(settings(JWT_KEY_FILE=str(tmp_path / "weak")))


def test_issuer_and_audience_are_minted_and_asked_for() -> None:
    here = settings(JWT_KEY=KEY, JWT_ISSUER="us", JWT_AUDIENCE="hublog")
    claims = make_door(here).claims(f"Bearer {token(here)}")
    assert claims is not None
    assert claims.user == "ann"
    with pytest.raises(TokenInvalid, match="exp"):
        make_door(here).claims(f"Bearer {token(settings(JWT_KEY=KEY))}")


def test_names_are_trusted_only_behind_tokens() -> None:
    make_door(settings(JWT_KEY=KEY)).origins.check("http://app.example", "app.example")
    unlocked = make_door(settings(AUTH="none", ALLOWED_ORIGINS="https://app.example")).origins
    unlocked.check("http://127.0.0.1:8000", "127.0.0.1:8000")
    unlocked.check("http://[::1]:8000", "[::1]:8000")
    unlocked.check("http://localhost:8000", "localhost:8000")
    unlocked.check("https://app.example", "hublog.internal")
    unlocked.check(None, "anything")
    with pytest.raises(OriginRefused):
        unlocked.check("http://app.example", "app.example")


def test_every_code_of_the_door_is_counted_from_the_start() -> None:
    assert COUNTED == (
        "hub_forbidden",
        "origin_refused",
        "scope_missing",
        "token_expired",
        "token_invalid",
        "token_missing",
        "token_user_mismatch",
    )
