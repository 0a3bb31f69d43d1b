"""What the chart tells each process is what the real settings loader accepts for its role."""

import pytest

from service.settings import Settings
from tests.servers.chart import command_line, containers, environment, render

SECRETS = {
    "nats": {"url": "nats://hublog:pw@nats:4222"},
    "postgres": {"dsn": "postgresql://hublog:pw@postgres/hublog"},
}


@pytest.mark.parametrize("role", ["gateway", "projector", "api", "migrate"])
def test_the_loader_accepts_what_the_chart_sets(role: str) -> None:
    objects = render()
    (container,) = [
        container for owner in objects for _, container in containers(owner) if command_line(container)[-1] == role
    ]
    told = environment(container, SECRETS, objects=objects)
    assert command_line(container) == ["python", "-m", "service", role]
    settings = Settings.read(told, role)
    assert settings.partitions == 8
