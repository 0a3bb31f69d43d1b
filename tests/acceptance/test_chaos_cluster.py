"""``hublog chaos`` on three NATS servers, short: a leader killed, a node wiped and added again, a node cut off.

The long run, with ten kills, and its figures are in docs/reliability.md.
"""

from pathlib import Path

from tests.acceptance.test_chaos_short import chaos


async def test_nothing_is_lost_while_servers_of_the_log_die_lose_their_disks_and_each_other(tmp_path: Path):
    status, verdict = await chaos(
        *("--nats-nodes", "3", "--seed", "11", "--seconds", "24", "--sessions", "30", "--rate", "25"),
        *("--faults", "kill-leader,wipe-node,part-node"),
        *("--history", str(tmp_path / "history"), "--data-dir", str(tmp_path)),
    )
    assert (status, verdict.violations) == (0, [])
    figures = verdict.figures
    assert figures.faults.keys() == {"kill-leader", "wipe-node", "part-node"}
    assert figures.settled == 30  # everybody is back
    assert figures.expected > 500
    assert "node_lost" not in figures.ends  # two servers of three were always well, and leases were renewed there
    assert [one.name for one in tmp_path.iterdir()] == ["history"]
