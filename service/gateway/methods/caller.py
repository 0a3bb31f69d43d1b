"""What a method needs of the connection that calls it."""

from typing import Protocol

from events.errors import HublogError
from events.ids import SessionId
from service.delivery.gate import Gate
from service.delivery.handover import Resumer
from service.delivery.interest import Receiver
from service.gateway.context import GatewayContext
from service.gateway.resume import Standing
from service.sessions.manager import Manager


class Caller(Protocol):
    """A connection whose session is open."""

    @property
    def context(self) -> GatewayContext: ...

    @property
    def manager(self) -> Manager | None: ...

    @property
    def receiver(self) -> Receiver | None: ...

    @property
    def session_id(self) -> SessionId: ...

    @property
    def user(self) -> str | None: ...

    @property
    def resumable(self) -> bool: ...

    @property
    def standing(self) -> Standing: ...

    @property
    def gate(self) -> Gate | None: ...

    def begin_delivery(self) -> None: ...

    async def take_over(self, manager: Manager, token: str, cursor: str) -> Resumer: ...

    def answer(self, invocation_id: str | None, result: bytes) -> None: ...

    def answer_error(self, invocation_id: str | None, error: HublogError) -> None: ...

    def call_started(self) -> None: ...

    def call_answered(self) -> None: ...
