"""The least of WebSocket that a load client needs: an upgrade, masked frames out, whole frames in (RFC 6455).

Owns bytes only. It refuses fragments and extensions: the service neither fragments nor compresses.
"""

import base64

TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA
HEAD_BYTES_MAX = 16_384

NO_MASK = b"\0\0\0\0"
"""A masking key of zeros leaves the payload as it is: the client spends its time on load. Masking protects proxies
from scripts, and there is neither here."""


class BadFrame(Exception):
    """The peer sent what is no frame of ours."""


def upgrade_request(host: str, path: str, key: bytes) -> bytes:
    """The HTTP request that turns a connection into a WebSocket; ``key`` is 16 random bytes."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {base64.b64encode(key).decode()}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def split_head(data: bytes) -> tuple[int, bytes] | None:
    """The status of an HTTP answer and the bytes behind its head; None while the head is incomplete."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > HEAD_BYTES_MAX:
            raise BadFrame("the answer to the upgrade has no end")
        return None
    words = data.split(b" ", 2)
    if len(words) < 2 or not data.startswith(b"HTTP/1.1 ") or not words[1].isdigit():
        raise BadFrame("the answer to the upgrade is not HTTP")
    return int(words[1]), data[end + 4 :]


def client_frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """One final frame of a client."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 65_536:
        head = bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0xFF)) + size.to_bytes(8, "big")
    return head + NO_MASK + payload


def split_frames(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """All whole frames as (opcode, payload), and what is left. Raises: BadFrame. Hot path of the load client."""
    frames: list[tuple[int, bytes]] = []
    at, end = 0, len(data)
    while end - at >= 2:
        first, size = data[at], data[at + 1]
        if first & 0xF0 != 0x80 or size & 0x80:
            raise BadFrame(f"not a whole, plain, unmasked frame: {data[at : at + 2].hex()}")
        start = at + 2
        if size == 126:
            start = at + 4
            size = int.from_bytes(data[at + 2 : start], "big")
        elif size == 127:
            start = at + 10
            size = int.from_bytes(data[at + 2 : start], "big")
        # A cut header reads a size too small, but then the header itself is not there yet.
        if end < start or end - start < size:
            break
        at = start + size
        frames.append((first & 0x0F, data[start:at]))
    return frames, data[at:] if at else data
