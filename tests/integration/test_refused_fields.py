"""Each field of the contract violated: the service's sentence, and the path that a client wrote.

Over HTTP a client reads letter for letter what the service says over gRPC, and beside it, as
`param`, the path in its own JSON. The fields are walked by their descriptors: a new one fails here
until a case says how it is refused.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp
import grpc
import pytest
import pytest_asyncio

from gateway.app import running_gateway
from gateway.openai.errors import http_status
from gateway.settings import Settings as GatewaySettings
from llm_service.settings import Settings as LLMSettings
from protos.checkpoint.fingerprint import PART_NAMES
from protos.errors import InvalidArgumentError, ServiceError
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc, vision_pb2, vision_pb2_grpc
from protos.process.settings import MIB
from protos.status import from_rpc_error
from tests.fakes import MODEL, ScriptedLLM, chat_body, stack
from tests.integration.real_services import running_llm, running_vision
from tests.random_checkpoint import write_random_checkpoint
from vision_service.settings import Settings as VisionSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

Request = Literal[
    "GenerateStart",
    "EncodeImageRequest",
    "PlanTilesRequest",
    "CountTokensRequest",
    "DetokenizeRequest",
    "CheckGuideRequest",
]
DESCRIPTORS: dict[Request, Any] = {
    "GenerateStart": llm_pb2.GenerateStart.DESCRIPTOR,
    "EncodeImageRequest": vision_pb2.EncodeImageRequest.DESCRIPTOR,
    "PlanTilesRequest": vision_pb2.PlanTilesRequest.DESCRIPTOR,
    "CountTokensRequest": llm_pb2.CountTokensRequest.DESCRIPTOR,
    "DetokenizeRequest": llm_pb2.DetokenizeRequest.DESCRIPTOR,
    "CheckGuideRequest": llm_pb2.CheckGuideRequest.DESCRIPTOR,
}
NO_IMAGE = b"no image"
DIGESTS = {"content_sha256": bytes(32), "recipe_sha256": bytes(32)}
LONG_TEXT = "a" * 600_000  # a context of 32,768 tokens takes at most 16 bytes for each


def turn(role: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "parts": list(parts)}


def chat(*turns: dict[str, Any]) -> dict[str, Any]:
    return {"chat": {"messages": list(turns)}}


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def picture(image: bytes, **options: Any) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(image).decode()
    return {"type": "image_url", "image_url": {"url": url, **options}}


HI = chat(turn("ROLE_USER", {"text": "Hi"}))
SCHEMA: dict[str, Any] = {"enum": []}
SCHEMA_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
OPEN_GRAMMAR = 'start: "a'
LIST_OF_ARGUMENTS = {"type": "array"}


def tools(count: int = 1, name: str = "f", **definition: Any) -> list[dict[str, Any]]:
    """Returns definitions as the contract has them."""
    return [{"name": name * (index + 1), **definition} for index in range(count)]


def functions(count: int = 1, name: str = "f", **definition: Any) -> dict[str, Any]:
    """Returns the same as a client writes them."""
    entries = tools(count, name, **definition)
    return {"tools": [{"type": "function", "function": entry} for entry in entries]}


def calling(definitions: list[dict[str, Any]], **guide: Any) -> dict[str, Any]:
    """Returns a prompt whose answer may call tools."""
    guided = {"tool_calls": {"choice": 1, **guide}}
    return {"chat": {**HI["chat"], "tools": definitions}, "guided": guided}


@dataclass(frozen=True)
class Violation:
    """A request that breaks the rule of one field.

    Attributes:
        request: which message of the contract has the field.
        field: the path that the service must name; its indexes left out, the field that is walked.
        values: the message's fields; those of a GenerateStart that has no prompt come upon HI.
        body: fields of a chat request that says the same.
        param: the path that its client must be told; it stands in the body.
    """

    request: Request
    field: str
    values: dict[str, Any]
    body: dict[str, Any]
    param: str

    def __str__(self) -> str:
        return f"{self.request}-{self.field}-{self.param}"


def option(field: str, value: Any, **body: Any) -> Violation:
    """Returns the violation of a GenerateStart's field by an option that a client writes."""
    ((param, _),) = body.items()
    return Violation("GenerateStart", field, _at(field, value), body, param)


