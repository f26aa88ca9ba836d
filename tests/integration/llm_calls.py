"""The LLM service over real gRPC around any engine, and the messages of its Generate calls."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import grpc
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import LLMEngine
from llm_service.engines.pacing import UNPACED, Pacing
from llm_service.generator import Generator
from llm_service.metrics import Metrics
from llm_service.model import ModelInfo
from llm_service.servicer import SERVICE_NAME, LLMServicer
from llm_service.tables import TableCache
from llm_service.templates import INTERNVL2_5
from llm_service.tokenizer import Tokenizer
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc, tensor_pb2
from protos.process.server import Service, running_server
from protos.process.shared_memory import SlotReader
from protos.signature import EmbeddingKey
from protos.status import from_rpc_error

HIDDEN_SIZE = 8
CONTEXT = 4096
TABLE_BYTES = 1 << 20
CONFIG = LLMConfig(
    architecture="Qwen2ForCausalLM",
    hidden_size=HIDDEN_SIZE,
    intermediate_size=16,
    layer_count=1,
    head_count=2,
    kv_head_count=1,
    head_dim=4,
    vocabulary_size=151674,
    max_position_embeddings=CONTEXT,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    end_token_ids=frozenset({151645}),
    rows_per_tile=256,
)
END = 151645


@asynccontextmanager
async def serving(
    engine: LLMEngine,
    tokenizer: Tokenizer,
    table_byte_count: int = TABLE_BYTES,
    metrics: Metrics | None = None,
    *,
    upload_seconds: float = 300.0,
    key: EmbeddingKey | None = None,
    allows_priority: bool = False,
    memory: SlotReader | None = None,
    pacing: Pacing = UNPACED,
) -> AsyncIterator[grpc.aio.Channel]:
    """Serves an engine of CONFIG's model; yields a channel to it."""
    info = ModelInfo(
        "tiny",
        "torch",
        CONFIG,
        tokenizer,
        INTERNVL2_5,
        CONTEXT,
        4,
        upload_seconds,
        created_unix_seconds=1_700_000_000,
        aliases=("small", "toy"),
        allows_priority=allows_priority,
    )
    tables = TableCache(table_byte_count, key, memory)
    metrics = metrics or Metrics(engine)
    servicer = LLMServicer(Generator(info, engine, tables, metrics, pacing))
    service = Service(
        SERVICE_NAME,
        servicer.register,
        engine.is_healthy,
        metrics=metrics,
    )
    async with channel_to(service) as channel:
        yield channel


@asynccontextmanager
async def channel_to(service: Service) -> AsyncIterator[grpc.aio.Channel]:
    """Runs a service; yields a channel to it."""
    async with (
        running_server(service, "127.0.0.1", 0, drain_seconds=1) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield channel


def embedding_id(name: str) -> tensor_pb2.EmbeddingId:
    digest = name.encode().ljust(32, b".")
    return tensor_pb2.EmbeddingId(content_sha256=digest, recipe_sha256=digest)


def start(
    text: str = "Hi", images: Iterable[str] = (), **fields: object
) -> llm_pb2.GenerateRequest:
    image_ids = [embedding_id(name) for name in images]
    parts = [llm_pb2.ContentPart(text=text)]
    parts += [llm_pb2.ContentPart(image=llm_pb2.ImagePart()) for _ in image_ids]
    chat = llm_pb2.ChatPrompt(messages=[llm_pb2.ChatMessage(role=llm_pb2.ROLE_USER, parts=parts)])
    return llm_pb2.GenerateRequest(
        start=llm_pb2.GenerateStart(chat=chat, images=image_ids, **fields)  # type: ignore[arg-type]
    )


def header(index: int = 0, rows: int = 2, **spec: object) -> llm_pb2.GenerateRequest:
    fields = {
        "dtype": tensor_pb2.DATA_TYPE_FP32,
        "shape": [rows, HIDDEN_SIZE],
        "byte_count": rows * HIDDEN_SIZE * 4,
    }
    tensor_spec = tensor_pb2.TensorSpec(**(fields | spec))  # type: ignore[arg-type]
    return llm_pb2.GenerateRequest(
        embedding_header=llm_pb2.EmbeddingHeader(image_index=index, spec=tensor_spec)
    )


def chunk(data: bytes, offset: int = 0, index: int = 0) -> llm_pb2.GenerateRequest:
    piece = tensor_pb2.EmbeddingChunk(image_index=index, offset=offset, data=data)
    return llm_pb2.GenerateRequest(embedding_chunk=piece)


def trailer(data: bytes, index: int = 0, signature: bytes = b"") -> llm_pb2.GenerateRequest:
    return llm_pb2.GenerateRequest(
        embedding_trailer=llm_pb2.EmbeddingTrailer(
            image_index=index, crc32=zlib.crc32(data), signature=signature
        )
    )


def table(value: float, rows: int = 2) -> tuple[torch.Tensor, bytes]:
    rows_tensor = torch.full((rows, HIDDEN_SIZE), value)
    return rows_tensor, rows_tensor.numpy().tobytes()


def upload(data: bytes, index: int = 0, rows: int = 2) -> list[llm_pb2.GenerateRequest]:
    return [header(index, rows), chunk(data, index=index), trailer(data, index)]


async def exchange(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, *requests: llm_pb2.GenerateRequest
) -> list[llm_pb2.GenerateResponse]:
    call = stub.Generate(iter(requests))
    try:
        return [response async for response in call]
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


def text_of(responses: list[llm_pb2.GenerateResponse]) -> str:
    return "".join(response.delta.text for response in responses)
