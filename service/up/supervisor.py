"""Keeps a stack of processes running: started in order, restarted when they die, stopped in reverse.

Owns the promise that nothing is left behind: leaving the ``async with`` stops everything that was started, also after
an error or an interrupt half-way. It refuses to know what the processes are.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from events.errors import HublogError
from service.up.board import Board, Entry
from service.up.units import Unit

BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 5.0
"""Between the deaths of something that does start."""
FAILED_BACKOFF_MAX_S = 30.0
"""Between starts that fail. There is no last one: what is missing may come back, and the others go on meanwhile."""
SETTLED_S = 10.0
"""Who ran this long is started again without further delay."""


class Supervisor:
    """``start`` one stage after the other, then ``watch``. ``changed`` is told what runs, whenever that changes."""

    def __init__(self, board: Board, *, restart: bool, changed: Callable[[Sequence[Entry]], None]) -> None:
        self._board = board
        self._restart = restart
        self._changed = changed
        self._stages: list[list[Unit]] = []
        self._watching = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        try:
            for stage in reversed(self._stages):
                await asyncio.gather(*(unit.stop() for unit in stage))
        finally:
            # A second interrupt, or an error while stopping: no more politeness.
            for child in (unit.child for stage in self._stages for unit in stage):
                if child is not None and child.returncode is None:
                    await child.kill()

    @property
    def entries(self) -> list[Entry]:
        """What runs now, in the order of starting."""
        units = (unit for stage in self._stages for unit in stage)
        return [unit.entry for unit in units if unit.child is not None and unit.child.returncode is None]

    async def start(self, stage: Sequence[Unit]) -> None:
        """Start these side by side, and return once all are ready. The first that cannot be ends the others' start.

        Raises: Misconfigured.
        """
        self._stages.append(list(stage))
        starting = [asyncio.create_task(unit.start()) for unit in stage]
        try:
            for started in asyncio.as_completed(starting):
                await started
        finally:
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)

    async def watch(self) -> None:
        """Restart what dies, until cancelled."""
        self._tell()
        async with asyncio.TaskGroup() as keepers:
            for stage in self._stages:
                for unit in stage:
                    keepers.create_task(self._keep(unit))

    async def _keep(self, unit: Unit) -> None:
        delay_s = BACKOFF_FIRST_S
        while unit.child is not None:
            started_at = time.monotonic()
            await unit.child.wait()
            self._board.warn(f"{unit.name} (pid {unit.child.pid}) ended: {unit.child.describe_end()}")
            self._tell()
            if not self._restart:
                self._board.warn(f"{unit.name} is not restarted (--no-restart)")
                return
            if time.monotonic() - started_at > SETTLED_S:
                delay_s = BACKOFF_FIRST_S
            await self._bring_back(unit, delay_s)
            delay_s = min(2 * delay_s, BACKOFF_MAX_S)
            self._board.note(f"{unit.name} is back as pid {unit.child.pid}")
            self._tell()

    def _tell(self) -> None:
        try:
            self._changed(self.entries)
        except OSError as exc:  # a full disk, most likely: what runs goes on without having been written down
            self._board.warn(f"what runs now could not be written down: {exc.strerror}")

    async def _bring_back(self, unit: Unit, delay_s: float) -> None:
        """Start it until it is ready."""
        said = ""
        while True:
            await asyncio.sleep(delay_s * random.uniform(0.8, 1.2))  # noqa: S311 not a secret
            delay_s = min(2 * delay_s, FAILED_BACKOFF_MAX_S)
            try:
                return await unit.start()
            except HublogError as exc:
                if said != exc.message:
                    self._board.warn(f"{unit.name} does not start, and is tried again: {exc.message}")
                said = exc.message
