"""A thousand requests of one caller at once: what is counted in the end is what was used."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import aiohttp
import pytest
from structlog.testing import capture_logs

from gateway.access.callers import Policy
from gateway.descriptors import raise_descriptor_limit
from protos.errors import InvalidArgumentError, ServiceError
from protos.internvl.v1 import llm_pb2
from tests.fakes import MODEL, LLMContext, ScriptedLLM, choice_count, stack
from tests.known_callers import KnownCallers, until

REQUEST_COUNT = 1000
# On a busy machine the thousand take long: none may end for that, nor begin its stream.
PATIENCE: dict[str, Any] = {
    "header_seconds": 600,
    "body_seconds": 600,
    "request_seconds": 3600,
    "sse_keep_alive_seconds": 0,
}
ALICE = {"Authorization": "alice"}
# In a pair with the texts of a script's deltas, which have no such word.
LAST_WORD = "END"
Fate = Literal["ends", "refused", "fails", "left", "left early"]
FATES: tuple[Fate, ...] = ("ends", "ends", "refused", "fails", "left", "left early")
FORMS = ("chat", "completions", "messages", "responses")


@dataclass(frozen=True)
class Script:
    """What comes of one generation; its JSON is the prompt.

    Attributes:
        number: its own.
        prompt_token_count: what the service tells.
        delta_token_counts: of the deltas of each choice.
        last_token_count: tokens that no delta has, and the usage tells.
        fate: it ends, is refused, fails after its deltas; or its client leaves, having read these,
            or before anything was told.
    """

    number: int
    prompt_token_count: int
    delta_token_counts: tuple[int, ...]
    last_token_count: int
    fate: Fate

    def used(self, n: int) -> int:
        """Returns what is to be counted."""
        told = self.prompt_token_count + n * sum(self.delta_token_counts)
        match self.fate:
            case "ends":
                return told + n * self.last_token_count
            case "fails" | "left":
                return told
            case "left early":  # the estimate of the prompt: a turn's words and three bytes a token
                return 8 + -(-len(prompt_of(self)) // 3)
            case "refused":
                return 0


def prompt_of(script: Script) -> str:
    """Returns the text that asks for it."""
    return json.dumps(asdict(script))


@dataclass
class Plan:
    """A request, and what its caller will have used by it.

    Attributes:
        form: of the dialects.
        scripts: one; more are the prompts of a completion.
        n: choices.
        is_stream: whether it asks for one; who leaves having read does.
    """

    form: str
    scripts: list[Script]
    n: int
    is_stream: bool
    max_tokens: int = 40

    @classmethod
    def draw(cls, number: int, dice: random.Random) -> Plan:
        form = dice.choice(FORMS)
        fate = dice.choice(FATES)
        count = 1
        if form == "completions":  # one that fails ends the others somewhere
            fate, count = "ends", dice.randint(1, 3)
        scripts = [
            Script(
                number,
                dice.randint(1, 60),
                tuple(dice.randint(1, 4) for _ in range(dice.randint(1, 3))),
                dice.randint(0, 2),
                fate,
            )
            for _ in range(count)
        ]
        n = dice.randint(1, 2) if form in ("chat", "completions") else 1
        return cls(form, scripts, n, fate == "left" or dice.random() < 0.5)

    def used(self) -> int:
        """Returns what is to be counted."""
        return sum(script.used(self.n) for script in self.scripts)

    def request(self) -> tuple[str, dict[str, Any]]:
        """Returns path and body."""
        prompts = [prompt_of(script) for script in self.scripts]
        turn = [{"role": "user", "content": prompts[0]}]
        shared = {"model": MODEL, "stream": self.is_stream}
        match self.form:
            case "chat":
                return "/v1/chat/completions", shared | {
                    "messages": turn,
                    "max_tokens": self.max_tokens,
                    "n": self.n,
                }
            case "completions":
                return "/v1/completions", shared | {
                    "prompt": prompts,
                    "max_tokens": self.max_tokens,
                    "n": self.n,
                }
            case "messages":
                return "/v1/messages", shared | {"messages": turn, "max_tokens": self.max_tokens}
            case _:
                return "/v1/responses", shared | {
                    "input": turn,
                    "max_output_tokens": self.max_tokens,
                }


@dataclass
class LedgerLLM(ScriptedLLM):
    """Does as the prompt says.

    Attributes:
        asked: the scripts' numbers whose prompts have come.
    """

    asked: dict[int, asyncio.Event] = field(default_factory=dict)

    async def Generate(
        self, requests: AsyncIterator[llm_pb2.GenerateRequest], context: LLMContext
    ) -> AsyncGenerator[llm_pb2.GenerateResponse, None]:
        start = (await anext(requests)).start
        yield llm_pb2.GenerateResponse(wanted=llm_pb2.WantedImages())
        text = start.text or start.chat.messages[0].parts[0].text
        script = Script(**json.loads(text))
        if script.fate == "refused":
            raise InvalidArgumentError("x")
        self.asked.setdefault(script.number, asyncio.Event()).set()
        if script.fate == "left early":
            await asyncio.Event().wait()
        for delta in _deltas(script, choice_count(start)):
            yield llm_pb2.GenerateResponse(delta=delta)
        if script.fate == "left":
            await asyncio.Event().wait()
        if script.fate == "fails":
            raise ServiceError("x")
        for index in range(choice_count(start)):
            finished = llm_pb2.Finished(choice_index=index, reason=llm_pb2.FINISH_REASON_STOP)
            yield llm_pb2.GenerateResponse(finished=finished)
        output = sum(script.delta_token_counts) + script.last_token_count
        yield llm_pb2.GenerateResponse(
            usage=llm_pb2.Usage(
                prompt_token_count=script.prompt_token_count,
                output_token_count=choice_count(start) * output,
                cached_token_count=script.prompt_token_count // 2,
            )
        )


def _deltas(script: Script, n: int) -> list[llm_pb2.TokenDelta]:
    deltas = [
        llm_pb2.TokenDelta(choice_index=index, text="x", token_ids=[1] * count)
        for count in script.delta_token_counts
        for index in range(n)
    ]
    deltas[0].prompt_token_count = script.prompt_token_count
    deltas[-1].text = LAST_WORD
    return deltas


async def carry_out(plan: Plan, http: aiohttp.ClientSession, llm: LedgerLLM) -> int:
    """Returns the status of the answer; 0 where its client did not wait for it."""
    path, body = plan.request()
    asking = asyncio.create_task(_ask(http, path, body))
    script = plan.scripts[0]
    if script.fate == "left early":
        asked = llm.asked.setdefault(script.number, asyncio.Event())
        waiting = asyncio.create_task(asked.wait())
        await asyncio.wait((asking, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not asking.done():
            asking.cancel()
            return 0
    response = await asking
    if script.fate == "left" and response.status == 200:
        while LAST_WORD.encode() not in (line := await response.content.readline()):
            assert line, "the stream ended before its client left"
        response.close()
    else:
        await response.read()
    return response.status


async def _ask(http: aiohttp.ClientSession, path: str, body: Any) -> aiohttp.ClientResponse:
    return await http.post(path, json=body, headers=ALICE)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("tokens_per_minute", [10**6, 40_000])
async def test_what_is_counted_in_the_end_is_what_was_used(
    monkeypatch: pytest.MonkeyPatch, tokens_per_minute: int
) -> None:
    raise_descriptor_limit()
    for module in ("gateway.services.channel", "protos.process.server"):
        # Clients, gateway and service share one loop here: on a busy machine pings would be late.
        monkeypatch.setattr(f"{module}.KEEPALIVE_OPTIONS", ())
    policy = Policy(
        tokens_per_minute=tokens_per_minute,
        requests_per_minute=REQUEST_COUNT,
        max_concurrent_request_count=REQUEST_COUNT,
    )
    callers = KnownCallers(monkeypatch, {"alice": policy}, lambda: 0)  # no token comes back
    account = callers.accounts.of(callers.caller("alice"))
    dice = random.Random(tokens_per_minute)
    plans = [Plan.draw(number, dice) for number in range(REQUEST_COUNT)]
    llm = LedgerLLM()
    async with stack(llm=llm, max_request_count=REQUEST_COUNT, **PATIENCE) as gateway:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            gateway.url, connector=connector, timeout=aiohttp.ClientTimeout()
        ) as http:
            # Else all of the thousand would ask the service at once what it runs.
            await (await http.get("/v1/models", headers=ALICE)).read()
            with capture_logs():  # to write a thousand lines takes longer than to answer
                statuses = await asyncio.gather(*(carry_out(plan, http, llm) for plan in plans))
        await until(lambda: account.in_flight_count == 0, seconds=60)
    # On a busy machine the service may seem to be gone, before it has said anything: 503.
    answers = zip(plans, statuses, strict=True)
    admitted = [plan for plan, status in answers if status not in (429, 503)]
    # All that may happen has happened, and nothing else.
    refused = {429} if tokens_per_minute < 10**6 else set()
    assert set(statuses) - {503} == {0, 200, 400, 500} | refused
    fates = Counter((plan.form, plan.scripts[0].fate, plan.is_stream) for plan in admitted)
    assert len(fates) == 3 * (4 * 2 + 1) + 2
    requests, tokens = account.rates()
    assert tokens.limit - tokens.remaining == sum(plan.used() for plan in admitted)
    assert tokens.remaining >= 0
    assert requests.remaining == 0
