"""Sealed tokens: the key ring, and the connection tokens that negotiation hands out.

Owns authenticated encryption of small values under the ring of ``HUBLOG_SECRETS`` (the first key seals, all open, so
keys rotate without a moment in which tokens fail) and the content of a connection token. Nothing is remembered: any
node with the ring opens what any other sealed. It refuses to know HTTP.
"""

import os

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from events.errors import BadToken, Misconfigured
from events.ids import HubName, UserId, b64url, from_b64url

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
TOKEN_CHARS_MAX = 8_192
"""Longer text is refused unread; a token with 2 KiB of metadata has about 3,000 characters."""
KEYS_MAX = 8

CONNECTION = "connection"
"""The purpose of connection tokens. A purpose is bound into the seal: a token for one opens for no other."""
RESUME = "resume"
CONNECTION_TTL_S = 120.0
"""Clients connect right after negotiating; the rest is slow networks."""
CLOCK_SKEW_S = 60.0
"""How far ahead the clock of the node that sealed may be."""


class KeyRing:
    """The keys of an installation, shared by all its nodes."""

    __slots__ = ("_ciphers",)

    def __init__(self, keys: list[bytes]) -> None:
        """The first key seals. Raises: Misconfigured."""
        if not 1 <= len(keys) <= KEYS_MAX:
            raise Misconfigured(f"HUBLOG_SECRETS holds {len(keys)} keys, not 1 to {KEYS_MAX}")
        for number, key in enumerate(keys, 1):
            if len(key) != KEY_BYTES:
                raise Misconfigured(f"key {number} of HUBLOG_SECRETS has {len(key)} bytes, not {KEY_BYTES}")
        self._ciphers = [ChaCha20Poly1305(key) for key in keys]

    @classmethod
    def parse(cls, secrets: str) -> "KeyRing":
        """The value of ``HUBLOG_SECRETS``: comma-separated base64url keys. Raises: Misconfigured."""
        keys: list[bytes] = []
        for number, text in enumerate(secrets.split(","), 1):
            try:
                keys.append(from_b64url(text.strip().rstrip("=")))
            except ValueError:
                # Not "from exc": the cause could quote the secret.
                raise Misconfigured(f"key {number} of HUBLOG_SECRETS is not base64url") from None
        return cls(keys)

    def __repr__(self) -> str:
        return f"<KeyRing of {len(self._ciphers)}>"

    def seal(self, purpose: str, data: bytes) -> str:
        """``data`` sealed as unpadded base64url: a random nonce, then ChaCha20-Poly1305 with the purpose bound in."""
        nonce = os.urandom(NONCE_BYTES)
        return b64url(nonce + self._ciphers[0].encrypt(nonce, data, purpose.encode()))

    def open(self, purpose: str, token: str) -> bytes:
        """What was sealed for this purpose. Raises: BadToken."""
        if len(token) > TOKEN_CHARS_MAX:
            raise BadToken("the token is too long")
        try:
            sealed = from_b64url(token)
        except ValueError as exc:
            raise BadToken("the token is not base64url") from exc
        if len(sealed) < NONCE_BYTES + TAG_BYTES:
            raise BadToken("the token is too short")
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], purpose.encode())
            except InvalidTag:
                continue
        raise BadToken("the token was not sealed by a key of this installation, or not for this purpose")


def new_secret() -> str:
    """A fresh key, spelled as ``HUBLOG_SECRETS`` wants it."""
    return b64url(os.urandom(KEY_BYTES))


class ConnectionGrant(msgspec.Struct, frozen=True, array_like=True):
    """What a negotiated connection may become: sealed on one node, opened on any.

    ``metadata`` is raw JSON, ``null`` for none; ``issued_at_s`` is wall clock time in seconds. ``traceparent``: the
    trace that the negotiation belongs to, for the session to begin in: browsers give sockets no headers.
    """

    hub: HubName
    connection: str
    issued_at_s: float
    user: UserId | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"null")
    traceparent: str | None = None


def seal_connection(ring: KeyRing, grant: ConnectionGrant) -> str:
    """The ``connectionToken`` of a negotiation."""
    return ring.seal(CONNECTION, msgspec.json.encode(grant))


def open_connection(ring: KeyRing, token: str, hub: HubName, now_s: float) -> ConnectionGrant:
    """The grant behind ``?id=``. ``now_s`` is wall clock time. Raises: BadToken."""
    data = ring.open(CONNECTION, token)
    try:
        grant = msgspec.json.decode(data, type=ConnectionGrant)
    except msgspec.DecodeError as exc:  # sealed by another version of this program
        raise BadToken("the token holds something that this version does not read") from exc
    if grant.hub != hub:
        raise BadToken("the token is for another hub")
    if not -CLOCK_SKEW_S <= now_s - grant.issued_at_s <= CONNECTION_TTL_S:
        raise BadToken("the token has expired")
    return grant


class ResumeGrant(msgspec.Struct, frozen=True, array_like=True):
    """Which session a resume token may take over. ``generation`` tells the newest token from older ones."""

    hub: HubName
    session: str
    user: str | None
    epoch: str
    generation: int


def seal_resume(ring: KeyRing, grant: ResumeGrant) -> str:
    """The ``resumeToken`` of a session."""
    return ring.seal(RESUME, msgspec.json.encode(grant))


def open_resume(ring: KeyRing, token: str, hub: HubName) -> ResumeGrant:
    """The grant behind a resume token. Raises: BadToken."""
    data = ring.open(RESUME, token)
    try:
        grant = msgspec.json.decode(data, type=ResumeGrant)
    except msgspec.DecodeError as exc:
        raise BadToken("the token holds something that this version does not read") from exc
    if grant.hub != hub:
        raise BadToken("the token is for another hub")
    return grant
