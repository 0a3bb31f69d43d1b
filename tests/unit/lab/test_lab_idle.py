"""How late the machine wakes, and keeping it awake."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from lab import idle
from lab.cli import app


def test_a_sleeper_wakes_late_and_never_early():
    found = idle.waking(kept_awake=False, beats=50)
    assert 0 < found.p50_us <= found.p99_us


def test_the_kernel_is_asked_for_no_latency_for_as_long_as_it_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    device = tmp_path / "cpu_dma_latency"
    device.touch()
    monkeypatch.setattr(idle, "LATENCY_DEVICE", str(device))
    with idle.kept_awake():
        assert device.read_bytes() == b"\0\0\0\0"
        held = [fd for fd in Path("/proc/self/fd").iterdir() if fd.resolve() == device]
        assert len(held) == 1
    assert not [fd for fd in Path("/proc/self/fd").iterdir() if fd.resolve() == device]


def test_who_may_not_is_told_before_anything_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(idle, "LATENCY_DEVICE", str(tmp_path / "none"))
    answer = CliRunner().invoke(app, ["latency", "--awake", "--data-dir", str(tmp_path)])
    assert answer.exit_code == 1
    assert "run as root, or without --awake" in " ".join(answer.stderr.split())
    assert not list(tmp_path.iterdir())
