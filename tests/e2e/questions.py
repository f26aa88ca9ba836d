"""Questions about pictures, with their right answers, and how the three services are asked them.

`tests/data/questions` holds them: drawn from seeds that training held out, for the model in
`models/demo/checkpoint`. `python -m demo_training.product_questions`, run in
`models/demo/training`, writes them again.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
from openai import AsyncOpenAI

from protos.internvl.v1 import llm_pb2, llm_pb2_grpc, tensor_pb2
from protos.transport import CHUNK_BYTE_COUNT

FOLDER = Path(__file__).parents[1] / "data" / "questions"
FINAL_PUNCTUATION = ".。!！?？ "
MAX_ANSWER_TOKEN_COUNT = 96
ROW_COUNT = 256  # of a picture of one tile
ROLES = {
    "system": llm_pb2.ROLE_SYSTEM,
    "user": llm_pb2.ROLE_USER,
    "assistant": llm_pb2.ROLE_ASSISTANT,
}


@dataclass(frozen=True)
class Question:
    """One turn of a conversation, and its right answer."""

    task: str
    language: str
    question: str
    answer: str

    def is_answered_by(self, text: str) -> bool:
        """Whether a text is the right answer but for case and final punctuation."""
        given, right = (
            answer.strip().rstrip(FINAL_PUNCTUATION).casefold() for answer in (text, self.answer)
        )
        return given == right


@dataclass(frozen=True)
class Conversation:
    """Questions asked in turn about some pictures, all of which belong to the first question."""

    system: str | None
    pictures: tuple[Path, ...]
    turns: tuple[Question, ...]

    def spoken(self, answers: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yields role and text of all that was said once `answers` were given, and what is next."""
        if self.system is not None:
            yield "system", self.system
        for turn, answer in zip(self.turns, answers, strict=False):
            yield "user", turn.question
            yield "assistant", answer
        yield "user", self.turns[len(answers)].question


@dataclass(frozen=True)
class Answered:
    """A question, and what came back."""

    question: Question
    text: str

    @property
    def is_right(self) -> bool:
        """Whether it is the right answer."""
        return self.question.is_answered_by(self.text)


def conversations(name: str) -> list[Conversation]:
    """Returns a set of `questions.json`."""
    document = json.loads((FOLDER / "questions.json").read_text(encoding="utf-8"))
    return [
        Conversation(
            item["system"],
            tuple(FOLDER / picture for picture in item["pictures"]),
            tuple(Question(**turn) for turn in item["turns"]),
        )
        for item in document[name]
    ]


def share(answers: Sequence[Answered]) -> float:
    """Returns how many answers are right, in per cent."""
    return 100 * sum(answer.is_right for answer in answers) / len(answers)


class Asker(Protocol):
    """Puts the next question of a conversation to the model."""

    async def ask(self, conversation: Conversation, answers: Sequence[str]) -> str:
        """Returns the greedy answer to the question that follows the given answers."""


async def ask_all(
    asker: Asker, asked: Sequence[Conversation], concurrency: int = 2
) -> list[Answered]:
    """Asks everything, some conversations at a time; a follow-up sees the model's own answers."""
    limit = asyncio.Semaphore(concurrency)

    async def ask(conversation: Conversation) -> list[Answered]:
        texts: list[str] = []
        async with limit:
            for _ in conversation.turns:
                texts.append(await asker.ask(conversation, texts))
        return list(map(Answered, conversation.turns, texts))

    answers = await asyncio.gather(*map(ask, asked))
    return [answer for turns in answers for answer in turns]


class HTTPAsker:
    """Asks the gateway."""

    def __init__(self, client: AsyncOpenAI, model: str) -> None:
        self._client = client
        self._model = model

    async def ask(self, conversation: Conversation, answers: Sequence[str]) -> str:
        images = [_image_part(picture) for picture in conversation.pictures]
        messages: list[Any] = []
        for role, text in conversation.spoken(answers):
            parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
            if role == "user":
                parts, images = parts + images, []
            messages.append({"role": role, "content": parts})
        completion = await self._client.chat.completions.create(
            model=self._model, messages=messages, temperature=0, max_tokens=MAX_ANSWER_TOKEN_COUNT
        )
        return completion.choices[0].message.content or ""


def _image_part(picture: Path) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


class BlindAsker:
    """Asks the LLM service itself, with rows of zeros where the picture's rows would be.

    HTTP cannot reach prompt tables. Each picture must be of one tile.
    """

    def __init__(self, channel: grpc.aio.Channel, hidden_size: int) -> None:
        self._stub: llm_pb2_grpc.LLMServiceAsyncStub = llm_pb2_grpc.LLMServiceStub(channel)
        self._hidden_size = hidden_size

    async def ask(self, conversation: Conversation, answers: Sequence[str]) -> str:
        count = len(conversation.pictures)
        start = llm_pb2.GenerateStart(
            images=[_unknown_id() for _ in range(count)],
            sampling=llm_pb2.SamplingParams(temperature=0),
            stop=llm_pb2.StopConditions(max_token_count=MAX_ANSWER_TOKEN_COUNT),
        )
        for role, text in conversation.spoken(answers):
            parts = [llm_pb2.ContentPart(text=text)]
            if role == "user":
                parts += [llm_pb2.ContentPart(image=llm_pb2.ImagePart())] * count
                count = 0
            start.chat.messages.add(role=ROLES[role], parts=parts)
        requests = [llm_pb2.GenerateRequest(start=start)]
        for index in range(len(start.images)):
            requests += zero_rows(index, self._hidden_size)
        return "".join([answer.delta.text async for answer in self._stub.Generate(iter(requests))])


def _unknown_id() -> tensor_pb2.EmbeddingId:
    """Returns an embedding id whose rows the service cannot hold yet."""
    return tensor_pb2.EmbeddingId(
        content_sha256=secrets.token_bytes(32), recipe_sha256=secrets.token_bytes(32)
    )


def zero_rows(index: int, hidden_size: int) -> Iterator[llm_pb2.GenerateRequest]:
    """Yields the messages that upload a picture's rows, all zero."""
    zeros = bytes(ROW_COUNT * hidden_size * 4)
    spec = tensor_pb2.TensorSpec(
        dtype=tensor_pb2.DATA_TYPE_FP32, shape=[ROW_COUNT, hidden_size], byte_count=len(zeros)
    )
    header = llm_pb2.EmbeddingHeader(image_index=index, spec=spec)
    yield llm_pb2.GenerateRequest(embedding_header=header)
    for offset in range(0, len(zeros), CHUNK_BYTE_COUNT):
        chunk = tensor_pb2.EmbeddingChunk(
            image_index=index, offset=offset, data=zeros[offset : offset + CHUNK_BYTE_COUNT]
        )
        yield llm_pb2.GenerateRequest(embedding_chunk=chunk)
    trailer = llm_pb2.EmbeddingTrailer(image_index=index, crc32=zlib.crc32(zeros))
    yield llm_pb2.GenerateRequest(embedding_trailer=trailer)
