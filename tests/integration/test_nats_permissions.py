"""A NATS user that may do no more than what docs/security.md names can run the service on it."""

import os
import re
from contextlib import aclosing
from pathlib import Path

import pytest

from events.ids import HubName
from events.subjects import HubSubjects
from service.log.jetstream import jetstream_log, migrate_log
from service.log.port import Stored
from service.up import nats_server
from tests.servers.event_logs import event, until
from tests.servers.nats import MakeNats

SECURITY = Path(__file__).resolve().parents[2] / "docs" / "security.md"
SUBJECTS = HubSubjects(HubName("h"), 1)


def documented() -> str:
    """The block of permissions as an operator would copy it."""
    found = re.search(r"```\n(permissions: \{.*?\n\})\n```", SECURITY.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, "docs/security.md has no block of permissions"
    return found[1]


async def test_what_is_documented_is_enough(fresh_nats: MakeNats, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = 'users: [{{user: {user}, password: "{password}"}}]'
    assert nats_server.CONFIG.count(plain) == 1
    narrow = plain.replace("}}]", ", " + documented().replace("{", "{{").replace("}", "}}") + "}}]")
    monkeypatch.setattr(nats_server, "CONFIG", nats_server.CONFIG.replace(plain, narrow))
    url = (await fresh_nats()).url
    await migrate_log(url, random=os.urandom(3))
    log = await jetstream_log(url, name="narrow")
    heard: list[int] = []
    log.subscribe(SUBJECTS.all(), lambda _subject, sequence, _previous, _payload: heard.append(sequence))
    log.doubt(0, lambda _reason: None)
    await log.flush()
    assert await log.append(SUBJECTS.session("s"), [event(), event()], 0) == 2
    assert await log.publish(SUBJECTS.all(), event()) == Stored(3)
    await until(lambda: heard == [3])
    assert [one.sequence async for one in log.read("ev.0.>", 1, 3)] == [1, 2, 3]
    assert len(await log.last_many([SUBJECTS.all(), SUBJECTS.session("s")], up_to=3)) == 2
    async with aclosing(log.follow(0, 0)) as batches:
        followed: list[int] = []
        while len(followed) < 3:
            followed += [one.sequence for one in await anext(batches)]
    assert followed == [1, 2, 3]
    await log.lease_put("node", b"{}")
    assert (await log.lease_all()).keys() == {"node"}
    assert await log.lease_get("node") is not None
    assert log._client.last_problem is None
    log._client.listen("somebody.elses", lambda *_: None)
    await until(lambda: "permissions violation" in (log._client.last_problem or ""))
    await log.close()
