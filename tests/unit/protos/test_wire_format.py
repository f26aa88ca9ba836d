"""Chunk messages without protobuf, beside protobuf's own."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from protos.internvl.v1 import llm_pb2, tensor_pb2, vision_pb2
from protos.transport import MAX_CHUNK_BYTE_COUNT
from protos.wire_format import chunk_message, read_chunk

INT32, INT64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
DATA = st.one_of(st.binary(max_size=300), st.integers(0, 20_000).map(bytes))
CHUNKS = st.builds(tensor_pb2.EmbeddingChunk, image_index=INT32, offset=INT64, data=DATA)
MESSAGES = CHUNKS.map(lambda chunk: llm_pb2.GenerateRequest(embedding_chunk=chunk))
BYTES = MESSAGES.map(llm_pb2.GenerateRequest.SerializeToString)
# What a message's head is made of: tags, lengths that fit and do not, ends of long numbers.
CRUMBS = st.lists(
    st.sampled_from(
        [b"\x2a", b"\x08", b"\x10", b"\x1a", b"\0", b"\1", b"\2", b"\5", b"\x80", b"\xff"]
    ),
    max_size=20,
).map(b"".join)


def parsed(message: bytes) -> llm_pb2.GenerateRequest | None:
    """Returns what protobuf makes of a message; None if nothing."""
    try:
        return llm_pb2.GenerateRequest.FromString(message)
    except DecodeError:
        return None


def assert_read_as_by_protobuf(message: bytes) -> bool:
    """Returns whether it is read without protobuf."""
    found = read_chunk(message)
    if found is None:
        return False
    image_index, offset, data = found
    chunk = tensor_pb2.EmbeddingChunk(image_index=image_index, offset=offset, data=bytes(data))
    assert parsed(message) == llm_pb2.GenerateRequest(embedding_chunk=chunk)
    return True


@given(INT32, INT64, DATA)
def test_a_chunk_is_written_as_by_protobuf(image_index: int, offset: int, data: bytes) -> None:
    chunk = tensor_pb2.EmbeddingChunk(image_index=image_index, offset=offset, data=data)
    message = chunk_message(image_index, offset, memoryview(data))
    assert vision_pb2.EncodeImageResponse.FromString(message).embedding_chunk == chunk
    if data:  # protobuf leaves an empty field out
        response = vision_pb2.EncodeImageResponse(embedding_chunk=chunk)
        assert message == response.SerializeToString()
        assert message == llm_pb2.GenerateRequest(embedding_chunk=chunk).SerializeToString()


@given(st.integers(0, 2**28 - 1), st.integers(0, 2**35 - 1), DATA)
def test_what_is_written_is_read_without_protobuf(index: int, offset: int, data: bytes) -> None:
    message = chunk_message(index, offset, memoryview(data))
    assert read_chunk(message) == (index, offset, memoryview(data))


def test_data_is_not_copied() -> None:
    message = chunk_message(3, 5, memoryview(bytes(MAX_CHUNK_BYTE_COUNT)))
    found = read_chunk(message)
    assert found is not None
    assert found[2].obj is message
    assert len(found[2]) == MAX_CHUNK_BYTE_COUNT


@given(st.one_of(BYTES, st.binary(max_size=50), CRUMBS))
def test_any_message_is_read_as_by_protobuf_or_left_to_it(message: bytes) -> None:
    assert_read_as_by_protobuf(message)


@given(BYTES, st.data())
def test_a_changed_message_is_read_as_by_protobuf_or_left_to_it(
    message: bytes, data: st.DataObject
) -> None:
    changed = bytearray(message)
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, min(len(changed), 24)))
        end = data.draw(st.integers(begin, min(len(changed), begin + 3)))
        changed[begin:end] = data.draw(st.one_of(st.binary(max_size=3), CRUMBS))
    assert_read_as_by_protobuf(bytes(changed))


def test_numbers_that_are_longer_than_need_be_are_read() -> None:
    assert assert_read_as_by_protobuf(b"\x2a\x89\0\x08\x83\0\x10\x85\x80\0\x1a\0")


def test_what_follows_or_precedes_a_chunk_is_left_to_protobuf() -> None:
    message = chunk_message(1, 2, memoryview(b"data"))
    start = llm_pb2.GenerateRequest(start=llm_pb2.GenerateStart(request_id="x"))
    trailer = llm_pb2.GenerateRequest(embedding_trailer=llm_pb2.EmbeddingTrailer(crc32=7))
    for other in (start.SerializeToString(), trailer.SerializeToString(), message):
        assert read_chunk(message + other) is None
        assert read_chunk(other + message) is None
    assert all(read_chunk(message[:end]) is None for end in range(len(message)))
