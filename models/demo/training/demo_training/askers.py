"""The askers: how a conversation is put to the model, over HTTP or, blind, over gRPC."""

from __future__ import annotations

import base64
import io
import secrets
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from openai import AsyncOpenAI
from PIL import Image

from demo_training.batches import CANVAS, TOKENS_PER_TILE
from demo_training.export import MAX_TILE_COUNT
from demo_training.samples import Picture, Turn
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc, tensor_pb2
from protos.process.logs import REQUEST_ID_KEY, new_request_id
from protos.transport import CHUNK_BYTE_COUNT
from vision_service.tiling import choose_grid

MAX_ANSWER_TOKENS = 96
DIGEST_BYTE_COUNT = 32
FLOAT_BYTE_COUNT = 4
ROLES = {
    "system": llm_pb2.ROLE_SYSTEM,
    "user": llm_pb2.ROLE_USER,
    "assistant": llm_pb2.ROLE_ASSISTANT,
}


@dataclass(frozen=True)
class Conversation:
    """What is asked in turn about some pictures, all of which belong to the first question."""

    pictures: tuple[Picture, ...]
    turns: tuple[Turn, ...]
    system: str | None

    def spoken(self, answers: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yields role and text of all that was said once `answers` were given, and what is next."""
        if self.system is not None:
            yield "system", self.system
        for turn, answer in zip(self.turns, answers, strict=False):
            yield "user", turn.question
            yield "assistant", answer
        yield "user", self.turns[len(answers)].question


class Asker(Protocol):
    """Puts the next question of a conversation to the model."""

    async def ask(self, conversation: Conversation, answers: Sequence[str]) -> str:
        """Returns the greedy answer to the question that follows the given answers."""


class HTTPAsker:
    """Asks an OpenAI endpoint."""

    def __init__(self, client: AsyncOpenAI, model: str) -> None:
        self._client = client
        self._model = model

    async def ask(self, conversation: Conversation, answers: Sequence[str]) -> str:
        """See Asker; raises openai.APIError."""
        images = [_image_part(picture) for picture in conversation.pictures]
        messages: list[Any] = []
        for role, text in conversation.spoken(answers):
            parts = [{"type": "text", "text": text}]
            if role == "user":
                parts, images = parts + images, []
            messages.append({"role": role, "content": parts})
        completion = await self._client.chat.completions.create(
            model=self._model, messages=messages, temperature=0, max_tokens=MAX_ANSWER_TOKENS
        )
        return completion.choices[0].message.content or ""


def _image_part(picture: Picture) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(picture.pixels).save(file, "PNG", compress_level=1)
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


class BlindAsker:
    """Asks the LLM service itself, with rows of zeros where the pictures' rows would be.

    HTTP cannot reach prompt tables; protos/internvl/v1/llm.proto has the order of the messages.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = llm_pb2_grpc.LLMServiceStub(channel)

    async def ask(self, conversation: Conversation, answers: Sequence[str]) -> str:
        """See Asker; raises grpc.aio.AioRpcError."""
        info = await self._stub.GetModelInfo(llm_pb2.LLMServiceGetModelInfoRequest())
        row_counts = [_row_count(picture) for picture in conversation.pictures]
        images = len(row_counts)
        start = llm_pb2.GenerateStart(
            # Random: the service can hold no tables of these names.
            images=[_random_id() for _ in row_counts],
            sampling=llm_pb2.SamplingParams(temperature=0),
            stop=llm_pb2.StopConditions(max_token_count=MAX_ANSWER_TOKENS),
        )
        for role, text in conversation.spoken(answers):
            parts = [llm_pb2.ContentPart(text=text)]
            if role == "user":
                parts += [llm_pb2.ContentPart(image=llm_pb2.ImagePart())] * images
                images = 0
            start.chat.messages.add(role=ROLES[role], parts=parts)
        requests = _requests(start, row_counts, info.hidden_size)
        call = self._stub.Generate(requests, metadata=[(REQUEST_ID_KEY, new_request_id())])
        try:
            return "".join([response.delta.text async for response in call])
        finally:
            call.cancel()


def _row_count(picture: Picture) -> int:
    height, width, _ = picture.pixels.shape
    return choose_grid(width, height, MAX_TILE_COUNT, CANVAS).tile_count * TOKENS_PER_TILE


async def _requests(
    start: llm_pb2.GenerateStart, row_counts: Sequence[int], hidden_size: int
) -> AsyncIterator[llm_pb2.GenerateRequest]:
    yield llm_pb2.GenerateRequest(start=start)
    for index, row_count in enumerate(row_counts):
        for request in _zeros(index, row_count, hidden_size):
            yield request


def _zeros(index: int, row_count: int, hidden_size: int) -> Iterator[llm_pb2.GenerateRequest]:
    """Yields the messages that upload a table of zeros."""
    zeros = bytes(row_count * hidden_size * FLOAT_BYTE_COUNT)
    spec = tensor_pb2.TensorSpec(
        dtype=tensor_pb2.DATA_TYPE_FP32, shape=[row_count, hidden_size], byte_count=len(zeros)
    )
    header = llm_pb2.EmbeddingHeader(image_index=index, spec=spec)
    yield llm_pb2.GenerateRequest(embedding_header=header)
    for offset in range(0, len(zeros), CHUNK_BYTE_COUNT):
        data = zeros[offset : offset + CHUNK_BYTE_COUNT]
        chunk = tensor_pb2.EmbeddingChunk(image_index=index, offset=offset, data=data)
        yield llm_pb2.GenerateRequest(embedding_chunk=chunk)
    trailer = llm_pb2.EmbeddingTrailer(image_index=index, crc32=zlib.crc32(zeros))
    yield llm_pb2.GenerateRequest(embedding_trailer=trailer)


def _random_id() -> tensor_pb2.EmbeddingId:
    return tensor_pb2.EmbeddingId(
        content_sha256=secrets.token_bytes(DIGEST_BYTE_COUNT),
        recipe_sha256=secrets.token_bytes(DIGEST_BYTE_COUNT),
    )