def _at(field: str, value: Any) -> dict[str, Any]:
    for name in reversed(re.sub(r"\[\d+\].*", "", field).split(".")):
        value = {name: value}
    return dict(value)


# Refused by a service, and sent there by a client of the gateway.
VIOLATIONS: list[Violation] = [
    Violation("GenerateStart", "chat.messages", chat(), {"messages": []}, "messages"),
    Violation(
        "GenerateStart",
        "chat.messages",
        chat(turn("ROLE_USER", {"text": LONG_TEXT})),
        user(LONG_TEXT),
        "messages",
    ),
    Violation(
        "GenerateStart",
        "chat.messages[0].parts",
        chat(turn("ROLE_USER", {"image": {}}, {"text": "<image><image>"})) | {"images": [DIGESTS]},
        user([picture(b"a"), {"type": "text", "text": "<image><image>"}]),
        "messages[0].content",
    ),
    Violation(
        "GenerateStart",
        "chat.messages[0].parts",
        chat(turn("ROLE_SYSTEM", {"image": {}})) | {"images": [DIGESTS]},
        {"messages": [{"role": "system", "content": [picture(b"a")]}]},
        "messages[0].content",
    ),
    Violation(
        "GenerateStart",
        "images",
        chat(turn("ROLE_USER", {"image": {}}, {"image": {}})) | {"images": [DIGESTS] * 2},
        user([picture(b"a"), picture(b"b")]),
        "messages",
    ),
    option("priority", 4, priority=-4),
    option("sampling.temperature", 3, temperature=3),
    option("sampling.top_p", 1.5, top_p=1.5),
    option("sampling.top_k", -2, top_k=-2),
    option("sampling.min_p", -0.5, min_p=-0.5),
    option("sampling.repetition_penalty", 0, repetition_penalty=0),
    option("sampling.presence_penalty", 2.5, presence_penalty=2.5),
    option("sampling.frequency_penalty", -2.5, frequency_penalty=-2.5),
    Violation(
        "GenerateStart",
        "sampling.logit_bias",
        _at("sampling.logit_bias", [{"token_id": index, "bias": 1} for index in range(1025)]),
        {"logit_bias": {str(index): 1 for index in range(1025)}},
        "logit_bias",
    ),
    Violation(
        "GenerateStart",
        "sampling.logit_bias[1].token_id",
        _at("sampling.logit_bias", [{"token_id": 1, "bias": 1}, {"token_id": 99999, "bias": 1}]),
        {"logit_bias": {"1": 1, "99999": 1}},
        "logit_bias.99999",
    ),
    Violation(
        "GenerateStart",
        "sampling.logit_bias[1].bias",
        _at("sampling.logit_bias", [{"token_id": 1, "bias": 1}, {"token_id": 7, "bias": 101}]),
        {"logit_bias": {"1": 1, "7": 101}},
        "logit_bias.7",
    ),
    option("stop.max_token_count", 0, max_tokens=0),
    option("stop.max_token_count", 0, max_completion_tokens=0),
    option("stop.min_token_count", -1, min_tokens=-1),
    option("stop.strings", ["x"] * 17, stop=["x"] * 17),
    option("stop.strings[0]", [""], stop=""),
    Violation(
        "GenerateStart",
        "stop.strings[1]",
        _at("stop.strings", ["x", "y" * 257]),
        {"stop": ["x", "y" * 257]},
        "stop[1]",
    ),
    option("stop.token_ids", [1] * 17, stop_token_ids=[1] * 17),
    Violation(
        "GenerateStart",
        "stop.token_ids[1]",
        _at("stop.token_ids", [1, 99999]),
        {"stop_token_ids": [1, 99999]},
        "stop_token_ids[1]",
    ),
    Violation(
        "GenerateStart",
        "logprobs.top_count",
        _at("logprobs.top_count", 21),
        {"logprobs": True, "top_logprobs": 21},
        "top_logprobs",
    ),
    Violation(
        "GenerateStart",
        "guided.json_object",
        _at("guided.json_object", {}) | _at("stop.ignore_end_tokens", True),
        {"response_format": {"type": "json_object"}, "ignore_eos": True},
        "response_format",
    ),
    Violation(
        "GenerateStart",
        "guided.json_schema",
        _at("guided.json_schema", json.dumps(SCHEMA)),
        {"response_format": SCHEMA_FORMAT},
        "response_format.json_schema.schema",
    ),
    Violation(
        "GenerateStart",
        "guided.json_schema",
        _at("guided.json_schema", json.dumps(SCHEMA)),
        {"structured_outputs": {"json": SCHEMA}},
        "structured_outputs.json",
    ),
    Violation(
        "GenerateStart",
        "guided.regex",
        _at("guided.regex", "(("),
        {"structured_outputs": {"regex": "(("}},
        "structured_outputs.regex",
    ),
    Violation(
        "GenerateStart",
        "guided.grammar",
        _at("guided.grammar", OPEN_GRAMMAR),
        {"structured_outputs": {"grammar": OPEN_GRAMMAR}},
        "structured_outputs.grammar",
    ),
    Violation("GenerateStart", "chat.tools", calling(tools(129)), functions(129), "tools"),
    Violation(
        "GenerateStart",
        "chat.tools[0].name",
        calling(tools(name="f" * 129)),
        functions(name="f" * 129),
        "tools[0].function.name",
    ),
    Violation(
        "GenerateStart",
        "chat.tools[0].parameters.type",
        calling(tools(parameters=json.dumps(LIST_OF_ARGUMENTS))),
        functions(parameters=LIST_OF_ARGUMENTS),
        "tools[0].function.parameters.type",
    ),
    option("choice_count", 17, n=17),
    option("cache_salt", "x" * 129, cache_salt="x" * 129),
    Violation(
        "EncodeImageRequest",
        "image",
        {"image": NO_IMAGE},
        user([picture(NO_IMAGE)]),
        "messages[0].content[0].image_url.url",
    ),
    Violation(
        "EncodeImageRequest",
        "max_tile_count",
        {"image": NO_IMAGE, "max_tile_count": 99},
        user([picture(NO_IMAGE, max_dynamic_patch=99)]),
        "messages[0].content[0].image_url.max_dynamic_patch",
    ),
]


