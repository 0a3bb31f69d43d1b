"""``hublog up`` starts one NATS server, and says so to whoever asks for replicas on several."""

import pytest
from rich.console import Console

from events.errors import Misconfigured
from service.process import up
from service.settings import Settings


async def test_replicas_need_a_cluster_of_ones_own() -> None:
    settings = Settings.read({"HUBLOG_NATS_REPLICAS": "3"}, "up")
    with pytest.raises(Misconfigured, match="HUBLOG_NATS_REPLICAS is 3, but `up` starts one NATS server"):
        await up.run(settings, gateways=1, restart=True, console=Console())
