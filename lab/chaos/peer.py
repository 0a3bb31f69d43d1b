"""One logical client: connects anywhere, does things at random, loses its connection, comes back, resumes.

Owns what a well-behaved client does after a loss, and the choice of the next action. What is chosen depends on the seed
alone; when it happens depends on the service.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from urllib.parse import urlsplit

import aiohttp
import msgspec

from lab.chaos.history import Command, Fail, History, Invoke, Ok, Unknown
from lab.chaos.wire import NotDialled, Numbers, Wire, dial

BACK_OFF_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
IN_FLIGHT_MAX = 20
RETRY_SHARE = 0.5
RETRY_AGE_MAX_S = 60.0
"""Well within the log's window of idempotency keys."""
KICK_TIMEOUT_S = 10.0
GROUPS = tuple(f"g{number}" for number in range(8))

ACTIONS = (
    ("invoke", 74.0),
    ("join", 9.0),
    ("leave", 6.0),
    ("leaveAll", 1.0),
    ("cut", 3.0),
    ("takeover", 3.0),
    ("leave for good", 3.0),
    ("kick", 1.0),
)
SELECTORS = (
    ("group", 25),
    ("user", 15),
    ("client", 20),
    ("all", 4),
    ("others", 4),
    ("allExcept", 3),
    ("caller", 5),
    ("clients", 6),
    ("groups", 6),
    ("groupExceptCaller", 6),
    ("groupsExceptCaller", 6),
)


class Field(msgspec.Struct):
    """What all peers share. ``gateways``: addresses to dial; ``api``: the base URL of the query API."""

    http: aiohttp.ClientSession
    history: History
    numbers: Numbers
    hub: str
    gateways: list[tuple[str, int]]
    api: str
    pace_s: float
    sessions: dict[int, str]
    """Each peer's session, living or just gone."""
    calm: asyncio.Event
    """Set when actions end: from then on peers only stay connected."""
    token: str | None = None
    """The access token of all, who then are one user."""


