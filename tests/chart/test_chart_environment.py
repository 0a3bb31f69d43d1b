"""What the chart tells each process is what the real settings loader accepts for its role, and what the value meant."""

import re
from typing import Any

import helm_python
import pytest

from events.errors import Misconfigured
from service.settings import Role, Settings, variables
from tests.servers.chart import command_line, containers, environment, render
from tests.servers.chart_values import EVERYTHING, HOSTILE, LEAST, SECRETS, SETS

NOT_ON_A_CLUSTER = {
    *("HUBLOG_DATA_DIR", "HUBLOG_NATS_BIN", "HUBLOG_NATS_SYNC", "HUBLOG_POSTGRES_BIN"),  # of `up`'s own servers
    "HUBLOG_JWT_KEY_FILE",  # a Secret is a variable already
}
ROLES: dict[str, Role] = {
    "gateway": "gateway",
    "api": "api",
    "projector": "projector",
    "migrate": "migrate",
    "wait": "wait",
    "probe": "token",
}
"""By the command that a container runs."""


def told(values: dict[str, Any], *, name: str = "hublog") -> dict[str, list[dict[str, str]]]:
    """The variables of every container, by the command that it runs."""
    objects = render(values, name=name)
    found: dict[str, list[dict[str, str]]] = {}
    for owner in objects:
        for _, container in containers(owner):
            assert command_line(container)[:3] == ["python", "-m", "service"]
            secrets = {**SECRETS, "nats": {values["nats"].get("key", "url"): SECRETS["nats"]["url"]}}
            variables = environment(container, secrets, objects=objects)
            found.setdefault(command_line(container)[3], []).append(variables)
    return found


@pytest.mark.parametrize("name", SETS)
def test_the_loader_accepts_what_the_chart_sets(name: str) -> None:
    by_command = told(SETS[name])
    assert {"gateway", "api", "projector", "wait"} <= by_command.keys() <= ROLES.keys()
    for command, environments in by_command.items():
        for environ in environments:
            Settings.read(environ, ROLES[command])


def test_values_arrive_as_they_were_meant() -> None:
    by_command = told(EVERYTHING)
    (gateway,) = (Settings.read(it, "gateway") for it in by_command["gateway"])
    assert (gateway.partitions, gateway.nats_replicas) == (16, 5)
    assert (gateway.max_age_s, gateway.duplicate_window_s) == (3 * 86_400, 600)
    assert (gateway.session_ttl_s, gateway.session_manager) == (7200, "own.package:factory")
    assert (gateway.nats_grace_s, gateway.outbox_age_s, gateway.ping_interval_s) == (45, 20, 10)
    assert (gateway.message_bytes_max, gateway.outbox_bytes_max) == (65_536, 2 * 1024**2)
    assert (gateway.canary_every_s, Settings.read(by_command["api"][0], "api").stale_after_s) == (120, 120)
    assert (gateway.client_timeout_s, gateway.handshake_timeout_s, gateway.drain_s) == (25, 5, 120)
    assert gateway.allowed_origins == ("https://app.example.com", "https://other.example.com")
    assert (gateway.auth, gateway.jwt_issuer, gateway.jwt_audience) == ("jwt", "https://id.example.com", "hublog")
    assert gateway.jwt_key is not None
    assert gateway.jwt_key.reveal() == SECRETS["own-keys"]["verify"]
    assert gateway.secrets is not None
    assert gateway.secrets.reveal() == SECRETS["own-keys"]["seal"]
    assert (gateway.host, gateway.log_level, gateway.node_name(0)) == ("0.0.0.0", "debug", "pod-0")
    assert (gateway.otlp_endpoint, gateway.trace_ratio) == ("http://collector.observability:4318", 0.00001)
    assert by_command["gateway"][0]["OTEL_EXPORTER_OTLP_HEADERS"] == "authorization=Bearer x"
    assert by_command["probe"] == [{"HUBLOG_TOKEN": "a.b.c"}]


def test_every_setting_has_its_value() -> None:
    """Of a new setting somebody has to say which value sets it, or why none does."""
    names = {name for values in (EVERYTHING, LEAST) for them in told(values).values() for it in them for name in it}
    made = {name for name in names if name.startswith("HUBLOG_")} - {"HUBLOG_TOKEN"}
    assert made == {variable.name for variable in variables().values()} - NOT_ON_A_CLUSTER


