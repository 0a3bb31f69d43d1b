"""Settings: defaults, every mistake named at once, what each role needs, secrets that stay hidden."""

from pathlib import Path

import pytest

from events.errors import Misconfigured
from events.ids import b64url
from service.settings import Settings, variables
from service.spelling import Secret

KEY = b64url(bytes(32))
SERVERS = {"HUBLOG_NATS_URL": "nats://u:pw@127.0.0.1:4222", "HUBLOG_POSTGRES_DSN": "postgresql://h@/h?host=/tmp"}
COMPLETE = {**SERVERS, "HUBLOG_AUTH": "none", "HUBLOG_SECRETS": KEY}


def mistakes(environ: dict[str, str], role: str = "gateway") -> list[str]:
    with pytest.raises(Misconfigured) as refusal:
        Settings.read(environ, role)
    return refusal.value.message.splitlines()


def test_up_needs_nothing() -> None:
    settings = Settings.read({"PATH": "/bin"}, "up")
    assert (settings.partitions, settings.host, settings.gateway_port) == (1, "127.0.0.1", 8000)
    assert (settings.max_age_s, settings.duplicate_window_s, settings.message_bytes_max) == (604_800, 120, 32_768)


def test_values_are_read_with_their_units() -> None:
    settings = Settings.read(
        {**COMPLETE, "HUBLOG_MAX_AGE": "2h", "HUBLOG_OUTBOX_BYTES_MAX": "2MiB", "HUBLOG_DATA_DIR": "/x"}, "gateway"
    )
    assert (settings.max_age_s, settings.outbox_bytes_max, settings.data_dir) == (7200, 2 * 1024**2, Path("/x"))


def test_every_mistake_is_named_at_once() -> None:
    found = mistakes(
        {"HUBLOG_PARTITIONS": "0", "HUBLOG_MAX_AGE": "soon", "HUBLOG_HOST": "here", "HUBLOG_GATEWAYPORT": "1"}
    )
    assert [line.split()[0] for line in found] == [
        "HUBLOG_GATEWAYPORT",
        "HUBLOG_HOST",
        "HUBLOG_MAX_AGE",
        "HUBLOG_PARTITIONS",
        "HUBLOG_NATS_URL",
        "HUBLOG_SECRETS",
        "HUBLOG_JWT_KEY",
    ]
    assert "did you mean HUBLOG_GATEWAY_PORT?" in found[0]


@pytest.mark.parametrize(
    ("role", "needed"),
    [
        ("up", set()),
        ("gateway", {"HUBLOG_NATS_URL", "HUBLOG_SECRETS", "HUBLOG_JWT_KEY"}),
        ("projector", {"HUBLOG_NATS_URL", "HUBLOG_POSTGRES_DSN"}),
        ("api", {"HUBLOG_NATS_URL", "HUBLOG_POSTGRES_DSN", "HUBLOG_JWT_KEY"}),
        ("migrate", {"HUBLOG_NATS_URL", "HUBLOG_POSTGRES_DSN"}),
        ("wait", {"HUBLOG_NATS_URL"}),
        ("tail", set()),
        ("token", set()),
    ],
)
def test_each_role_says_what_it_needs(role: str, needed: set[str]) -> None:
    missing = {line.split()[0] for line in mistakes({}, role)} if needed else set()
    assert missing == needed
    complete = {**SERVERS, "HUBLOG_SECRETS": KEY, "HUBLOG_JWT_KEY": KEY}
    Settings.read({name: value for name, value in complete.items() if name in needed}, role)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_is_served(host: str) -> None:
    assert Settings.read({**COMPLETE, "HUBLOG_HOST": host}, "gateway").host == host


@pytest.mark.parametrize("role", ["up", "gateway", "projector", "api"])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2"])
def test_nobody_listens_beyond_loopback_without_tokens_unless_told_twice(host: str, role: str) -> None:
    told_once = {**COMPLETE, "HUBLOG_HOST": host}
    (line,) = mistakes(told_once, role)
    assert line.startswith(f"HUBLOG_AUTH is none and HUBLOG_HOST is {host}:")
    twice = {**told_once, "HUBLOG_AUTH_NONE_BEYOND_LOOPBACK": "yes-i-know"}
    assert Settings.read(twice, role).host == host
    locked = {**told_once, "HUBLOG_AUTH": "jwt", "HUBLOG_JWT_KEY": KEY}
    assert Settings.read(locked, role).auth == "jwt"


def test_tokens_are_asked_for_by_default_but_for_up_on_loopback() -> None:
    assert Settings.read({}, "up").auth == "none"
    assert mistakes({"HUBLOG_HOST": "0.0.0.0"}, "up")[0].startswith("HUBLOG_JWT_KEY is not set: HUBLOG_AUTH is jwt")
    told = {name: value for name, value in COMPLETE.items() if name != "HUBLOG_AUTH"}
    assert mistakes(told)[0].startswith("HUBLOG_JWT_KEY is not set: HUBLOG_AUTH is jwt")
    assert Settings.read({**told, "HUBLOG_JWT_KEY_FILE": "/nowhere"}, "gateway").auth == "jwt"


def test_a_key_that_would_not_be_used_is_a_mistake() -> None:
    (line,) = mistakes({"HUBLOG_JWT_KEY": KEY}, "up")
    assert line.startswith("HUBLOG_JWT_KEY is set and HUBLOG_AUTH is not")
    (line,) = mistakes({**COMPLETE, "HUBLOG_JWT_KEY": KEY, "HUBLOG_JWT_KEY_FILE": "/nowhere"})
    assert line.startswith("HUBLOG_JWT_KEY and HUBLOG_JWT_KEY_FILE are both set")


