"""``hublog chaos`` on real processes, short: the product keeps its promises; made not to, it is found out."""

import asyncio
import os
import sys
from pathlib import Path

import msgspec
import pytest

from lab.chaos.checker import check
from lab.chaos.history import read_evidence
from lab.chaos.verdict import Verdict
from tests.servers.chaos_histories import MUTATIONS

BOUND_S = 90

# What a gateway imports before anything else, in the mutated runs: a fault of delivery that no setting could cause.
SABOTAGE = """
import sys
if "gateway" in sys.orig_argv:
    from service.delivery import outbox
    honest, count, held = outbox.Outbox.write, 0, {{}}

    def write(self, frame):
        global count
        if b'"target":"chaos"' not in frame:
            return honest(self, frame)
        count += 1
        {fault}

    outbox.Outbox.write = write
"""
FAULTS = {
    "lost": "return None if count % 60 == 0 else honest(self, frame)",
    "duplicated": "honest(self, frame)\n        return honest(self, frame) if count % 60 == 0 else None",
    "out_of_order": (
        "if count % 60 == 0 and self not in held:\n            held[self] = frame\n            return None\n"
        "        honest(self, frame)\n        late = held.pop(self, None)\n"
        "        return honest(self, late) if late is not None else None"
    ),
}


async def chaos(*arguments: str, **environment: str) -> tuple[int | None, Verdict]:
    """Its exit status and verdict, within the bound."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HUBLOG_")}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "service", "chaos"),
        *arguments,
        "--json",
        env={**inherited, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(BOUND_S):
            said, problems = await child.communicate()
    finally:
        if child.returncode is None:
            child.terminate()
            await child.wait()
    assert child.returncode in {0, 1}, problems.decode()
    return child.returncode, msgspec.json.decode(said, type=Verdict)


async def test_nothing_is_lost_while_gateways_and_the_projector_are_killed_and_sockets_cut(tmp_path: Path):
    status, verdict = await chaos(
        *("--seed", "7", "--seconds", "22", "--sessions", "40", "--gateways", "2"),
        *("--faults", "kill-gateway,cut-clients,kill-projector"),
        *("--history", str(tmp_path / "history"), "--data-dir", str(tmp_path)),
    )
    assert (status, verdict.violations) == (0, [])
    figures = verdict.figures
    assert figures.faults.keys() == {"kill-gateway", "cut-clients", "kill-projector"}
    assert figures.settled == 40  # everybody is back
    assert figures.resumed > 10
    assert figures.expected > 1_000
    assert [one.name for one in tmp_path.iterdir()] == ["history"]  # nothing else is left behind

    # The same evidence, and one mistake of the service planted in it: each is found.
    evidence = read_evidence(tmp_path / "history")
    assert check(evidence).violations == []
    for mutation, kind in MUTATIONS.items():
        assert kind in check(mutation(evidence)).kinds, mutation.__name__


@pytest.mark.parametrize(("kind", "fault"), FAULTS.items(), ids=FAULTS)
async def test_a_gateway_that_delivers_wrongly_is_found_out(tmp_path: Path, kind: str, fault: str):
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE.format(fault=fault))
    status, verdict = await chaos(
        *("--seed", "7", "--seconds", "4", "--sessions", "20", "--faults", "cut-clients"),
        *("--history", str(tmp_path / "history"), "--data-dir", str(tmp_path)),
        PYTHONPATH=str(tmp_path),
    )
    assert status == 1
    assert kind in verdict.kinds


async def test_a_gateway_that_ignores_its_lease_is_found_out(tmp_path: Path):
    """Stopped for longer than its lease, it stores on waking what it was asked: no setting could make it."""
    (tmp_path / "sitecustomize.py").write_text(
        'import sys\nif "gateway" in sys.orig_argv:\n'
        "    from service.nodes import lease\n    lease.SUSPENDED_AFTER_S = 1e9\n"
    )
    # The first pause of this seed begins after 1.5 s and lasts 13.6 s.
    status, verdict = await chaos(
        *("--seed", "50", "--seconds", "18", "--sessions", "60", "--rate", "120", "--faults", "pause-gateway"),
        *("--history", str(tmp_path / "history"), "--data-dir", str(tmp_path)),
        PYTHONPATH=str(tmp_path),
    )
    assert status == 1
    assert "fenced_append" in verdict.kinds