@dataclass(frozen=True)
class OwnViolation:
    """A violation that no client of the gateway can commit, and why; attributes as in Violation."""

    request: Request
    field: str
    values: dict[str, Any]
    reason: str

    def __str__(self) -> str:
        return f"{self.request}-{self.field}"


NO_PROMPT_BUT_CHAT = "the gateway's prompts are conversations"
NO_COUNTING = "chat requests do not count tokens"
NO_WRITING = "chat requests have no tokens written"
NO_CHECKING = "chat requests are told by Generate, too"
NO_PLANNING = "chat requests have their images encoded"
CALL = {"name": "f", "arguments": "{}"}
WRONG_TOOLS = {
    "chat.tools": tools(129),
    "chat.tools[0].name": tools(name=""),
    "chat.tools[0].parameters": tools(parameters="{"),
}
DIGESTS_ARE_OURS = "the gateway computes the digests itself"
# Refused by a service, but never sent by the gateway.
OWN_VIOLATIONS: list[OwnViolation] = [
    OwnViolation(
        "GenerateStart", "request_id", {"request_id": "x" * 129}, "the id goes by metadata"
    ),
    OwnViolation("GenerateStart", "text", {"text": LONG_TEXT}, NO_PROMPT_BUT_CHAT),
    OwnViolation(
        "GenerateStart", "token_ids.ids[1]", {"token_ids": {"ids": [1, -1]}}, NO_PROMPT_BUT_CHAT
    ),
    OwnViolation("GenerateStart", "prompt", {"images": []}, NO_PROMPT_BUT_CHAT),
    OwnViolation(
        "GenerateStart",
        "images[0].content_sha256",
        chat(turn("ROLE_USER", {"image": {}})) | {"images": [DIGESTS | {"content_sha256": b""}]},
        DIGESTS_ARE_OURS,
    ),
    OwnViolation(
        "GenerateStart",
        "images[0].recipe_sha256",
        chat(turn("ROLE_USER", {"image": {}})) | {"images": [DIGESTS | {"recipe_sha256": b"r"}]},
        DIGESTS_ARE_OURS,
    ),
    OwnViolation(
        "GenerateStart",
        "chat.messages[0].parts[1]",
        chat(turn("ROLE_USER", {"text": "Hi"}, {})),
        "the gateway sends no part that is neither a text nor an image",
    ),
    OwnViolation(
        "GenerateStart",
        "chat.messages[0].role",
        chat(turn("ROLE_UNSPECIFIED", {"text": "Hi"})),
        "the gateway refuses other roles itself",
    ),
    OwnViolation(
        "GenerateStart",
        "chat.messages[0].tool_calls",
        chat(turn("ROLE_USER", {"text": "Hi"}) | {"tool_calls": [CALL]}),
        "the gateway sends the calls of the assistant alone",
    ),
    OwnViolation(
        "GenerateStart",
        "chat.ending",
        {"chat": {**HI["chat"], "ending": 9}},
        "the gateway knows the endings",
    ),
    OwnViolation(
        "GenerateStart",
        "logprobs.prompt",
        chat(turn("ROLE_USER", {"image": {}}))
        | {"images": [DIGESTS], "logprobs": {"prompt": True}},
        "the gateway asks for them of prompts without images alone",
    ),
    OwnViolation(
        "GenerateStart", "guided", HI | {"guided": {}}, "the gateway sends no guide that is unset"
    ),
    OwnViolation(
        "GenerateStart",
        "guided.tool_calls.choice",
        calling(tools(), choice=9),
        "the gateway knows the choices",
    ),
    OwnViolation(
        "GenerateStart",
        "guided.tool_calls.names[0]",
        calling(tools(), names=["g"]),
        "the gateway refuses other names itself",
    ),
    OwnViolation(
        "EncodeImageRequest",
        "expected_recipe_sha256",
        {"image": NO_IMAGE, "expected_recipe_sha256": bytes(32)},
        "the gateway takes it from the service, and asks again when it has changed",
    ),
    OwnViolation(
        "EncodeImageRequest",
        "max_queue_seconds",
        {"image": NO_IMAGE, "max_queue_seconds": -1},
        "the gateway takes it from an option, and refuses to start with such a one",
    ),
    OwnViolation(
        "GenerateStart",
        "max_queue_seconds",
        HI | {"max_queue_seconds": math.nan},
        "the gateway takes it from an option, and refuses to start with such a one",
    ),
    *(
        OwnViolation(
            "GenerateStart",
            f"expected_checkpoint.{part}",
            HI | {"expected_checkpoint": {part: b"another"}},
            "the gateway takes it from the service, and asks again when it has changed",
        )
        for part in PART_NAMES
    ),
    OwnViolation("CountTokensRequest", "prompt", {}, NO_COUNTING),
    OwnViolation("CountTokensRequest", "chat.messages", chat(), NO_COUNTING),
    OwnViolation(
        "CountTokensRequest",
        "chat.messages[0].role",
        chat(turn("ROLE_UNSPECIFIED", {"text": "Hi"})),
        NO_COUNTING,
    ),
    OwnViolation(
        "CountTokensRequest",
        "chat.messages[0].tool_calls",
        chat(turn("ROLE_USER", {"text": "Hi"}) | {"tool_calls": [CALL]}),
        NO_COUNTING,
    ),
    OwnViolation(
        "CountTokensRequest",
        "chat.ending",
        {"chat": {**HI["chat"], "ending": 9}},
        NO_COUNTING,
    ),
    OwnViolation(
        "CountTokensRequest",
        "chat.messages[0].parts",
        chat(turn("ROLE_USER", {"image": {}}, {"text": "<image><image>"})),
        NO_COUNTING,
    ),
    OwnViolation(
        "CountTokensRequest", "chat.messages[0].parts[0]", chat(turn("ROLE_USER", {})), NO_COUNTING
    ),
    OwnViolation("CountTokensRequest", "text", {"text": LONG_TEXT}, NO_COUNTING),
    OwnViolation(
        "CountTokensRequest", "token_ids.ids[1]", {"token_ids": {"ids": [1, 99999]}}, NO_COUNTING
    ),
    OwnViolation(
        "CountTokensRequest",
        "image_row_counts",
        {"text": "Hi", "image_row_counts": [1]},
        NO_COUNTING,
    ),
    OwnViolation(
        "CountTokensRequest",
        "image_row_counts[0]",
        {"text": "<image>", "image_row_counts": [0]},
        NO_COUNTING,
    ),
    OwnViolation(
        "CountTokensRequest",
        "return_tokens",
        {"token_ids": {"ids": [1] * 131_073}, "return_tokens": True},
        NO_COUNTING,
    ),
    OwnViolation(
        "DetokenizeRequest", "token_ids.ids", {"token_ids": {"ids": [1] * 32_769}}, NO_WRITING
    ),
    OwnViolation(
        "DetokenizeRequest", "token_ids.ids[1]", {"token_ids": {"ids": [1, 99999]}}, NO_WRITING
    ),
    *(
        OwnViolation(
            "CountTokensRequest", field, {"chat": {**HI["chat"], "tools": definitions}}, NO_COUNTING
        )
        for field, definitions in WRONG_TOOLS.items()
    ),
    OwnViolation("CheckGuideRequest", "guided", {"guided": {}}, NO_CHECKING),
    OwnViolation(
        "CheckGuideRequest",
        "guided.tool_calls.choice",
        {"guided": {"tool_calls": {"choice": 0}}, "tools": tools()},
        NO_CHECKING,
    ),
    OwnViolation(
        "CheckGuideRequest",
        "guided.tool_calls.names[0]",
        {"guided": {"tool_calls": {"choice": 1, "names": ["g"]}}, "tools": tools()},
        NO_CHECKING,
    ),
    *(
        OwnViolation(
            "CheckGuideRequest",
            field,
            {"guided": {"tool_calls": {"choice": 1}}, "tools": definitions},
            NO_CHECKING,
        )
        for field, definitions in WRONG_TOOLS.items()
    ),
    *(
        OwnViolation("CheckGuideRequest", f"guided.{kind}", {"guided": {kind: source}}, NO_CHECKING)
        for kind, source in {
            "json_schema": json.dumps(SCHEMA),
            "regex": "((",
            "grammar": OPEN_GRAMMAR,
        }.items()
    ),
    OwnViolation("PlanTilesRequest", "image", {"image": NO_IMAGE}, NO_PLANNING),
    OwnViolation(
        "PlanTilesRequest", "image_width", {"image_width": 0, "image_height": 5}, NO_PLANNING
    ),
    OwnViolation(
        "PlanTilesRequest", "image_height", {"image_width": 5, "image_height": 0}, NO_PLANNING
    ),
    OwnViolation(
        "PlanTilesRequest", "max_tile_count", {"image": NO_IMAGE, "max_tile_count": 99}, NO_PLANNING
    ),
    OwnViolation(
        "PlanTilesRequest",
        "expected_recipe_sha256",
        {"image": NO_IMAGE, "expected_recipe_sha256": bytes(32)},
        NO_PLANNING,
    ),
]


