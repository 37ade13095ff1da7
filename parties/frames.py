"""Payloads in protobuf's bytes, without protobuf's copies: a megabyte takes it 0.5 ms to write and 0.2 to read.

A payload is the last field of its message, so all that is before it is a header of a few bytes. It is written here, and
a reader who knows what is due compares it. The bytes are exactly protobuf's; what differs is left to protobuf to read.
"""

from __future__ import annotations

from functools import lru_cache

from mpcache.parties.generated import dealer_pb2, owner_pb2

_LENGTH_DELIMITED = 2


def _tag(field: int) -> bytes:
    """Of a field that has a length; its number is below 16."""
    return bytes([field << 3 | _LENGTH_DELIMITED])


ABORT_TAG = _tag(owner_pb2.Frame.ABORT_FIELD_NUMBER)
"""What a frame with an abort begins with."""
_MESSAGE_TAG = _tag(owner_pb2.Frame.MESSAGE_FIELD_NUMBER)
_PAYLOAD_TAG = _tag(owner_pb2.Message.PAYLOAD_FIELD_NUMBER)
_CHUNK_TAG = _tag(dealer_pb2.Corrections.CHUNK_FIELD_NUMBER)


@lru_cache(1024)
def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def message_header(session: bytes, sequence: int, length: int, payload: int) -> bytes:
    """A message's frame up to its payload of so many bytes."""
    head: bytes = owner_pb2.Message(session=session, sequence=sequence, length=length).SerializeToString()
    if payload:
        head += _PAYLOAD_TAG + _varint(payload)
    return _MESSAGE_TAG + _varint(len(head) + payload) + head


def corrections_of(chunk: bytes | memoryview) -> bytes:
    """Corrections that are this chunk."""
    return b"".join((_CHUNK_TAG, _varint(len(chunk)), chunk))


def chunk_of(corrections: bytes) -> memoryview | None:
    """The chunk, if that is what they are."""
    for width in range(1, 5):
        size = len(corrections) - 1 - width
        if size > 0 and corrections.startswith(_CHUNK_TAG + _varint(size)):
            return memoryview(corrections)[1 + width :] if len(_varint(size)) == width else None
    return None
