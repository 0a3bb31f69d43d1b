"""What happens to a node: one gateway process, told apart life by life by its incarnation."""

from typing import TypeAlias

import msgspec


class Started(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """A node took a lease. ``previous`` is the incarnation it gave up, if this is the same process leasing anew."""

    node: str
    incarnation: str
    version: str
    url: str | None = None
    previous: str | None = None


class Draining(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The node accepts nobody any more and is closing its connections."""

    node: str
    incarnation: str


class Lost(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Nobody saw the incarnation's lease renewed for too long; its sessions are swept."""

    node: str
    incarnation: str
    last_renewal_us: int


class Delivered(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The incarnation wrote everything of a partition, up to a sequence, to its own connections."""

    node: str
    incarnation: str
    partition: int
    up_to: int


class Canary(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Nothing happened: the incarnation tries the way that events go. On a subject of its own, in every partition."""

    node: str
    incarnation: str


Event: TypeAlias = Started | Draining | Lost | Delivered | Canary
