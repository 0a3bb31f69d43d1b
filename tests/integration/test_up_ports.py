"""Two installations that start at the same moment on the same ports: nobody takes the other's processes for its own."""

from pathlib import Path

import pytest

from events.errors import Misconfigured
from service.admin import admin_app, serving
from service.telemetry import Metrics
from service.up.units import Process


async def test_what_another_process_answers_is_no_readiness(tmp_path: Path) -> None:
    async with serving(admin_app(Metrics("api"), {}), "127.0.0.1", 0, setting="-") as port:
        ours = Process(
            "api",
            environment={},  # it refuses to start, and takes a moment to say so
            log_file=tmp_path / "api.log",
            url=None,
            admin_url=f"http://127.0.0.1:{port}",
            stop_s=1.0,
        )
        with pytest.raises(Misconfigured, match="api ended before it was ready") as refused:
            await ours.start()
    assert "HUBLOG_NATS_URL is not set" in refused.value.message
