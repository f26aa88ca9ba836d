"""The one table of options: OpenAI's name, the contract's field, and how the value goes over.

A chat request becomes a GenerateStart by it, and the field that a service's error names becomes the
JSON path that the client wrote.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

from gateway.openai.forms import ResponseFormat, regex_of
from gateway.openai.options import SamplingOptions
from gateway.openai.request_model import RequestModel
from gateway.openai.requests import ChatCompletionRequest, ContentPart, FunctionCall, Message
from gateway.openai.tools import FunctionDefinition, ToolDefinition
from gateway.tools import ToolChoice

Entry = TypeVar("Entry")

MAX_INT32 = 2**31 - 1
ROLES = {
    "system": "ROLE_SYSTEM",
    "developer": "ROLE_SYSTEM",
    "user": "ROLE_USER",
    "assistant": "ROLE_ASSISTANT",
    "tool": "ROLE_TOOL",
    "function": "ROLE_TOOL",  # the older name
}


def _same(value: Any) -> Any:
    return value


def _elsewhere(_: Any) -> None:
    """Makes no value: others put it into the message, e.g. the file that a URL leads to."""


@dataclass(frozen=True)
class _Turn:
    """A turn as the contract has it.

    Attributes:
        role: who speaks.
        index: of the message that it begins with.
        parts: what is read of it, each with the indexes of its message and within that.
        calls: of tools.
    """

    role: str
    index: int
    parts: Sequence[tuple[int, int, ContentPart]]
    calls: Sequence[FunctionCall] = ()

    def fields(self) -> dict[str, Any]:
        """Returns the fields of a ChatMessage."""
        turn: dict[str, Any] = {
            "role": self.role,
            "parts": [
                {"text": part.text} if part.image is None else {"image": {}}
                for _, _, part in self.parts
            ],
        }
        if self.calls:
            turn["tool_calls"] = [call.model_dump() for call in self.calls]
        return turn


def _turns_of(messages: Sequence[Message]) -> Iterator[_Turn]:
    """Yields the turns; images that tools returned are shown in the user's, behind the tools'."""
    shown: list[tuple[int, int, ContentPart]] = []
    for index, message in enumerate(messages):
        role = ROLES[message.role]
        read = [(index, place, part) for place, part in enumerate(message.content) if part.is_read]
        if role == "ROLE_TOOL":
            yield _Turn(role, index, [entry for entry in read if entry[2].image is None])
            shown += [entry for entry in read if entry[2].image is not None]
            continue
        yield from _showing(shown)
        shown = []
        yield _Turn(role, index, read, message.calls)
    yield from _showing(shown)


def _showing(images: Sequence[tuple[int, int, ContentPart]]) -> Iterator[_Turn]:
    if images:
        yield _Turn("ROLE_USER", images[0][0], images)


def _turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [turn.fields() for turn in _turns_of(messages)]


def _tools(tools: Sequence[ToolDefinition]) -> list[dict[str, Any]] | None:
    return _functions([tool.function for tool in tools])


def _functions(functions: Sequence[FunctionDefinition]) -> list[dict[str, Any]] | None:
    return [asdict(function.tool) for function in functions] or None


def _biases(biases: dict[str, float]) -> list[dict[str, Any]]:
    return [{"token_id": int(token_id), "bias": bias} for token_id, bias in biases.items()]


def _any_object(response_format: ResponseFormat) -> dict[str, Any] | None:
    return {} if response_format.type == "json_object" else None


def _nonzero(count: int) -> int | None:
    return count or None


def signed(seed: int) -> int:
    """Returns an unsigned 64-bit number as the signed one of the same bits."""
    return seed - 2**64 if seed >= 2**63 else seed


def limit(token_count: int) -> int | None:
    """Returns an output limit as the contract can hold it; -1 is none, as for llama.cpp."""
    return None if token_count == -1 else min(token_count, MAX_INT32)


def none_if_all(top_k: int) -> int | None:
    """Returns a top-k as the contract has it, where none stands for all tokens."""
    return None if top_k in (0, -1) else top_k


def _zero_if(wanted: bool) -> int | None:
    return 0 if wanted else None


def _same_rest(_: object, rest: str) -> str:
    return rest


def nowhere(_: object, rest: str) -> str:
    """Makes no place of one that the client has not written."""
    return ""


def _place_in_tools(_: object, rest: str) -> str:
    """Turns "[1].name" into "[1].function.name"."""
    return re.sub(r"^(\[\d+\])", r"\1.function", rest)


def _index_of_several(request: SamplingOptions, rest: str) -> str:
    """A lone stop string may stand without a list, so that `stop` itself is its path."""
    return rest if len(request.stop or ()) > 1 else ""


def _key_of_bias(request: SamplingOptions, rest: str) -> str:
    """Turns "[1].bias" into ".7", the name of the second entry."""
    key = _entry(rest, list(request.logit_bias or ()))
    return f".{key}" if key else ""


def _place_in_messages(request: ChatCompletionRequest, rest: str) -> str:
    """Turns "[0].parts[1].image" into "[0].content[1].image_url"; a lone text has no part."""
    turn = _entry(rest, list(_turns_of(request.messages)))
    if turn is None:
        return rest
    message = request.messages[turn.index]
    place = re.sub(r"^\[\d+\]", f"[{turn.index}]", rest)
    place = re.sub(r"\.tool_calls\[(\d+)\]", partial(_place_of_call, message), place)
    place = re.sub(r"^\[\d+\]\.parts\[(\d+)\]", partial(_place_of_part, turn), place)
    place = place.replace(".parts", ".content").replace(".image", ".image_url")
    if len(message.content) == 1 and place.endswith(".text"):
        return place.removesuffix("[0].text")
    return place


def _place_of_call(message: Message, path: re.Match[str]) -> str:
    """Returns where a call is; the one after the list's last is in the older form."""
    in_list = int(path[1]) < len(message.tool_calls or ())
    return f"{path[0]}.function" if in_list else ".function_call"


def _place_of_part(turn: _Turn, path: re.Match[str]) -> str:
    """Returns where the part is, whose index counts only those that are read."""
    if int(path[1]) >= len(turn.parts):
        return path[0]
    message_index, index, _ = turn.parts[int(path[1])]
    return f"[{message_index}].content[{index}]"


def _place_of_image(request: ChatCompletionRequest, rest: str) -> str:
    """Turns "[1]" into the place of the second image in the messages."""
    image = _entry(rest, list(request.images()))
    return image.param.removeprefix("messages") if image else ""


def _entry(rest: str, entries: Sequence[Entry]) -> Entry | None:
    """Returns the entry whose index a path begins with, e.g. the second of "[1].bias"."""
    index = re.match(r"\[(\d+)\]", rest)
    return entries[int(index[1])] if index and int(index[1]) < len(entries) else None


@dataclass(frozen=True)
class Option:
    """A field of a service's request, and what it is made from.

    Attributes:
        field: its path in the contract.
        param: path in the JSON that the client writes.
        value: makes the field's value of the JSON's; None leaves the field unset.
        rest: makes the rest of the JSON path of the rest of the contract's, behind `field`.
        source: what the value is made of, where that is more than what stands at `param`.
    """

    field: str
    param: str
    value: Callable[[Any], Any] = _same
    rest: Callable[[Any, str], str] = _same_rest
    source: str = ""

    def read(self, request: RequestModel) -> Any:
        """Returns the field's value; None where the request does not set it."""
        value = request.at(self.source or self.param)
        return None if value is None else self.value(value)

    def holds(self, field: str) -> bool:
        """Whether a path in the contract is this field's, or leads into it."""
        return re.fullmatch(re.escape(self.field) + r"([.\[].*)?", field) is not None


class Options:
    """The rows of one request message. Of several for one field the first that is set counts."""

    def __init__(self, *options: Option) -> None:
        self._options = options

    def values(self, request: RequestModel) -> dict[str, Any]:
        """Returns the values that a request sets, by their fields."""
        values: dict[str, Any] = {}
        for option in self._options:
            if (value := option.read(request)) is not None:
                values.setdefault(option.field, value)
        return values

    def param_of(self, request: RequestModel, field: str) -> str:
        """Returns the JSON path of what a field was made from; empty: the client has no part in it.

        A field that the request does not set is called as a client would set it.
        """
        options = [option for option in self._options if option.holds(field)]
        written = [option for option in options if option.read(request) is not None]
        for option in written or options:
            return option.param + option.rest(request, field.removeprefix(option.field))
        return ""


# GenerateStart, of SamplingOptions.
SAMPLING = (
    Option("sampling.temperature", "temperature"),
    Option("sampling.top_p", "top_p"),
    Option("sampling.top_k", "top_k", none_if_all),
    Option("sampling.min_p", "min_p"),
    Option("sampling.seed", "seed", signed),
    Option("sampling.repetition_penalty", "repetition_penalty"),
    Option("sampling.presence_penalty", "presence_penalty"),
    Option("sampling.frequency_penalty", "frequency_penalty"),
    Option("sampling.logit_bias", "logit_bias", _biases, _key_of_bias),
    Option("stop.min_token_count", "min_tokens"),
    Option("stop.strings", "stop", rest=_index_of_several),
    Option("stop.token_ids", "stop_token_ids"),
    Option("stop.ignore_end_tokens", "ignore_eos"),
    # vLLM's priority, whose name it has, is the other way round: the lowest comes first.
    Option("priority", "priority", operator.neg),
    Option("cache_salt", "cache_salt"),
    Option("skip_special_tokens", "skip_special_tokens"),
)
# Likewise, of GenerationOptions.
GENERATION = (
    *SAMPLING,
    Option("stop.max_token_count", "max_tokens", limit),
    Option("guided.json_object", "response_format", _any_object),
    Option("guided.json_object", "structured_outputs.json_object", {True: {}}.get),
    Option("guided.json_schema", "response_format.json_schema.schema"),
    Option("guided.json_schema", "structured_outputs.json"),
    Option("guided.json_schema", "guided_json"),
    Option("guided.regex", "structured_outputs.regex"),
    Option("guided.regex", "structured_outputs.choice", regex_of),
    Option("guided.regex", "guided_regex"),
    Option("guided.regex", "guided_choice", regex_of),
    Option("guided.grammar", "structured_outputs.grammar"),
    Option("guided.grammar", "guided_grammar"),
    Option("choice_count", "n"),
)
# Likewise, of a ChatCompletionRequest.
CHAT = Options(
    Option("chat.messages", "messages", _turns, _place_in_messages),
    Option("chat.ending", "continue_final_message", {True: "CHAT_ENDING_CONTINUED"}.get),
    Option(
        "chat.ending",
        "add_generation_prompt",
        {True: "CHAT_ENDING_NEW_TURN", False: "CHAT_ENDING_CLOSED"}.get,
    ),
    Option("chat.ending", "continue_final_message", {False: "CHAT_ENDING_NEW_TURN"}.get),
    Option("chat.tools", "tools", _tools, _place_in_tools),
    Option("chat.tools", "functions", _functions),
    Option("images", "messages", _elsewhere, _place_of_image),
    Option("stop.max_token_count", "max_completion_tokens", limit),
    Option("logprobs.top_count", "top_logprobs", _nonzero),
    Option("logprobs.top_count", "logprobs", _zero_if),
    *GENERATION,
    Option("guided.tool_calls", "tools", ToolChoice.guide, nowhere, source="choice_of_tools"),
    Option(
        "guided.tool_calls", "functions", ToolChoice.guide, nowhere, source="choice_of_functions"
    ),
)


def image_options(max_tile_count: int) -> Options:
    """Returns the rows of EncodeImageRequest, of an ImageURL, by the service's largest tile cap."""
    caps = {"low": 1, "high": max_tile_count, "original": max_tile_count}
    return Options(
        Option("image", "url", _elsewhere),
        Option("max_tile_count", "max_dynamic_patch"),
        Option("max_tile_count", "detail", caps.get),
    )