@dataclass(frozen=True)
class NeverWrong:
    """A field of GenerateStart whose every value the service takes, if the gateway sends it.

    The gateway's answer is checked with a scripted service that refuses it nevertheless.
    """

    field: str
    body: dict[str, Any]
    param: str
    reason: str

    def __str__(self) -> str:
        return self.field


CALLING = {
    "messages": [
        {"role": "assistant", "tool_calls": [{"function": CALL}]},
        {"role": "tool", "content": "sunny"},
    ]
}
TWO_PARTS = user([picture(b"a"), {"type": "text", "text": "?"}])
NEVER_WRONG = [
    NeverWrong(
        "chat.messages[0].parts[1].text",
        TWO_PARTS,
        "messages[0].content[1].text",
        "any string is a text; what the texts come to is the conversation's matter",
    ),
    NeverWrong(
        "chat.messages[0].parts[0].image",
        TWO_PARTS,
        "messages[0].content[0].image_url",
        "it holds nothing",
    ),
    NeverWrong(
        "images[0].content_sha256", TWO_PARTS, "messages[0].content[0].image_url", DIGESTS_ARE_OURS
    ),
    NeverWrong(
        "chat.messages[0].tool_calls[0].name",
        CALLING,
        "messages[0].tool_calls[0].function.name",
        "any string is laid out",
    ),
    NeverWrong(
        "chat.messages[0].tool_calls[0].arguments",
        CALLING,
        "messages[0].tool_calls[0].function.arguments",
        "any string is laid out",
    ),
    NeverWrong(
        "chat.tools[0].description",
        functions(description="g"),
        "tools[0].function.description",
        "any string is laid out",
    ),
    NeverWrong(
        "chat.tools[0].strict", functions(strict=False), "tools[0].function.strict", "yes or no"
    ),
    NeverWrong("guided.tool_calls.single", functions(), "tools", "yes or no"),
    NeverWrong(
        "sampling.seed",
        {"seed": -1},
        "seed",
        "any number of 64 bits is a seed, and the gateway refuses others itself",
    ),
    NeverWrong("stop.ignore_end_tokens", {"ignore_eos": True}, "ignore_eos", "yes or no"),
    NeverWrong(
        "skip_special_tokens", {"skip_special_tokens": False}, "skip_special_tokens", "yes or no"
    ),
]
# Of CountTokensRequest; as in NEVER_WRONG.
NEVER_WRONG_TO_COUNT = {
    "chat.messages[].parts[].text",
    "chat.messages[].parts[].image",
    "chat.messages[].tool_calls[].name",
    "chat.messages[].tool_calls[].arguments",
    "omit_beginning_token",
    "chat.tools[].description",
    "chat.tools[].strict",
}
# Of CheckGuideRequest: any object can be written; as in NEVER_WRONG.
NEVER_WRONG_TO_CHECK = {
    "guided.json_object",
    "guided.tool_calls.single",
    "tools[].description",
    "tools[].strict",
}
# Of EncodeImageRequest: the index is said back, and memory that is not seen is not used.
NEVER_WRONG_TO_ENCODE = {"image_index", "shared_memory.file", "shared_memory.nonce"}


