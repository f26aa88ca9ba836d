"""Messages that are built without protobuf's help."""

from __future__ import annotations

import pytest

from gateway.services.messages import embedding_request, encode_request, encode_response
from protos.internvl.v1 import tensor_pb2, vision_pb2

MEMORY = tensor_pb2.SharedMemory(file="f" * 32, nonce=b"n" * 32)


@pytest.mark.parametrize("byte_count", [0, 1, 127, 128, 16_383, 16_384, 3_000_000])
@pytest.mark.parametrize("max_tile_count", [None, 7])
def test_an_encode_request_is_what_protobuf_reads(
    byte_count: int, max_tile_count: int | None
) -> None:
    image = (bytes(range(256)) * (byte_count // 256 + 1))[:byte_count]
    request = encode_request(bytearray(image), max_tile_count, b"r" * 32, 0.0, 3, MEMORY)
    assert vision_pb2.EncodeImageRequest.FromString(request) == vision_pb2.EncodeImageRequest(
        image=image,
        max_tile_count=max_tile_count,
        expected_recipe_sha256=b"r" * 32,
        max_queue_seconds=0.0,
        image_index=3,
        shared_memory=MEMORY,
    )


@pytest.mark.parametrize(
    "response",
    [
        vision_pb2.EncodeImageResponse(embedding_chunk=tensor_pb2.EmbeddingChunk(data=b"rows")),
        vision_pb2.EncodeImageResponse(shared_embedding=tensor_pb2.SharedEmbedding(file="f")),
    ],
)
def test_what_both_services_have_alike_is_passed_on_unread(
    response: vision_pb2.EncodeImageResponse,
) -> None:
    message = response.SerializeToString()
    piece = encode_response(message)
    assert piece is message
    assert embedding_request(0, piece) is message
