"""A process that registers one session and changes its groups, as fast as it can.

Speaks lines of JSON with the test that started it: says that it is ready, is told to go, answers what each command
answered; is told a sequence, and answers what it knows of the session once it has heard of that sequence.
"""

import asyncio
import random
import sys

import msgspec
import structlog

from events import codec
from events.envelope import Recorded
from events.errors import HublogError
from events.ids import HubName, SessionId
from events.subjects import HubSubjects
from service.log.author import Author
from service.log.commands import Known
from service.log.jetstream import JetStreamLog, jetstream_log
from service.sessions.manager import Manager, session_manager
from service.sessions.registry import NewSession

GROUPS = 7
SPREAD_S = 0.3  # commands come at any moment of this, so that those of two processes cross each other


class Result(msgspec.Struct):
    """One command: what it answered, or the code of its refusal."""

    actor: str
    adds: bool
    group: str
    sequence: int = 0
    groups: dict[str, int] = {}
    refused: str | None = None


class Report(msgspec.Struct):
    registered: bool
    results: list[Result]


class Heard(msgspec.Struct):
    """What this process knows locally, from its own answers and from the feed."""

    sequence: int
    groups: dict[str, int]
    member_of: list[str]


async def main(url: str, hub: str, session: str, name: str, changes: int) -> None:
    log = await jetstream_log(url, name=name)
    try:
        await work(log, HubName(hub), SessionId(session), name, changes)
    finally:
        await log.close()


async def work(log: JetStreamLog, hub: HubName, session: SessionId, name: str, changes: int) -> None:
    manager = session_manager(hub, log, author=Author())
    own = HubSubjects(hub, log.partitions).session(session)
    heard = asyncio.Event()

    def on_message(subject: str, sequence: int, _previous: int, payload: bytes) -> None:
        state = codec.session_state(Recorded(subject, sequence, 1, payload))
        manager.local.learn(session, Known(state, sequence))
        heard.set()

    log.subscribe(own, on_message)
    await log.flush()
    say({"ready": name})
    await asyncio.to_thread(sys.stdin.readline)
    registered = await manager.sessions.register(NewSession(session, connection=name, node=name))
    results = await asyncio.gather(*(change(manager, session, name, number) for number in range(changes)))
    say(Report(registered, results))
    until = int(await asyncio.to_thread(sys.stdin.readline))
    while (known := manager.local.get(session)) is None or known.sequence < until:
        heard.clear()
        await heard.wait()
    member_of = [group for group in all_groups() if session in manager.groups.local_members(group)]
    say(Heard(known.sequence, known.state.groups, member_of))


async def change(manager: Manager, session: SessionId, name: str, number: int) -> Result:
    """Joins and leaves of a few groups, in an order in which the two processes cross each other."""
    adds, group = number % 5 != 0 and number % 3 != 1, f"g{number * 3 % GROUPS}"
    result = Result(f"user:{name}-{number}", adds, group)
    await asyncio.sleep(random.uniform(0, SPREAD_S))
    run = manager.groups.add if adds else manager.groups.remove
    try:
        known = await run(session, group, actor=result.actor)
    except HublogError as error:
        result.refused = error.code
        return result
    result.sequence, result.groups = known.sequence, known.state.groups
    return result


def all_groups() -> list[str]:
    return [f"g{number}" for number in range(GROUPS)]


def say(what: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(what) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for the test
    asyncio.run(main(*sys.argv[1:5], int(sys.argv[5])))
