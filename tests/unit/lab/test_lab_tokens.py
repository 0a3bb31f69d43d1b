"""What the lab does with an access token: shows it, reads whose it is, and writes it nowhere."""

from urllib.parse import parse_qs

import jwt
import pytest

from lab.chaos.wire import user_of
from lab.install import Gateway, Install, admitted

TOKEN = jwt.encode({"sub": "ann", "exp": 1}, b"k" * 32, algorithm="HS256")


def test_every_connection_of_an_installation_shows_its_token() -> None:
    install = Install([Gateway("http://a"), Gateway("http://b")], "as found", "/")
    assert [gateway.query for gateway in admitted(install, None).gateways] == [None, None]
    for gateway in admitted(install, TOKEN).gateways:
        assert gateway.query is not None
        assert parse_qs(gateway.query(7)) == {"access_token": [TOKEN]}


def test_the_user_is_the_tokens() -> None:
    assert user_of(TOKEN) == "ann"


@pytest.mark.parametrize("text", ["", "a.b", "a.b.c", "a.!!.c", "a.e30.c", "\udcff.x.y", "a.bnVsbA.c"])
def test_what_is_no_token_names_nobody(text: str) -> None:
    assert user_of(text) is None


def test_the_user_of_a_token_is_not_looked_for_beyond_its_claims() -> None:
    other = jwt.encode({"exp": 1, "user": "bob", "nested": {"sub": "eve"}}, b"k" * 32, algorithm="HS256")
    assert user_of(other) is None
