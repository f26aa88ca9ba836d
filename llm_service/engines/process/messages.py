"""What an LLM service and its engine's host say to each other, and what is made of it."""

from __future__ import annotations

from dataclasses import fields
from typing import get_type_hints

import msgspec
import torch

from llm_service.engines.base import (
    EngineLoad,
    FinishReason,
    ImageRows,
    LogprobTable,
    Prompt,
    Request,
    RowsNeededError,
    TokenLogprob,
    TokenOutput,
)
from llm_service.sampling import Guide, OutputGuide, SamplingParams, ToolCallGuide, ToolCalls
from llm_service.tools.base import Envelope, ToolDefinition
from protos.errors import BY_REASON, ServiceError

ERRORS: dict[str, type[ServiceError]] = {
    cls.__name__: cls for cls in (*BY_REASON.values(), RowsNeededError)
}
# All of SamplingParams but its guide, in the order in which it has them.
_SAMPLING_NAMES = [field.name for field in fields(SamplingParams) if field.name != "guide"]
_HINTS = get_type_hints(SamplingParams)
_Sampling = msgspec.defstruct(
    "_Sampling", [(name, _HINTS[name]) for name in _SAMPLING_NAMES], array_like=True
)
_SAMPLING_DECODER = msgspec.msgpack.Decoder(_Sampling)


class Facts(msgspec.Struct):
    """What a service has to know of its engine before it serves."""

    context_length: int
    load: EngineLoad


class ToolCallsMessage(msgspec.Struct, array_like=True):
    """A ToolCallGuide."""

    envelope: Envelope
    tools: tuple[ToolDefinition, ...]
    names: frozenset[str]
    is_single: bool
    is_required: bool
    instead: Guide | None


class GuideMessage(msgspec.Struct, array_like=True):
    """An OutputGuide: one of the two."""

    guide: Guide | None
    calls: ToolCallsMessage | None


class TableMessage(msgspec.Struct, array_like=True):
    """A prompt table: where it is.

    Attributes:
        shape: its dimensions.
        dtype: its type's name, e.g. "bfloat16".
        offset: where it begins in the arena; None: a file of its own goes beside the message, or,
            where there is none, nobody holds the rows, or it has none.
    """

    shape: tuple[int, ...]
    dtype: str
    offset: int | None


class Generate(msgspec.Struct, tag="generate", array_like=True):
    """A Request; what comes of it has its key. Requests of one account have its number."""

    key: int
    token_ids: list[int]
    table: TableMessage
    images: tuple[ImageRows, ...]
    cache_salt: str
    field: str
    sampling: msgspec.Raw
    guide: GuideMessage | None
    priority: int
    deadline: float | None
    account: int


class Leave(msgspec.Struct, tag="leave", array_like=True):
    """Nobody waits for a request's outputs any more; told once of each, also after its last."""

    key: int


class CheckGuide(msgspec.Struct, tag="check_guide", array_like=True):
    """Asks what is wrong with a guide; Checked answers."""

    key: int
    guide: GuideMessage


class ErrorMessage(msgspec.Struct, array_like=True):
    """A ServiceError, by the name of its class."""

    kind: str
    message: str
    field: str
    retry_after: float | None


class Scores(msgspec.Struct, array_like=True):
    """A LogprobTable: its numbers row by row, float32 and int64."""

    token_ids: list[int]
    logprobs: bytes
    top: bytes


class Output(msgspec.Struct, array_like=True):
    """A TokenOutput of the request with this key."""

    key: int
    token_ids: list[int]
    finish_reason: FinishReason | None
    cached_token_count: int
    logprobs: tuple[TokenLogprob, ...]
    scores: Scores | None


class Step(msgspec.Struct, tag="step", array_like=True):
    """What a step has brought, for all of its callers at once; or the load alone.

    Attributes:
        outputs: of the requests that have any.
        faults: those that have ended with an error, by key.
        started: those that the engine has begun with, by key, with the time.
        load: the engine's, but for what the service knows better: how many wait.
        is_healthy: whether the engine still works; its process ends soon if not.
    """

    outputs: list[Output]
    faults: list[tuple[int, ErrorMessage]]
    started: list[tuple[int, float]]
    load: EngineLoad
    is_healthy: bool


