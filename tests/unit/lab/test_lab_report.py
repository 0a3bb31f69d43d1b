"""The report: figures beside their bars, and JSON with everything."""

import io
import json
from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from lab import bench
from lab.cli import app
from lab.connect import Connect
from lab.fanout import Fanout
from lab.idle import Waking
from lab.install import Install, epitaph, read_processes
from lab.latency import Latency
from lab.proc import (
    Gone,
    NotEnoughFiles,
    cpu_us,
    family_cpu_us,
    machine,
    others_cpu_us,
    raise_file_limit,
    rss_bytes,
    stolen_us,
)
from lab.report import Report, as_json, missed, show

CONNECT = Connect(10_000, 0, 0, 5.0, 2_000.0, 150.0, 60.0, 24.0, None)
FANOUT = Fanout(5_000, 60, 300, 3.0, 100_000.0, 12.5, 40.0, 60.0, 1, 0, 0)
LATENCY = Latency("relaxed", 1_000, 999.0, 10.0, 10, 300, 0.3, 2.5, 9.0, 0.2, 0.9, 0, None, 0, 0, 0, {"nats": 50.0})


def report() -> Report:
    return Report(machine(Path("/")), "/tmp/x", [CONNECT], [FANOUT], [LATENCY])


def test_the_table_shows_figures_bars_and_verdicts():
    out = io.StringIO()
    show(report(), Console(file=out, width=120))
    text = out.getvalue()
    assert "24.00 KiB" in text
    assert "≤ 25 KiB" in text
    assert "100,000 /s" in text
    assert text.count("missed") == 3


def test_a_disturbed_run_says_so():
    disturbed, out = report(), io.StringIO()
    disturbed.others_cores = 1.25
    show(disturbed, Console(file=out, width=120))
    assert "Other work kept 1.2 cores" in out.getvalue()


def test_a_run_whose_host_took_cores_says_so():
    calm, out = report(), io.StringIO()
    calm.stolen_cores = 0.01
    show(calm, Console(file=out, width=120))
    assert "host of this virtual machine" not in out.getvalue()
    calm.stolen_cores = 0.34
    show(calm, Console(file=out, width=120))
    assert "host of this virtual machine took 0.34 cores" in out.getvalue()


def test_stolen_time_only_grows():
    assert 0 <= stolen_us() <= stolen_us()


@pytest.mark.parametrize(("kept_awake", "words"), [(False, "cores asleep when idle"), (True, "cores kept awake")])
def test_how_fast_the_machine_wakes_is_said_beside_the_figures(kept_awake: bool, words: str):
    measured, out = report(), io.StringIO()
    measured.waking = Waking(61.4, 240.2, kept_awake)
    show(measured, Console(file=out, width=120))
    assert f"{words}: a timer wakes a process 61 µs late, 240 µs at p99" in out.getvalue()
    assert json.loads(as_json(measured))["waking"]["kept_awake"] is kept_awake


def test_what_is_missed_is_named():
    assert [line.rpartition(": ")[2] for line in missed(report())] == [
        "gateway CPU per delivery",
        "lost",
        "delivered, p99",
    ]


def test_bars_of_latency_hold_only_at_their_rate():
    fast = msgspec.structs.replace(LATENCY, rate=5_000)
    assert missed(Report(machine(Path("/")), "/", latency=[fast])) == []


def test_unseen_figures_are_neither_met_nor_missed():
    unseen = msgspec.structs.replace(CONNECT, kib_each=None, cpu_us_per_open=None, rss_before_mib=None)
    assert missed(Report(machine(Path("/")), "/", connect=[unseen])) == []


def test_json_holds_everything():
    found = json.loads(as_json(report()))
    assert found["connect"][0]["kib_each"] == 24.0
    assert found["latency"][0]["sync"] == "relaxed"
    assert found["machine"]["cores"] >= 1


def test_every_measure_gets_an_installation_of_its_own():
    assert bench.stages(bench.Options()) == [
        ("connect", "always"),
        ("fanout", "always"),
        ("latency", "relaxed"),
        ("latency", "always"),
        ("resume", "always"),
    ]
    assert bench.stages(bench.Options(("latency",), urls=("http://x",))) == [("latency", "as found")]


def test_resume_kills_nothing_that_it_did_not_start():
    assert bench.stages(bench.Options(("connect", "resume"), urls=("http://x",))) == [("connect", "as found")]
    with pytest.raises(bench.Unsuitable, match="kills a gateway"):
        bench.stages(bench.Options(("resume",), urls=("http://x",)))


def test_processes_json_names_gateways_in_order(tmp_path: Path):
    board = tmp_path / "processes.json"
    board.write_text(
        json.dumps(
            [
                {"role": "nats", "index": 0, "pid": 1, "url": "nats://x", "admin_url": None},
                {"role": "gateway", "index": 1, "pid": 12, "url": "http://h:8001", "admin_url": "http://h:8201"},
                {"role": "gateway", "index": 0, "pid": 11, "url": "http://h:8000", "admin_url": "http://h:8200"},
            ]
        )
    )
    found = read_processes(board, "always")
    assert [(one.url, one.pid) for one in found.gateways] == [("http://h:8000", 11), ("http://h:8001", 12)]
    assert found.pids == {"nats": 1, "gateway 0": 11, "gateway 1": 12}


def test_a_hard_limit_that_is_too_low_is_said_clearly():
    with pytest.raises(NotEnoughFiles, match="hard limit"):
        raise_file_limit(2**40)


def test_figures_of_this_very_process(tmp_path: Path):
    import os

    assert rss_bytes(os.getpid()) > 2**20
    assert family_cpu_us(os.getpid()) >= cpu_us(os.getpid()) > 0
    assert machine(tmp_path).data_filesystem != "unknown"


def test_the_time_of_others_is_everything_but_ones_own():
    import os

    everyone = others_cpu_us(set())
    without_us = others_cpu_us({os.getpid()})
    assert everyone - without_us >= cpu_us(os.getpid()) // 2 > 0
    assert others_cpu_us({1}) <= without_us  # everything in user space descends from 1


def test_the_last_words_of_a_dead_process_are_kept(tmp_path: Path):
    import os

    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "gateway-1.log").write_text("out of ink")
    (tmp_path / "logs" / "nats.log").write_text("still writing")
    words = epitaph(Install([], "always", str(tmp_path), {"gateway 1": 2**22 + 1, "nats": os.getpid()}))
    assert "gateway 1 has ended" in words
    assert "out of ink" in words
    assert "still writing" not in words


def test_a_process_that_has_ended_is_said_to_be_gone():
    with pytest.raises(Gone, match="has ended"):
        cpu_us(2**22 + 1)  # above the highest pid there can be


def test_the_command_line_names_what_it_measures():
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    for name in ("connect", "fanout", "latency", "resume", "all"):
        assert name in shown.output


def test_the_command_line_says_what_it_cannot_do():
    refused = CliRunner().invoke(app, ["latency", "--url", "http://127.0.0.1:1", "--seconds", "0.5"])
    assert refused.exit_code == 1
    assert "second --url" in refused.output
    assert CliRunner().invoke(app, ["latency", "--sync", "never"]).exit_code == 2