@pytest.mark.parametrize(
    ("algorithm", "key", "wanted"),
    [("HS256", "-----BEGIN PUBLIC KEY-----", "base64url"), ("RS256", KEY, "PEM"), ("EdDSA", KEY, "PEM")],
)
def test_a_key_of_another_algorithm_is_refused_without_being_shown(algorithm: str, key: str, wanted: str) -> None:
    jwt = {"HUBLOG_AUTH": "jwt", "HUBLOG_JWT_ALGORITHM": algorithm, "HUBLOG_JWT_KEY": key}
    (line,) = mistakes({**COMPLETE, **jwt})
    assert line.startswith("HUBLOG_JWT_KEY must be")
    assert wanted in line
    assert key not in line


@pytest.mark.parametrize("key", ["short", b64url(bytes(31)), f"{KEY},{b64url(bytes(31))}", KEY + "!", ""])
def test_weak_keys_are_refused_without_being_shown(key: str) -> None:
    (line,) = mistakes({**COMPLETE, "HUBLOG_AUTH": "jwt", "HUBLOG_JWT_KEY": key})
    assert line.startswith("HUBLOG_JWT_KEY must be secrets of at least 32 bytes in base64url")
    assert not key or key not in line


def test_bounds_of_time_are_told_as_they_would_be_set() -> None:
    (line,) = mistakes({**COMPLETE, "HUBLOG_MAX_AGE": "1s"})
    assert line.endswith("from 90s to 3650d, not '1s'")
    assert Settings.read({**COMPLETE, "HUBLOG_MAX_AGE": "3650d"}, "gateway").max_age_s == 3650 * 86_400


def test_the_token_of_our_own_tools_is_no_setting_and_no_mistake() -> None:
    assert "abc" not in repr(Settings.read({**COMPLETE, "HUBLOG_TOKEN": "abc"}, "gateway"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HUBLOG_AUTH", "basic"),
        ("HUBLOG_AUTH_NONE_BEYOND_LOOPBACK", "yes"),
        ("HUBLOG_HOST", "example.com"),
        ("HUBLOG_JWT_ALGORITHM", "none"),
        ("HUBLOG_JWT_AUDIENCE", "a b"),
        ("HUBLOG_NATS_SYNC", "never"),
        ("HUBLOG_GATEWAY_PORT", "tcp://10.0.0.1:8000"),
        ("HUBLOG_GATEWAY_PORT", "65536"),
        ("HUBLOG_DRAIN", "-1"),
        ("HUBLOG_DRAIN", "nan"),
        ("HUBLOG_OUTBOX_BYTES_MAX", "1GB"),
        ("HUBLOG_NODE", "a b"),
        ("HUBLOG_ALLOWED_ORIGINS", "example.com"),
        ("HUBLOG_ALLOWED_ORIGINS", "https://*.example.com"),
        ("HUBLOG_ALLOWED_ORIGINS", "https://App.example.com"),
        ("HUBLOG_ALLOWED_ORIGINS", "https://app.example.com:443"),
        ("HUBLOG_ALLOWED_ORIGINS", "https://app.example.com/"),
        ("HUBLOG_SESSION_MANAGER", "module"),
        ("HUBLOG_CLIENT_TIMEOUT", "10"),
        ("HUBLOG_DUPLICATE_WINDOW", ""),
    ],
)
def test_bad_values_are_refused_by_name(name: str, value: str) -> None:
    assert mistakes({**COMPLETE, name: value})[0].startswith(f"{name} must be")


@pytest.mark.parametrize("value", ["short", KEY + ",", KEY + "!", f"{KEY},abcd"])
def test_bad_secrets_are_refused_without_being_shown(value: str) -> None:
    (line,) = mistakes({**COMPLETE, "HUBLOG_SECRETS": value})
    assert line == "HUBLOG_SECRETS must be keys of 32 bytes in base64url, joined by commas"


def test_secrets_are_masked_wherever_settings_are_shown() -> None:
    settings = Settings.read(COMPLETE, "gateway")
    assert KEY not in repr(settings)
    assert "pw" not in f"{settings.nats_url} {settings!r}"
    assert settings.secrets == Secret(KEY)


def test_the_name_of_a_node_is_the_hosts_and_the_index_unless_given() -> None:
    assert Settings.read(COMPLETE, "gateway").node_name(3).endswith("-3")
    assert Settings.read({**COMPLETE, "HUBLOG_NODE": "east-1"}, "gateway").node_name(3) == "east-1"


def test_every_setting_is_documented_by_a_sentence() -> None:
    assert all(variable.doc.endswith(".") for variable in variables().values())


def test_replicas_are_a_number_with_a_majority() -> None:
    assert Settings.read(COMPLETE, "gateway").nats_replicas == 1
    assert Settings.read({**COMPLETE, "HUBLOG_NATS_REPLICAS": "3"}, "gateway").nats_replicas == 3
    assert mistakes({**COMPLETE, "HUBLOG_NATS_REPLICAS": "2"}) == [
        "HUBLOG_NATS_REPLICAS must be 1, 3 or 5: an even number survives no more than the odd one below it, not '2'"
    ]
