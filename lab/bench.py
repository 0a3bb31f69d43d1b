"""The bench: brings an installation, measurements and a report together.

Owns the order of things, and that whatever was started ends. ``run`` is what the command line calls.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import uvloop

from lab.client import CallFailed, NotOpened
from lab.connect import connect
from lab.fanout import fanout
from lab.idle import kept_awake, waking
from lab.install import Install, admitted, embedded, epitaph, read_processes, running
from lab.latency import Plan, latency
from lab.load import Progress
from lab.proc import Gone, machine, others_cpu_us, raise_file_limit, stolen_us
from lab.report import Report
from lab.resume import Plan as ResumePlan
from lab.resume import resume

SPARE_FILES = 200
"""Files that the bench has open beside its connections."""
EVERYTHING = ("connect", "fanout", "latency", "resume")


class Options(msgspec.Struct, frozen=True):
    """What to measure, on what. Without ``urls`` and ``processes`` an installation is started for it.

    ``token``: the access token of all sessions, for one that runs already and asks for it. ``awake``: idle cores do not
    sleep meanwhile.
    """

    measures: tuple[str, ...] = EVERYTHING
    sessions: int = 10_000
    fanout_sessions: int = 5_000
    resumed_sessions: int = 5_000
    resume_rate: int = 100
    rounds: int = 60
    rates: tuple[int, ...] = (1_000, 2_000, 5_000)
    seconds: float = 10.0
    receivers: int = 10
    stuck: int = 0
    argument_bytes: int = 300
    syncs: tuple[str, ...] = ("relaxed", "always")
    urls: tuple[str, ...] = ()
    processes: Path | None = None
    data_parent: Path | None = None
    token: str | None = None
    awake: bool = False


class Unsuitable(Exception):
    """The options do not fit together; the text says why."""


def run(options: Options, progress: Progress) -> Report:
    """Measures, and leaves nothing running.

    Raises: Unsuitable, NotEnoughFiles, StaysAsleep, NotStarted, RuntimeError.
    """
    needed = max(
        options.sessions if "connect" in options.measures else 0,
        options.fanout_sessions if "fanout" in options.measures else 0,
        options.resumed_sessions if "resume" in options.measures else 0,
    )
    # Before anything is started: the gateways inherit the limit.
    raise_file_limit(needed + options.receivers + SPARE_FILES)
    with kept_awake() if options.awake else contextlib.nullcontext():
        return uvloop.run(_until_told(options, progress))


async def _until_told(options: Options, progress: Progress) -> Report:
    """SIGTERM ends a run as Ctrl-C does: what it started is stopped, and its data removed."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await _run(options, progress)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def stages(options: Options) -> list[tuple[str, str]]:
    """(measure, sync) in order. Each is given an installation of its own, so that none starts amid another's debris.

    Sessions and fan-out run with fsync always, the service's default; latency with each that was asked for.
    """
    if options.urls or options.processes is not None:
        if options.measures == ("resume",):
            raise Unsuitable("resume kills a gateway: it measures an installation of its own")
        return [(measure, "as found") for measure in options.measures if measure != "resume"]
    return [
        (measure, sync)
        for measure in options.measures
        for sync in (options.syncs if measure == "latency" else ("always",))
    ]


async def _run(options: Options, progress: Progress) -> Report:
    report: Report | None = None
    for measure, sync in stages(options):
        async with _installation(options, sync, progress) as install:
            if report is None:
                report = Report(machine(Path(install.data)), install.data)
                report.waking = await asyncio.to_thread(waking, kept_awake=options.awake)
            before, stolen_before, started = _others_us(install), stolen_us(), time.perf_counter()
            try:
                await _measure(measure, install, options, report, progress)
            except (RuntimeError, NotOpened, CallFailed, Gone) as exc:
                words = await asyncio.to_thread(epitaph, install)
                raise RuntimeError(f"{exc}\n{words}".rstrip()) from exc
            passed_us = (time.perf_counter() - started) * 1e6
            report.others_cores = max(report.others_cores, (_others_us(install) - before) / passed_us)
            report.stolen_cores = max(report.stolen_cores, (stolen_us() - stolen_before) / passed_us)
    if report is None:
        raise Unsuitable("nothing was asked for")
    return report


def _others_us(install: Install) -> int:
    """What everything but the installation and this bench has used."""
    return others_cpu_us({os.getpid(), *install.pids.values()})


async def _measure(measure: str, install: Install, options: Options, report: Report, progress: Progress) -> None:
    gateway = install.gateways[0]
    if measure == "connect":
        report.connect.append(await connect(gateway, options.sessions, progress))
    elif measure == "fanout":
        size = options.argument_bytes
        report.fanout.append(await fanout(gateway, options.fanout_sessions, options.rounds, size, progress))
    elif measure == "resume":
        plan = ResumePlan(options.resumed_sessions, options.resume_rate, options.argument_bytes)
        report.resume.append(await resume(install, plan, progress))
    elif len(install.gateways) < 2:
        raise Unsuitable("latency is measured between two gateways; name a second --url")
    else:
        for rate in options.rates:
            steady = Plan(rate, options.seconds, options.receivers, options.argument_bytes, options.stuck)
            report.latency.append(await latency(install, steady, progress))


@contextlib.asynccontextmanager
async def _installation(options: Options, sync: str, progress: Progress) -> AsyncIterator[Install]:
    if options.urls:
        yield admitted(running(list(options.urls)), options.token)
    elif options.processes is not None:
        yield admitted(await asyncio.to_thread(read_processes, options.processes, "as found"), options.token)
    else:
        progress(0, 1, f"starting an installation, fsync {sync}")
        async with embedded(2, sync, options.data_parent) as install:
            yield install