class Peer:
    """See the module. ``wire`` is the connection it has now; ``trouble`` why it has none."""

    def __init__(self, field: Field, index: int, seed: int, *, user: str | None, resumable: bool) -> None:
        self.index = index
        self.wire: Wire | None = None
        self.trouble = "it has not connected yet"
        self.user = user
        self.resumable = resumable
        self._field = field
        self._rng = random.Random(f"{seed}/{index}")
        self._retries: list[tuple[str | None, Invoke]] = []  # with the session that asked
        self._last: tuple[str, str, str] | None = None  # session, token, cursor

    async def live(self) -> None:
        """Until cancelled."""
        failures = 0
        while True:
            wire = await self._connect()
            if wire is None:
                await asyncio.sleep(BACK_OFF_S[min(failures, len(BACK_OFF_S) - 1)] * self._rng.uniform(0.5, 1.5))
                failures += 1
                continue
            failures = 0
            self.wire = wire
            try:
                await self._act(wire)
            finally:
                # A take-over may have put another in its place.
                self.wire.drop("the run is over")
                self._remember(self.wire)
                self.wire = None

    # -------------------------------------------------------------------------------------------- connecting

    async def _connect(self) -> Wire | None:
        wire = await self._dial(self._last)
        if wire is None:
            return None
        if await wire.greet() is None:
            self.trouble = "hub.session was not answered"
            self._remember(wire)
            wire.drop(self.trouble)
            return None
        self._known(wire)
        return wire

    async def _dial(self, resume: tuple[str, str, str] | None) -> Wire | None:
        field = self._field
        gateway = self._rng.randrange(len(field.gateways))
        try:
            return await dial(
                field.http,
                field.history,
                field.numbers,
                field.gateways[gateway],
                field.hub,
                client=self.index,
                gateway=gateway,
                user=self.user,
                resumable=self.resumable,
                resume=resume,
                token=field.token,
            )
        except NotDialled as exc:
            self.trouble = str(exc)
            return None

    def _known(self, wire: Wire) -> None:
        if wire.session is not None:
            self._field.sessions[self.index] = wire.session
        if wire.session and wire.token and wire.cursor:
            self._last = (wire.session, wire.token, wire.cursor)

    def _remember(self, wire: Wire) -> None:
        """What the connection has told, also if it ended before it was greeted: the cursor has moved on."""
        if wire.token is not None:
            self._known(wire)
        elif self._last is not None and wire.cursor is not None:
            self._last = (*self._last[:2], wire.cursor)
        self._retries += [(wire.session, one) for one in wire.lost_calls if self._rng.random() < RETRY_SHARE]
        wire.lost_calls = []

    # -------------------------------------------------------------------------------------------- acting

    async def _act(self, wire: Wire) -> None:
        """Returns when the connection is over."""
        for session, one in self._retries:
            # A key belongs to the user, else to the session: of another one it would be another call.
            same = self.user is not None or session == wire.session
            if same and self._field.history.now - one.t < RETRY_AGE_MAX_S:
                wire.invoke(one.selector, retry_of=one)
        self._retries = []
        for group in self._rng.sample(GROUPS, 2):
            wire.command("join", [group])
        doing: dict[str, Callable[[Wire], object]] = {
            "invoke": lambda wire: wire.invoke(self._selector()),
            "join": lambda wire: wire.command("join", self._groups()),
            "leave": lambda wire: wire.command("leave", self._groups()),
            "leaveAll": lambda wire: wire.command("leaveAll", []),
            "cut": lambda wire: wire.drop("the client dropped it"),
            "leave for good": self._leave,
        }
        while not wire.ended.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._rng.expovariate(1 / self._field.pace_s)):
                    await wire.ended.wait()
            if wire.ended.is_set() or self._field.calm.is_set():
                await wire.ended.wait()
                return
            (action,) = self._rng.choices([name for name, _ in ACTIONS], [weight for _, weight in ACTIONS])
            if action == "takeover":
                wire = await self._take_over(wire)
            elif action == "kick":
                await self._kick()
            elif action != "invoke" or wire.waiting < IN_FLIGHT_MAX:
                doing[action](wire)

    def _leave(self, wire: Wire) -> None:
        """A Close: the next connection is a new session."""
        wire.goodbye()
        self._last = None
        wire.token = wire.cursor = None

    async def _take_over(self, old: Wire) -> Wire:
        """Resume on a fresh connection while the old one still lives, by the URL or by ``hub.resume``."""
        self._known(old)
        resume = self._last
        if not self.resumable or resume is None:
            return old
        by_url = self._rng.random() < 0.5
        wire = await self._dial(resume if by_url else None)
        if wire is None:
            return old
        greeting = await wire.greet(None if by_url else resume)
        if greeting is None:
            wire.drop("the take-over was not answered")
            # Who holds the session now is unclear: a client then begins anew with what it knows.
            old.drop("the client gave it up in a take-over")
            return old
        self._remember(old)
        self.wire = wire
        self._known(wire)
        old.drop("the client has another connection now")
        old.lost_calls = []
        return wire

    async def _kick(self) -> None:
        """Over the API: some session, perhaps one's own."""
        field = self._field
        session = self._rng.choice(sorted(field.sessions.values()))
        call = next(field.numbers.calls)
        field.history.add(Command(t=field.history.now, call=call, do="kick", session=session))
        url = f"{field.api}/v1/hubs/{field.hub}/sessions/{session}"
        try:
            async with field.http.delete(url, timeout=aiohttp.ClientTimeout(total=KICK_TIMEOUT_S)) as answer:
                body = await answer.read()
                if answer.status == 200:
                    said = msgspec.json.decode(body, type=dict[str, str])
                    field.history.add(Ok(t=field.history.now, call=call, position=said["position"]))
                elif answer.status < 500:
                    field.history.add(Fail(t=field.history.now, call=call, error=body.decode()[:300]))
                else:
                    field.history.add(Unknown(t=field.history.now, call=call, why=body.decode()[:300]))
        except (aiohttp.ClientError, OSError) as exc:
            field.history.add(Unknown(t=field.history.now, call=call, why=str(exc) or type(exc).__name__))

    def _groups(self) -> list[str]:
        return self._rng.sample(GROUPS, self._rng.randint(1, 2))

    def _selector(self) -> msgspec.Raw:
        rng = self._rng
        (to,) = rng.choices([name for name, _ in SELECTORS], [weight for _, weight in SELECTORS])
        known = sorted(self._field.sessions.values())
        some = rng.sample(known, min(len(known), rng.randint(2, 5)))
        chosen: dict[str, object] = {"to": to}
        match to:
            case "group" | "groupExceptCaller":
                chosen["group"] = rng.choice(GROUPS)
                if to == "group" and rng.random() < 0.3:
                    chosen["except"] = some
            case "groups" | "groupsExceptCaller":
                chosen["groups"] = rng.sample(GROUPS, rng.randint(1, 3))
            case "user":
                chosen["user"] = f"u{rng.randrange(max(1, len(known) // 3))}"
                if self._field.token is not None and self.user is not None and rng.random() < 0.5:
                    chosen["user"] = self.user
            case "client":
                chosen["session"] = rng.choice(known)
            case "clients" | "allExcept":
                chosen["sessions"] = some
        return msgspec.Raw(msgspec.json.encode(chosen))


def address_of(url: str) -> tuple[str, int]:
    """Host and port of a URL."""
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 80
