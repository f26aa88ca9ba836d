"""What is written and read of protobuf's wire format without protobuf, which would copy more.

EncodeImageResponse and GenerateRequest have their EmbeddingChunk in the same field: a message that
holds one is the same bytes as either. "Chunk message" here means those bytes.
"""

from __future__ import annotations

import re

from google.protobuf.message import Message

from protos.internvl.v1 import llm_pb2, tensor_pb2

CHUNK_NUMBER = llm_pb2.GenerateRequest.EMBEDDING_CHUNK_FIELD_NUMBER
DATA_NUMBER = tensor_pb2.EmbeddingChunk.DATA_FIELD_NUMBER


def _varint(number: int) -> bytes:
    """Returns a number as protobuf writes it: seven bits a byte, the lowest first."""
    groups = []
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


def field_tag(number: int) -> bytes:
    """Returns what a field begins with whose length comes before its content."""
    return _varint(number << 3 | 2)


def field_head(number: int, byte_count: int) -> bytes:
    """Returns what stands before the content of such a field, which has so many bytes."""
    return field_tag(number) + _varint(byte_count)


def serialized(message: Message | bytes) -> bytes:
    """Returns a message as it travels; bytes are one already."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def chunk_message(image_index: int, offset: int, data: memoryview) -> bytes:
    """Returns the chunk message of these fields, as protobuf would write it; copies `data` once."""
    numbers = tensor_pb2.EmbeddingChunk(image_index=image_index, offset=offset).SerializeToString()
    head = numbers + field_head(DATA_NUMBER, len(data))
    return b"".join((field_head(CHUNK_NUMBER, len(head) + len(data)), head, data))


# Numbers that no embedding reaches are longer, and left to protobuf; so are negative ones.
_CHUNK_HEAD = re.compile(
    rb"%b([\x80-\xff]{0,3}[\0-\x7f])"
    rb"(?:\x08([\x80-\xff]{0,3}[\0-\x7f]))?"  # image_index
    rb"(?:\x10([\x80-\xff]{0,4}[\0-\x7f]))?"  # offset
    rb"%b([\x80-\xff]{0,3}[\0-\x7f])" % (re.escape(field_tag(CHUNK_NUMBER)), field_tag(DATA_NUMBER))
)


def read_chunk(message: bytes) -> tuple[int, int, memoryview] | None:
    """Returns image_index, offset and data of a chunk message; the data is not copied.

    None for all that is not laid out as `chunk_message` does it, among that other chunk messages:
    protobuf may read them.
    """
    found = _CHUNK_HEAD.match(message)
    if found is None:
        return None
    chunk_byte_count, image_index, offset, data_byte_count = map(_number, found.groups(b"\0"))
    chunk_begin, data_begin = found.end(1), found.end()
    if len(message) - chunk_begin != chunk_byte_count:
        return None
    if len(message) - data_begin != data_byte_count:
        return None
    return image_index, offset, memoryview(message)[data_begin:]


def _number(varint: bytes) -> int:
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(varint))