def test_secrets_go_where_they_are_needed() -> None:
    by_command = told(SETS["defaults"])

    def who(name: str) -> set[str]:
        return {command for command, them in by_command.items() if any(name in it for it in them)}

    assert who("HUBLOG_SECRETS") == {"gateway"}
    assert who("HUBLOG_JWT_KEY") == {"gateway", "api", "probe"}
    assert who("HUBLOG_POSTGRES_DSN") == {"gateway", "api", "projector", "migrate", "wait"}
    assert sorted("HUBLOG_POSTGRES_DSN" in it for it in by_command["wait"]) == [False, True, True], (
        "a gateway starts without Postgres"
    )
    assert "HUBLOG_POSTGRES_DSN" not in told(LEAST)["gateway"][0]
    assert who("HUBLOG_NATS_URL") == {"gateway", "api", "projector", "migrate", "wait"}


def test_keys_are_made_anew_for_each_install_and_are_good() -> None:
    first, second = (Settings.read(told(SETS["defaults"])["gateway"][0], "gateway") for _ in range(2))
    assert first.secrets != second.secrets
    assert first.jwt_key != second.jwt_key


def test_strange_text_stays_text() -> None:
    (gateway,) = told(HOSTILE)["gateway"]
    assert gateway["NASTY"] == HOSTILE["gateway"]["extraEnv"][0]["value"].replace(
        "$(HUBLOG_SECRETS)", gateway["HUBLOG_SECRETS"]
    ), "as the operator wrote it; a reference to a variable is Kubernetes' to follow"
    assert gateway["EMPTY"] == ""
    assert gateway["HUBLOG_JWT_ISSUER"] == HOSTILE["auth"]["issuer"]
    assert "EVIL" not in gateway


TIMES = (
    *("0s", "0.05s", "0.15s", "0.5s", "1s", "1.5s", "14s", "15s", "16s", "89s", "90s", "90.5s", "121s", "59.5m", "60m"),
    *("61m", "24h", "25h", "7d", "8d", "30d", "31d", "3650d", "3651d"),
)
SIZES = ("1023", "1024", "1KiB", "63KiB", "64KiB", "512KiB", "513KiB", "1024MiB", "1025MiB")
BOUNDED = {
    "log.maxAge": ("HUBLOG_MAX_AGE", TIMES),
    "log.duplicateWindow": ("HUBLOG_DUPLICATE_WINDOW", TIMES),
    "sessions.ttl": ("HUBLOG_SESSION_TTL", TIMES),
    "readModels.staleAfter": ("HUBLOG_STALE_AFTER", TIMES),
    "connections.natsGrace": ("HUBLOG_NATS_GRACE", TIMES),
    "connections.outboxAge": ("HUBLOG_OUTBOX_AGE", TIMES),
    "connections.pingInterval": ("HUBLOG_PING_INTERVAL", TIMES),
    "connections.clientTimeout": ("HUBLOG_CLIENT_TIMEOUT", TIMES),
    "connections.handshakeTimeout": ("HUBLOG_HANDSHAKE_TIMEOUT", TIMES),
    "gateway.canaryEvery": ("HUBLOG_CANARY_EVERY", TIMES),
    "connections.messageBytesMax": ("HUBLOG_MESSAGE_BYTES_MAX", SIZES),
    "connections.outboxBytesMax": ("HUBLOG_OUTBOX_BYTES_MAX", SIZES),
}


@pytest.mark.parametrize("path", BOUNDED)
def test_the_chart_refuses_what_the_loader_would(path: str) -> None:
    section, value_name = path.split(".")
    variable, tried = BOUNDED[path]
    (plain,) = told(LEAST)["gateway"]
    for value in tried:
        try:
            Settings.read({**plain, variable: value}, "gateway")
            accepted = True
        except Misconfigured:
            accepted = False
        values = {**LEAST, section: {**LEAST.get(section, {}), value_name: value}}
        if accepted:
            assert render(values)
        else:
            with pytest.raises(helm_python.HelmError, match=re.escape(section)):
                render(values)


def test_every_value_with_bounds_is_compared() -> None:
    bounded = {one.name for one in variables().values() if re.search(r"seconds, or|bytes, or", one.expectation)}
    assert bounded - {variable for variable, _ in BOUNDED.values()} == {"HUBLOG_DRAIN"}, "a whole number in the chart"
