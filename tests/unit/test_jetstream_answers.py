"""What a refused write means to its caller, by the code that nats-server 2.15 gives."""

import pytest

from events.errors import HublogError, Internal, LogFull, PayloadTooLarge
from service.log.jetstream.answers import failure
from service.log.jetstream.replies import ApiError


@pytest.mark.parametrize(
    ("code", "said", "meant"),
    [
        (10077, "maximum bytes exceeded", LogFull),
        (10002, "resource limits exceeded for account", LogFull),
        (10023, "insufficient resources", LogFull),
        (10054, "message size exceeds maximum allowed", PayloadTooLarge),
        (10999, "something new", Internal),
    ],
)
def test_a_limit_of_stream_account_or_server_is_a_full_log(code: int, said: str, meant: type[HublogError]) -> None:
    error = failure(code, ApiError(err_code=code, description=said))
    assert type(error) is meant
    assert said in error.message