class Checked(msgspec.Struct, tag="checked", array_like=True):
    """What is wrong with the guide of a CheckGuide; None: nothing."""

    key: int
    error: ErrorMessage | None


class TableLeft(msgspec.Struct, tag="table_left", array_like=True):
    """Nobody reads the arena's part with a request's table any more."""

    key: int


ToHost = Generate | Leave | CheckGuide
ToService = Step | Checked | TableLeft


def generate_message(key: int, request: Request, table: TableMessage, account: int) -> Generate:
    """Returns what asks for a request, whose table is told apart."""
    prompt, params = request.prompt, request.params
    sampling = _Sampling(*(getattr(params, name) for name in _SAMPLING_NAMES))
    return Generate(
        key,
        prompt.token_ids,
        table,
        prompt.images,
        prompt.cache_salt,
        prompt.field,
        msgspec.Raw(msgspec.msgpack.encode(sampling)),
        None if params.guide is None else guide_message(params.guide),
        request.priority,
        request.deadline,
        account,
    )


def prompt_of(message: Generate, table: torch.Tensor) -> Prompt:
    """Returns the prompt of a request with this table."""
    return Prompt(message.token_ids, table, message.images, message.cache_salt, message.field)


def params_of(message: Generate) -> SamplingParams:
    """Returns how a request's tokens are chosen."""
    guide = None if message.guide is None else guide_of(message.guide)
    options = msgspec.structs.asdict(_SAMPLING_DECODER.decode(message.sampling))
    return SamplingParams(**options, guide=guide)


def guide_message(guide: OutputGuide) -> GuideMessage:
    """Returns what tells a guide."""
    if isinstance(guide, Guide):
        return GuideMessage(guide, None)
    calls = guide.calls
    told = ToolCallsMessage(
        calls.envelope,
        calls.tools,
        calls.names,
        calls.is_single,
        guide.is_required,
        guide.instead,
    )
    return GuideMessage(None, told)


def guide_of(message: GuideMessage) -> OutputGuide:
    """Returns the guide that is told."""
    if message.guide is not None:
        return message.guide
    told = message.calls
    assert told is not None
    calls = ToolCalls(told.envelope, told.tools, told.names, told.is_single)
    return ToolCallGuide(calls, told.is_required, told.instead)


def error_message(error: ServiceError) -> ErrorMessage:
    """Returns what tells an error; one of a class that is not listed as its nearest that is."""
    kind = next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in ERRORS)
    return ErrorMessage(kind, error.message, error.field, error.retry_after)


def error_of(message: ErrorMessage) -> ServiceError:
    """Returns the error that is told."""
    error = ERRORS[message.kind]
    return error(message.message, field=message.field, retry_after=message.retry_after)


def output_message(key: int, output: TokenOutput) -> Output:
    """Returns what tells a request's output."""
    scores = output.prompt_logprobs
    return Output(
        key,
        output.token_ids,
        output.finish_reason,
        output.cached_token_count,
        output.logprobs,
        None if scores is None else _scores(scores),
    )


def output_of(message: Output) -> TokenOutput:
    """Returns the output that is told."""
    return TokenOutput(
        message.token_ids,
        message.finish_reason,
        message.cached_token_count,
        message.logprobs,
        None if message.scores is None else _logprob_table(message.scores),
    )


def _scores(table: LogprobTable) -> Scores:
    numbers = table.logprobs.contiguous().numpy(), table.top.contiguous().numpy()
    return Scores(table.token_ids, *(each.tobytes() for each in numbers))


def _logprob_table(scores: Scores) -> LogprobTable:
    count = len(scores.token_ids)
    logprobs = torch.frombuffer(bytearray(scores.logprobs), dtype=torch.float32).view(count, -1)
    top = torch.empty(count, 0, dtype=torch.int64)
    if scores.top:
        top = torch.frombuffer(bytearray(scores.top), dtype=torch.int64).view(count, -1)
    return LogprobTable(scores.token_ids, logprobs, top)
