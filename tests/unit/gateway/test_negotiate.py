"""What negotiation answers, byte for byte."""

import pytest

from events.errors import InvalidQuery, ShuttingDown
from service.gateway import negotiate


@pytest.mark.parametrize(("asked", "version"), [(None, 0), ("0", 0), ("1", 1), ("2", 1), ("999999999", 1)])
def test_the_version_is_the_lower_of_both(asked: str | None, version: int):
    assert negotiate.version_of(asked) == version


@pytest.mark.parametrize("asked", ["", "-1", "+1", " 1", "1.0", "x", "1_0", "\u0661", "9" * 5000])
def test_a_version_that_is_no_number_is_refused(asked: str):
    with pytest.raises(InvalidQuery):
        negotiate.version_of(asked)


def test_version_1_tells_the_public_id_and_the_secret_token():
    assert negotiate.answer(1, "pub", "tok") == (
        b'{"negotiateVersion":1,"connectionId":"pub",'
        b'"availableTransports":[{"transport":"WebSockets","transferFormats":["Text"]}],"connectionToken":"tok"}'
    )


def test_version_0_knows_no_token_so_the_id_is_the_token():
    assert negotiate.answer(0, "pub", "tok") == (
        b'{"negotiateVersion":0,"connectionId":"tok",'
        b'"availableTransports":[{"transport":"WebSockets","transferFormats":["Text"]}]}'
    )


def test_a_refusal_is_what_stock_clients_show():
    body = negotiate.refusal(ShuttingDown("this node is draining"))
    assert body == b'{"error":"shutting_down: this node is draining. Connect again; another node takes over."}'
