"""An LLM service that always answers well, behind the real gateway: what fails here is the dialect.

`python -m tests.clients.perfect NAME ...` serves it under these names, and prints its base URL.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence

from protos.internvl.v1 import llm_pb2
from protos.process import logs
from tests.clients.examples import Examples
from tests.fakes import ScriptedLLM, stack

PIECE_LENGTH = 7
PICTURE = "A panda, a tree and a red square."
GREETING = "Hello! How can I help?"
TAGGED = re.compile(r"<(\w+)[^>]*>.*?</\1>", re.DOTALL)
# smolagents' agent that writes code has the model end its work so.
CODE = 'Thought: I know it.\n<code>\nfinal_answer("{}")\n</code>'


class PerfectLLM(ScriptedLLM):
    """Calls the tool that it is asked for, fills in any schema, and says what tools told it."""

    async def _answer(
        self, start: llm_pb2.GenerateStart
    ) -> AsyncGenerator[llm_pb2.GenerateResponse, None]:
        if tool := _tool(start):
            arguments = Examples(_question(start.chat)).of_schema(tool.parameters)
            reply = ScriptedLLM(texts=(), calls=[(tool.name, _pieces(arguments))])
        else:
            reply = ScriptedLLM(texts=_pieces(_text(start)), prompt=self.prompt)
        async for response in reply._answer(start):
            yield response


def _tool(start: llm_pb2.GenerateStart) -> llm_pb2.ToolDefinition | None:
    """Returns the tool that the last message asks for, by the words of its name."""
    if not start.guided.HasField("tool_calls"):
        return None
    guide = start.guided.tool_calls
    tools = [tool for tool in start.chat.tools if not guide.names or tool.name in guide.names]
    must_call = guide.choice == llm_pb2.TOOL_CHOICE_REQUIRED
    if _is_answered(start.chat):
        return next((tool for tool in tools if "final" in tool.name), None) if must_call else None
    words = set(re.findall("[a-z]+", _question(start.chat).lower()))
    matches = [len(words.intersection(_name_words(tool.name))) for tool in tools]
    best = max(matches)
    return tools[matches.index(best)] if best or must_call else None


def _is_answered(chat: llm_pb2.ChatPrompt) -> bool:
    """Says whether the last message is a tool's; smolagents writes them as the user's."""
    last = chat.messages[-1]
    return last.role == llm_pb2.ROLE_TOOL or _text_of(last).startswith("Observation:")


def _name_words(name: str) -> Iterator[str]:
    return (word.lower() for word in re.findall("[A-Z]?[a-z]+", name))


def _text(start: llm_pb2.GenerateStart) -> str:
    question = _question(start.chat) or start.text
    if start.guided.json_schema:
        return Examples(question).of_schema(start.guided.json_schema)
    if start.guided.HasField("json_object"):
        return json.dumps(dict.fromkeys(re.findall(r"'(\w+)'", question), "A cat."))
    if any("<code>" in part.text for message in start.chat.messages for part in message.parts):
        return CODE.format(PICTURE)
    if start.chat.messages and _is_answered(start.chat):
        return f"I was told: {question}"
    return PICTURE if start.images else GREETING


def _question(chat: llm_pb2.ChatPrompt) -> str:
    return _text_of(chat.messages[-1]) if chat.messages else ""


def _text_of(message: llm_pb2.ChatMessage) -> str:
    """Returns what a person or a tool says, without what a client adds to it in tags."""
    return TAGGED.sub("", "\n".join(part.text for part in message.parts))


def _pieces(text: str) -> Sequence[str]:
    return [text[start : start + PIECE_LENGTH] for start in range(0, len(text), PIECE_LENGTH)]


async def serve(names: Sequence[str]) -> None:
    """Serves until this process is ended."""
    logs.configure("info", "json")
    model, *aliases = names
    async with stack(llm=PerfectLLM(model=model, aliases=aliases)) as gateway:
        sys.stdout.write(f"{gateway.url}/v1\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1:]))
