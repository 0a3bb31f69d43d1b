"""The Python client of hublog. ``Client`` is one session; everything else is what it gives, takes or raises."""

from hublog.answers import Invoked, Membership, Resync, Session
from hublog.client import Client
from hublog.errors import ClientClosed, ConnectionLost, HublogError, OutcomeUnknown, ServerError, Unreachable
from hublog.lifecycle import State
from hublog.link import Timers

__all__ = [
    "Client",
    "ClientClosed",
    "ConnectionLost",
    "HublogError",
    "Invoked",
    "Membership",
    "OutcomeUnknown",
    "Resync",
    "ServerError",
    "Session",
    "State",
    "Timers",
    "Unreachable",
]
