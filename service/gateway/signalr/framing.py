"""WebSocket text frames as a server writes them (RFC 6455, section 5.2): one frame, unmasked, never compressed.

Owns the header of such a frame, so that delivery can build it once and write the same bytes to every transport. It
refuses to know control frames and everything that is received: aiohttp's own reader does those.
"""

TEXT_FINAL = 0x81
"""First byte: FIN and the text opcode."""


def text_frame(payload: bytes) -> bytes:
    """The whole frame that carries ``payload``, of any length. Hot path: built once per event and kind of wire."""
    size = len(payload)
    if size < 126:
        return bytes((TEXT_FINAL, size)) + payload
    if size < 65_536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload
