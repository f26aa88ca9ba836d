"""OpenAI's chat requests: what they may hold, and how a malformed one is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gateway.openai.json_limits import read_json
from gateway.openai.known_fields import TOP_LEVEL, Section
from gateway.openai.options import GenerationOptions, validated
from gateway.openai.refusals import shown_kind
from gateway.openai.request_model import (
    MAX_ENTRY_COUNT,
    Int32,
    Limit,
    RequestModel,
    Whole,
    json_text,
)
from gateway.openai.tools import (
    ChoiceOrWord,
    Functions,
    OlderChoice,
    Tools,
    without_barred_tools,
)
from gateway.tools import ToolChoice

# Bounds against abuse, as MAX_ENTRY_COUNT.
MAX_MESSAGE_COUNT = 4096
# Whose messages may have images.
SHOWING_ROLES = frozenset({"user", "tool", "function"})
# Whose messages may have no content: calls of tools, and what a tool returned.
SPEECHLESS_ROLES = frozenset({"assistant", "tool", "function"})


def _as_parts(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if value is None and info.data.get("role") in SPEECHLESS_ROLES:
        return []
    if not isinstance(value, list):
        message = "a message's content is {shown}; it must be a string or a list of parts"
        raise PydanticCustomError("content_type", message, {"shown": shown_kind(value)})
    return [_as_part(part) for part in value]


def _as_part(value: object) -> object:
    """Writes out the short forms of a part: a string, and a refusal of an assistant's."""
    if isinstance(value, str):
        return {"type": "text", "text": value}
    if isinstance(value, dict) and value.get("type") == "refusal" and "refusal" in value:
        return {"type": "text", "text": value["refusal"]}
    return value


def _as_image(value: object) -> object:
    if isinstance(value, str):
        return BareURL(url=value)
    if value is None or isinstance(value, dict):
        return value
    message = "an image is {shown}; it must be a URL or an object with one"
    raise PydanticCustomError("image_type", message, {"shown": shown_kind(value)})


def _as_arguments(value: object) -> object:
    if value is None:
        return ""
    return json_text(value) if isinstance(value, dict | list) else value


class ImageURL(RequestModel):
    """Where an image is, and how finely it is looked at.

    Attributes:
        url: data:, file:// or http(s)://.
        detail: low is one tile, high and original are as many as the vision service allows.
        max_dynamic_patch: tile cap without the thumbnail; goes before `detail`.
    """

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None
    max_dynamic_patch: Annotated[int, Field(ge=1, lt=2**31), Whole] | None = None


class BareURL(ImageURL):
    """An image that the client wrote as its URL alone."""


class ContentPart(RequestModel):
    """A piece of a message: its type, and the one field that the type names.

    What a model has thought, in a history of another server's, has a type and is not read.
    """

    type: Literal["text", "image_url", "thinking", "redacted_thinking", "reasoning"]
    text: str | None = None
    image_url: Annotated[
        ImageURL | None,
        BeforeValidator(_as_image, json_schema_input_type=ImageURL | str | None),
    ] = None

    @property
    def is_read(self) -> bool:
        """Whether it is a text or an image."""
        return self.type in ("text", "image_url")

    @property
    def image(self) -> ImageURL | None:
        """The image, if it is one."""
        return self.image_url if self.type == "image_url" else None

    @model_validator(mode="after")
    def _has_its_field(self) -> ContentPart:
        if not self.is_read:
            return self
        if getattr(self, self.type) is None:
            message = (
                "a text part has no text" if self.type == "text" else "an image part has no image"
            )
            raise PydanticCustomError("no_field", message, {"field": self.type})
        other = "image_url" if self.type == "text" else "text"
        if getattr(self, other) is not None:
            message = "a part has a text and an image; it must have what its type says"
            raise PydanticCustomError("other_type", message, {"field": other})
        return self


class FunctionCall(RequestModel):
    """A call of a function, as the assistant made it.

    Attributes:
        arguments: as it wrote them; an object, as some clients send it, has become JSON text.
    """

    name: str
    arguments: Annotated[
        str,
        BeforeValidator(
            _as_arguments, json_schema_input_type=str | dict[str, Any] | list[Any] | None
        ),
    ] = ""


class ToolCall(RequestModel):
    """A call of a tool."""

    function: FunctionCall


class Message(RequestModel):
    """One message of the conversation; a string as content has become one text part."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[
        list[ContentPart],
        Field(fail_fast=True, max_length=MAX_ENTRY_COUNT),
        BeforeValidator(_as_parts, json_schema_input_type=str | list[ContentPart | str] | None),
    ] = []
    tool_calls: (
        Annotated[list[ToolCall], Field(fail_fast=True, max_length=MAX_ENTRY_COUNT)] | None
    ) = None
    function_call: FunctionCall | None = None

    @property
    def calls(self) -> list[FunctionCall]:
        """The calls that an assistant's message makes; the older form is the last."""
        if self.role != "assistant":
            return []
        calls = [call.function for call in self.tool_calls or ()]
        return calls if self.function_call is None else [*calls, self.function_call]

    @model_validator(mode="after")
    def _has_content(self) -> Message:
        if self.role not in SPEECHLESS_ROLES and "content" not in self.model_fields_set:
            message = "a message's content is missing"
            raise PydanticCustomError("no_field", message, {"field": "content"})
        count = sum(part.image is not None for part in self.content)
        if count and self.role not in SHOWING_ROLES:  # what the LLM service says, before a fetch
            message = (
                "a message of the {role} has {count} images; only a user's may have any:"
                " show them in one"
            )
            context = {"field": "content", "role": self.role, "count": count}
            raise PydanticCustomError("image_role", message, context)
        return self


@dataclass(frozen=True)
class ImageReference:
    """An image of a request, and the JSON path of its URL object."""

    param: str
    source: ImageURL

    def param_of(self, name: str) -> str:
        """Returns the JSON path of a field of the object; a URL alone stands for itself."""
        return self.param if isinstance(self.source, BareURL) else f"{self.param}.{name}"


class ChatCompletionRequest(GenerationOptions):
    """The body of POST /v1/chat/completions. An unset field takes the LLM service's default."""

    messages: Annotated[list[Message], Field(fail_fast=True, max_length=MAX_MESSAGE_COUNT)]
    max_completion_tokens: Limit | None = None
    logprobs: bool | None = None
    top_logprobs: Int32 | None = None
    tools: Tools | None = None
    tool_choice: ChoiceOrWord = None
    parallel_tool_calls: bool | None = None
    functions: Functions | None = None
    function_call: OlderChoice = None

    # Not OpenAI's; named as vLLM names them.
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ChatCompletionRequest:
        limits = (self.max_tokens, self.max_completion_tokens)
        if None not in limits and limits[0] != limits[1]:
            message = "the output limit is given twice, as {old} and as {new} tokens"
            context = {"field": "max_tokens", "old": limits[0], "new": limits[1]}
            raise PydanticCustomError("max_tokens", message, context)
        if self.top_logprobs and not self.logprobs:
            message = "{count} alternatives are asked for, but no log probabilities"
            context = {"field": "top_logprobs", "count": self.top_logprobs}
            raise PydanticCustomError("top_logprobs", message, context)
        return self

    @model_validator(mode="after")
    def _has_what_it_calls(self) -> ChatCompletionRequest:
        if self.tools and self.functions:
            message = "tools are given twice; functions are the older name of them"
            raise PydanticCustomError("two_tools", message, {"field": "functions"})
        if self.tool_choice:
            names = {tool.function.name for tool in self.tools or ()}
            self.tool_choice.of_tools.check(names)
        if self.function_call:
            names = {function.name for function in self.functions or ()}
            self.function_call.check(names, field="function_call")
        return self

    @model_validator(mode="after")
    def _ends_one_way(self) -> ChatCompletionRequest:
        if not self.continue_final_message:
            return self
        context = {"field": "continue_final_message"}
        if self.add_generation_prompt:
            message = "the last message cannot both go on and be followed by a new turn"
            raise PydanticCustomError("two_endings", message, context)
        if self.messages and self.messages[-1].role != "assistant":
            message = "the last message is one of the {role}; only the assistant's can go on"
            context["role"] = self.messages[-1].role
            raise PydanticCustomError("ending_role", message, context)
        return self

    @property
    def choice_of_tools(self) -> ToolChoice | None:
        """Which of the tools may be called; None where there are none."""
        if not self.tools:
            return None
        choice = self.tool_choice.of_tools if self.tool_choice else ToolChoice()
        return replace(choice, single=choice.single or self.parallel_tool_calls is False)

    @property
    def choice_of_functions(self) -> ToolChoice | None:
        """The same of functions: an answer in the older form holds one call."""
        return (self.function_call or ToolChoice(single=True)) if self.functions else None

    def images(self) -> Iterator[ImageReference]:
        """Yields the images in their order."""
        for i, message in enumerate(self.messages):
            for j, part in enumerate(message.content):
                if part.image is not None:
                    param = f"messages[{i}].content[{j}].image_url"
                    yield ImageReference(param, part.image)


ChatRequest = TypeVar("ChatRequest", bound=ChatCompletionRequest)


def parse_chat_request(body: bytes, strict_fields: bool = False) -> ChatCompletionRequest:
    """Returns the request that a body holds.

    Args:
        body: JSON.
        strict_fields: refuse unknown fields that ask for something, outside of messages.

    Raises:
        InvalidArgumentError: it is not JSON; a field is missing or malformed, or strictly unknown.
        UnsupportedFieldError: a field asks for something that we do not serve.
    """
    return chat_request(ChatCompletionRequest, read_json(body), TOP_LEVEL, strict_fields)


def chat_request(
    model: type[ChatRequest], document: object, section: Section, strict: bool
) -> ChatRequest:
    """Returns the request that a body's JSON is, as `validated` does."""
    if isinstance(document, dict):
        document = without_barred_tools(document)
    return validated(model, document, section, strict)
