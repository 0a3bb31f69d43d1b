"""``HUBLOG_SESSION_MANAGER``: a factory of the user's own, and a clear word where it is none."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from events.errors import Misconfigured
from events.ids import HubName
from service.log.author import Author
from service.log.memory import MemoryEventLog
from service.process.managers import global_view, manager_factory
from service.sessions.hubs import Hubs
from service.sessions.manager import SessionManager, session_manager
from service.sessions.postgres_view import PostgresView
from service.sessions.view import LogView
from service.settings import Settings
from service.spelling import Secret

OWN = '''
from service.sessions.manager import SessionManager, session_manager

made = []

class Manager(SessionManager):
    """Greets whoever joins."""

def create(hub, log, **more):
    ours = session_manager(hub, log, **more)
    made.append((hub, log, sorted(more), more["ttl_ms_max"]))
    return Manager(ours.hub, ours.sessions, ours.groups, ours.router, ours.local)

def nothing(hub, log, **more):
    return None

def narrow(hub):
    return None

number = 7
'''
CHAT = HubName("chat")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN, encoding="utf-8")
    (tmp_path / f"{name}_broken.py").write_text("raise RuntimeError('out of order')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def factory(name: str | None):
    log = MemoryEventLog()
    settings = msgspec.structs.replace(Settings(), session_manager=name)
    return log, manager_factory(settings, log, Author(), LogView(log))


async def test_without_it_the_manager_that_ships():
    log, make = factory(None)
    made = make(CHAT)
    assert type(made) is SessionManager
    assert made.hub == CHAT
    assert (await made.router.all("say")).outcome == "accepted"
    assert await log.last_sequence(0) == 1


async def test_a_factory_of_ones_own_is_called_for_each_hub(own):
    log, make = factory(f"{own}:create")
    hubs = Hubs(log, make)
    manager = await hubs.manager(CHAT)
    await hubs.manager(HubName("games"))
    module = sys.modules[own]
    assert type(manager) is module.Manager
    week_ms = 7 * 86_400_000
    assert module.made == [(hub, log, ["author", "ttl_ms_max", "view"], week_ms) for hub in ("chat", "games")]
    assert (await manager.sessions.count()).value == 0
    await hubs.shutdown()


async def test_ours_is_called_as_ones_own_is():
    _, make = factory("service.sessions.manager:session_manager")
    assert type(make(CHAT)) is type(session_manager(CHAT))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nowhere.at.all:create", "ModuleNotFoundError"),
        ("{own}:missing", "missing"),
        ("{own}_broken:create", "out of order"),
        ("{own}:narrow", "cannot be called as factory"),
        ("{own}:number", "cannot be called as factory"),
    ],
)
def test_what_cannot_be_loaded_stops_the_start_and_says_why(own, name, why):
    name = name.format(own=own)
    with pytest.raises(Misconfigured) as caught:
        factory(name)
    assert f"HUBLOG_SESSION_MANAGER={name}" in caught.value.message
    assert why in caught.value.message


async def test_what_makes_no_manager_says_so(own):
    log, make = factory(f"{own}:nothing")
    with pytest.raises(Misconfigured, match="made a NoneType, not a SessionManager"):
        await Hubs(log, make).manager(CHAT)


async def test_global_answers_come_from_postgres_where_there_is_one_and_nothing_is_opened_for_it():
    log = MemoryEventLog()
    async with global_view(Settings(), log) as view:
        assert isinstance(view, LogView)
    nowhere = Settings(postgres_dsn=Secret("postgresql://nobody@127.0.0.1:1/nothing"))
    async with global_view(nowhere, log) as view:
        assert isinstance(view, PostgresView)


def test_a_gateway_does_not_carry_sqlalchemy():
    """18 MiB of each gateway process, for statements that it never makes."""
    script = (
        "import service.process.gateway, sys; print({m.split('.')[0] for m in sys.modules} & {'sqlalchemy', 'alembic'})"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "set()", "")
