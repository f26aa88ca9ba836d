"""Messages that are built without protobuf's help."""

from __future__ import annotations

import pytest

from gateway.services.messages import (
    count_request,
    embedding_request,
    encode_request,
    encode_response,
    guide_request,
    plan_file_request,
)
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


@pytest.mark.parametrize("byte_count", [0, 1, 127, 128, 16_383, 16_384, 3_000_000])
@pytest.mark.parametrize("max_tile_count", [None, 7])
def test_a_plan_request_of_a_file_is_what_protobuf_reads(
    byte_count: int, max_tile_count: int | None
) -> None:
    image = (bytes(range(256)) * (byte_count // 256 + 1))[:byte_count]
    request = plan_file_request(bytearray(image), max_tile_count, b"r" * 32)
    assert vision_pb2.PlanTilesRequest.FromString(request) == vision_pb2.PlanTilesRequest(
        image=image, max_tile_count=max_tile_count, expected_recipe_sha256=b"r" * 32
    )


def test_values_stand_at_their_paths() -> None:
    messages = [{"role": "ROLE_USER", "parts": [{"text": "Hi"}]}]
    fields = {"chat.messages": messages, "image_row_counts": [3], "return_tokens": True}
    count = count_request(fields)
    assert count.chat.messages[0].parts[0].text == "Hi"
    assert (list(count.image_row_counts), count.return_tokens) == ([3], True)
    tools = {"chat.messages": messages, "chat.tools": [{"name": "f"}]}
    check = guide_request({"guided.regex": "a", "stop.max_token_count": 3, **tools})
    assert (check.guided.regex, check.tools[0].name) == ("a", "f")


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
