"""All that a service and its engine's process tell each other comes out as it went in."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import msgspec
import pytest
import torch

from llm_service.engines.base import (
    DraftTotals,
    EngineLoad,
    HostCacheLoad,
    ImageRows,
    LogprobTable,
    Prompt,
    Request,
    RowsNeededError,
    StepTotals,
    TokenLogprob,
    TokenOutput,
)
from llm_service.engines.process.messages import (
    ERRORS,
    CheckGuide,
    Generate,
    Step,
    TableMessage,
    ToHost,
    ToService,
    error_message,
    error_of,
    generate_message,
    guide_message,
    guide_of,
    output_message,
    output_of,
    params_of,
    prompt_of,
)
from llm_service.sampling import Guide, OutputGuide, SamplingParams, ToolCallGuide, ToolCalls
from llm_service.tools.base import ToolDefinition
from llm_service.tools.plugin import PluginFormat
from protos.errors import DataLossError, ServiceError
from protos.identity import EmbeddingId

TOOLS = (ToolDefinition("add", "adds", '{"type": "object"}', is_strict=True), ToolDefinition("b"))
CALLS = ToolCalls(PluginFormat.envelope, TOOLS, frozenset({"add"}), is_single=True)
SCHEMA = Guide("json_schema", '{"type": "object"}')
GUIDES: list[OutputGuide] = [
    Guide("json_object"),
    SCHEMA,
    Guide("regex", "a+"),
    Guide("grammar", 'start: "a"'),
    ToolCallGuide(CALLS, is_required=True),
    ToolCallGuide(replace(CALLS, is_single=False), is_required=False, instead=SCHEMA),
]
PARAMS = SamplingParams(
    temperature=0.5,
    top_p=0.25,
    top_k=7,
    min_p=0.125,
    seed=-(2**63),
    repetition_penalty=1.5,
    presence_penalty=-0.5,
    frequency_penalty=0.5,
    max_tokens=9,
    min_tokens=3,
    stop_token_ids=frozenset({3, 151645}),
    logit_bias=((4, -100.0), (5, 1.5)),
    logprob_count=2,
    wants_prompt_logprobs=True,
    guide=SCHEMA,
)
LOAD = EngineLoad(
    3, 4, 5, 6, StepTotals(7, 0.25, 8), 9, 10, DraftTotals(11, 12), HostCacheLoad(13, 14, 15, 16)
)


def there(message: msgspec.Struct) -> Any:
    """Returns what the other side makes of a message."""
    kinds: Any = ToHost if isinstance(message, (Generate, CheckGuide)) else ToService
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=kinds)


def test_a_request_with_all_that_it_can_have() -> None:
    for field in fields(SamplingParams):
        assert getattr(PARAMS, field.name) != field.default, f"{field.name} is not tested"
    images = (
        ImageRows(EmbeddingId(b"a" * 32, b"b" * 32), 2),
        ImageRows(EmbeddingId(b"c" * 32, b"d" * 32), 3, is_held=False),
    )
    prompt = Prompt([1, 2, 151674], torch.zeros(5, 4), images, "salt", "chat.messages")
    request = Request(prompt, PARAMS, priority=-3, deadline=12345.678901)
    sent = there(generate_message(7, request, TableMessage((5, 4), "float32", 4096), 8))
    assert prompt_of(sent, prompt.prompt_table) == prompt
    assert params_of(sent) == PARAMS
    assert (sent.key, sent.account, sent.priority, sent.deadline) == (7, 8, -3, 12345.678901)
    assert sent.table == TableMessage((5, 4), "float32", 4096)


def test_a_request_with_nothing_that_it_need_not_have() -> None:
    request = Request(Prompt([1], torch.zeros(0, 4)), SamplingParams())
    sent = there(generate_message(0, request, TableMessage((0, 4), "float32", None), 0))
    assert params_of(sent) == request.params
    assert prompt_of(sent, request.prompt.prompt_table) == request.prompt
    assert sent.deadline is None


@pytest.mark.parametrize("guide", GUIDES)
def test_guides(guide: OutputGuide) -> None:
    assert guide_of(there(CheckGuide(1, guide_message(guide))).guide) == guide


def test_the_load_with_all_that_it_can_have() -> None:
    for field in fields(EngineLoad):
        assert getattr(LOAD, field.name) != field.default, f"{field.name} is not tested"
    assert there(Step([], [], [], LOAD, True)).load == LOAD


@pytest.mark.parametrize("kind", ERRORS.values())
def test_errors_with_all_their_fields(kind: type[ServiceError]) -> None:
    error = kind("a sentence", field="sampling.top_p", retry_after=1.5)
    sent = there(Step([], [(5, error_message(error))], [], LOAD, False))
    ((key, message),) = sent.faults
    came = error_of(message)
    assert key == 5
    assert type(came) is kind
    assert (came.message, came.field, came.retry_after) == ("a sentence", "sampling.top_p", 1.5)


def test_every_error_is_listed() -> None:
    def classes(cls: type[ServiceError]) -> set[type[ServiceError]]:
        return {cls}.union(*(classes(child) for child in cls.__subclasses__()))

    services = ("protos.", "llm_service.")
    ours = {cls for cls in classes(ServiceError) if cls.__module__.startswith(services)}
    assert ours - set(ERRORS.values()) == set()
    assert RowsNeededError in ours


def test_an_error_of_a_class_that_is_not_listed_is_its_nearest() -> None:
    class TornError(DataLossError):
        pass

    assert type(error_of(error_message(TornError("torn")))) is DataLossError


@pytest.mark.parametrize(
    "output",
    [
        TokenOutput([5], None),
        TokenOutput([5, 6], "stop", 12),
        TokenOutput([], "length", 0, (TokenLogprob(5, -0.5, ((5, -0.5), (6, -1.25))),)),
    ],
)
def test_outputs(output: TokenOutput) -> None:
    sent = there(Step([output_message(3, output)], [], [(3, 1.25)], LOAD, True))
    assert [output_of(each) for each in sent.outputs] == [output]
    assert (sent.outputs[0].key, sent.started, sent.is_healthy) == (3, [(3, 1.25)], True)
    assert sent.load == LOAD


@pytest.mark.parametrize("top_count", [0, 2])
def test_the_prompts_scores(top_count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    logprobs = torch.randn(3, 1 + top_count, generator=generator)
    top = torch.randint(0, 2**40, (3, top_count), generator=generator)
    table = LogprobTable([7, 8, 9], logprobs, top)
    output = TokenOutput([], None, prompt_logprobs=table)
    (sent,) = there(Step([output_message(3, output)], [], [], LOAD, True)).outputs
    came = output_of(sent).prompt_logprobs
    assert came is not None
    assert [*came.parts(2)] == [*table.parts(2)]