class Services:
    """Both real services over a tiny checkpoint, and the gateway before them."""

    def __init__(
        self, vision: grpc.aio.Channel, llm: grpc.aio.Channel, http: aiohttp.ClientSession
    ) -> None:
        self._vision = vision_pb2_grpc.VisionServiceStub(vision)
        self._llm = llm_pb2_grpc.LLMServiceStub(llm)
        self._http = http

    async def refusal(self, case: Violation | OwnViolation) -> ServiceError:
        """Returns what a gRPC client of the service is told."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self._call(case.request, case.values)
        return from_rpc_error(caught.value)

    async def _call(self, request: Request, values: dict[str, Any]) -> None:
        match request:
            case "GenerateStart":
                prompted = values.keys() & {"chat", "text", "token_ids", "images"}
                start = llm_pb2.GenerateStart(**(values if prompted else HI | values))
                async for _ in self._llm.Generate(iter([llm_pb2.GenerateRequest(start=start)])):
                    pass
            case "EncodeImageRequest":
                async for _ in self._vision.EncodeImage(vision_pb2.EncodeImageRequest(**values)):
                    pass
            case "PlanTilesRequest":
                await self._vision.PlanTiles(vision_pb2.PlanTilesRequest(**values))
            case "CountTokensRequest":
                await self._llm.CountTokens(llm_pb2.CountTokensRequest(**values))
            case "DetokenizeRequest":
                await self._llm.Detokenize(llm_pb2.DetokenizeRequest(**values))
            case "CheckGuideRequest":
                await self._llm.CheckGuide(llm_pb2.CheckGuideRequest(**values))

    async def chat(self, body: dict[str, Any]) -> tuple[int, Any]:
        """Returns status and error of a chat completion."""
        async with self._http.post("/v1/chat/completions", json=chat_body(**body)) as response:
            return response.status, (await response.json()).get("error")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def services(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Services]:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_random_checkpoint(folder)
    async with AsyncExitStack() as exits:
        vision = await exits.enter_async_context(running_vision(VisionSettings(checkpoint=folder)))
        llm = await exits.enter_async_context(running_llm(_llm_settings(folder)))
        settings = GatewaySettings(port=0, drain_seconds=0, vision_address=vision, llm_address=llm)
        port = await exits.enter_async_context(running_gateway(settings))
        yield Services(
            await exits.enter_async_context(grpc.aio.insecure_channel(vision)),
            await exits.enter_async_context(grpc.aio.insecure_channel(llm)),
            await exits.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{port}")),
        )


def _llm_settings(checkpoint: Path) -> LLMSettings:
    return LLMSettings(
        checkpoint=checkpoint,
        served_model_name=MODEL,
        max_image_count=1,
        kv_cache_byte_count=64 * MIB,
    )


def fields_of(descriptor: Any, above: str = "") -> Iterator[str]:
    """Yields the path of every field, e.g. "sampling.logit_bias[].bias".

    A message is violated in its fields; a repeated one also in its number.
    """
    for field in descriptor.fields:
        path = above + field.name + ("[]" if field.is_repeated else "")
        inner = field.message_type.fields if field.message_type else ()
        if field.is_repeated or not inner:
            yield path
        if inner:
            yield from fields_of(field.message_type, f"{path}.")


def walked(fields: Iterable[str], known: set[str]) -> set[str]:
    """Returns the fields of a walk that error paths name: "stop.strings" is "stop.strings[]".

    A path may lead on into the schema that a field holds as text. Tools are called as in a chat's
    prompt, also where they stand beside a guide.
    """
    paths = {re.sub(r"\[\d+\]", "[]", field) for field in fields}
    paths = {re.sub(r"(\.json_schema|\.parameters)\..*", r"\1", path) for path in paths}
    if "tools[]" in known:
        paths = {path.removeprefix("chat.") for path in paths}
    return {f"{path}[]" if f"{path}[]" in known else path for path in paths} & known


@pytest.mark.parametrize("request_name", DESCRIPTORS)
async def test_every_field_has_a_case(request_name: Request) -> None:
    known = set(fields_of(DESCRIPTORS[request_name]))
    cases: list[Violation | OwnViolation] = [*VIOLATIONS, *OWN_VIOLATIONS]
    cases = [case for case in cases if case.request == request_name]
    named = walked((case.field for case in cases), known)
    if request_name == "GenerateStart":
        named |= walked((case.field for case in NEVER_WRONG), known)
    if request_name == "CountTokensRequest":
        named |= NEVER_WRONG_TO_COUNT
    if request_name == "CheckGuideRequest":
        named |= NEVER_WRONG_TO_CHECK
    if request_name == "EncodeImageRequest":
        named |= NEVER_WRONG_TO_ENCODE
    assert named == known


def speaks_in_words(sentence: str) -> bool:
    """Whether a sentence holds no path, and no name that is not a word."""
    return not re.search(r"[A-Za-z]\w*[_.\[]\w", sentence)


def written(body: dict[str, Any], param: str) -> bool:
    """Whether a JSON path leads to something in a body."""
    node: Any = body
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", param):
        try:
            node = node[int(index)] if index else node[name]
        except (LookupError, TypeError):
            return False
    return True


@pytest.mark.parametrize("case", VIOLATIONS, ids=str)
async def test_a_client_reads_the_services_sentence_and_its_own_path(
    services: Services, case: Violation
) -> None:
    refusal = await services.refusal(case)
    status, error = await services.chat(case.body)
    assert (error["message"], error["param"]) == (refusal.message, case.param)
    assert written(case.body, case.param)
    assert status == http_status(refusal) == 400
    assert refusal.field == case.field
    assert speaks_in_words(refusal.message), refusal.message


@pytest.mark.parametrize("case", OWN_VIOLATIONS, ids=str)
async def test_what_no_client_can_send_is_refused_by_its_field(
    services: Services, case: OwnViolation
) -> None:
    refusal = await services.refusal(case)
    assert refusal.field == case.field
    assert speaks_in_words(refusal.message), refusal.message


@pytest.mark.parametrize("case", NEVER_WRONG, ids=str)
async def test_a_refusal_that_never_comes_would_name_the_clients_path(case: NeverWrong) -> None:
    refusal = InvalidArgumentError("a sentence", field=case.field)
    async with stack(llm=ScriptedLLM(failures=[refusal])) as gateway:
        _, answer = await gateway.chat(**case.body)
    assert (answer["error"]["message"], answer["error"]["param"]) == ("a sentence", case.param)
    assert written(case.body, case.param)


async def test_a_fault_within_a_schema_is_told_with_its_place(services: Services) -> None:
    schema = {"properties": {"sizes": {"anyOf": [{"type": "null"}, {"uniqueItems": True}]}}}
    body = {"response_format": SCHEMA_FORMAT | {"json_schema": {"name": "x", "schema": schema}}}
    status, error = await services.chat(body)
    place = "response_format.json_schema.schema.properties.sizes.anyOf[1].uniqueItems"
    assert (status, error["param"]) == (400, place)
    assert written(body, place)
    assert speaks_in_words(error["message"])
    assert "'uniqueItems' cannot be enforced; leave it out" in error["message"]


async def test_a_sentence_about_images_reaches_the_client_as_one_about_images(
    services: Services,
) -> None:
    """Once, the contract's name was replaced in it: "the request has 2 messages"."""
    _, error = await services.chat(user([picture(b"a"), picture(b"b")]))
    assert error["param"] == "messages"
    assert "2 images" in error["message"]
    assert "message" not in error["message"]


@pytest.mark.parametrize(
    ("guide", "param"),
    [
        ({"guided_regex": "(("}, "guided_regex"),
        (functions(name="f" * 129), "tools[0].function.name"),
        (
            functions(strict=True, parameters={"properties": {"a": {"uniqueItems": True}}}),
            "tools[0].function.parameters.properties.a.uniqueItems",
        ),
    ],
    ids=str,
)
async def test_what_an_answer_cannot_be_held_to_is_refused_before_its_picture(
    services: Services, guide: dict[str, Any], param: str
) -> None:
    nowhere = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}}
    status, error = await services.chat(user([nowhere]) | guide)
    assert (status, error["param"]) == (400, param), error
    _, error = await services.chat(user([nowhere]) | {"guided_regex": "a"})
    assert error["param"] == "messages[0].content[0].image_url.url"  # it would have been fetched
