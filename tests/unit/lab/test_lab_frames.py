"""The load client's WebSocket: every cut of a stream gives the same frames."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.frames import PONG, TEXT, BadFrame, client_frame, split_frames, split_head, upgrade_request


def server_frame(payload: bytes, opcode: int = TEXT) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65_536:
        return bytes((0x80 | opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((0x80 | opcode, 127)) + size.to_bytes(8, "big") + payload


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_a_clients_frame_is_a_servers_frame_with_a_mask(size: int):
    frame = client_frame(b"x" * size)
    plain = server_frame(b"x" * size)
    assert len(frame) == len(plain) + 4
    assert frame[1] == plain[1] | 0x80
    assert frame.endswith(b"\0\0\0\0" + b"x" * size)


def test_pongs_have_their_opcode():
    assert client_frame(b"a", PONG)[0] == 0x8A


@given(
    st.lists(st.tuples(st.sampled_from([TEXT, PONG]), st.integers(0, 300) | st.just(70_000)), max_size=5),
    st.lists(st.integers(0, 1500), max_size=8),
)
def test_however_bytes_arrive_the_frames_are_the_same(frames: list[tuple[int, int]], cuts: list[int]):
    sent = [(opcode, b"y" * size) for opcode, size in frames]
    stream = b"".join(server_frame(payload, opcode) for opcode, payload in sent)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    found: list[tuple[int, bytes]] = []
    rest = b""
    for start, end in itertools.pairwise(edges):
        whole, rest = split_frames(rest + stream[start:end])
        found += whole
    assert found == sent
    assert rest == b""


@pytest.mark.parametrize("data", [b"\x01\x00", b"\xc1\x00", b"\x81\x80"])
def test_fragments_extensions_and_masks_are_refused(data: bytes):
    with pytest.raises(BadFrame):
        split_frames(data)


def test_the_head_is_split_from_what_follows_it():
    assert split_head(b"HTTP/1.1 101 Switching") is None
    assert split_head(b"HTTP/1.1 101 Switching Protocols\r\nA: b\r\n\r\nrest") == (101, b"rest")
    with pytest.raises(BadFrame):
        split_head(b"SSH-2.0-x\r\n\r\n")
    with pytest.raises(BadFrame):
        split_head(b"x" * 20_000)


def test_the_upgrade_names_host_path_and_key():
    request = upgrade_request("127.0.0.1:8000", "/hubs/chat?user=ann", bytes(16))
    assert request.startswith(b"GET /hubs/chat?user=ann HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n")
    assert b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n" in request
    assert request.endswith(b"\r\n\r\n")
