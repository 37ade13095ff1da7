"""Frames written and read without protobuf are protobuf's."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.parties.frames import chunk_of, corrections_of, message_header
from mpcache.parties.generated import dealer_pb2, owner_pb2
from mpcache.parties.link import Frame


@settings(deadline=None)
@given(st.binary(max_size=20), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=40_000))
def test_a_messages_bytes_are_protobufs(session: bytes, sequence: int, length: int, payload: bytes) -> None:
    frame = Frame(message=owner_pb2.Message(session=session, sequence=sequence, length=length, payload=payload))
    assert message_header(session, sequence, length, len(payload)) + payload == frame.SerializeToString()


@settings(deadline=None)
@given(st.one_of(st.binary(min_size=1, max_size=300), st.integers(1, 3_000_000).map(bytes)))
def test_a_chunks_bytes_are_protobufs(chunk: bytes) -> None:
    data = dealer_pb2.Corrections(chunk=chunk).SerializeToString()
    assert corrections_of(chunk) == data
    assert chunk_of(data) == chunk


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_what_is_read_as_a_chunk_is_one(data: bytes) -> None:
    chunk = chunk_of(data)
    if chunk is not None:
        assert dealer_pb2.Corrections.FromString(data) == dealer_pb2.Corrections(chunk=bytes(chunk))


@pytest.mark.parametrize(
    "corrections",
    [dealer_pb2.Corrections(started=True), dealer_pb2.Corrections(chunk=b""), dealer_pb2.Corrections(progress=5)],
)
def test_what_is_no_chunk_is_left_to_protobuf(corrections: dealer_pb2.Corrections) -> None:
    assert chunk_of(corrections.SerializeToString()) is None
