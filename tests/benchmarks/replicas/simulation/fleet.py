"""The whole of it: conversations ask gateways, which ask replicas, in simulated time."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import TypeVar

from tests.benchmarks.crossover.stage_times import MS, SHAPES
from tests.benchmarks.replicas.simulation.clock import Clock, Process
from tests.benchmarks.replicas.simulation.load import (
    LOADS,
    MEAN_TURN_COUNT,
    Turn,
    conversation,
)
from tests.benchmarks.replicas.simulation.model import LLMReplica, Replica, Sizes, VisionReplica
from tests.benchmarks.replicas.simulation.routing import ROUND_ROBIN, Chooser, Policy

# One way of a call that carries no tensor.
HOP_SECONDS = 1 * MS
# From an answer to the next question.
THINK_SECONDS = 2.0
# At the start nothing is counted: caches fill, and the first later turns are still to come.
WARM_UP_SHARE, LEAST_WARM_UP_SECONDS = 0.3, 10.0
AnyReplica = TypeVar("AnyReplica", bound=Replica)


@dataclass(frozen=True)
class Setting:
    """What is simulated.

    Attributes:
        policy: of both services.
        load: a key of LOADS.
        llm_count, vision_count, gateway_count: replicas.
        request_count: after about so many, none begins.
        requests_per_second: that arrive; 0: as many as `client_count` clients ask without a pause.
        client_count: of the closed loop.
        seed: of all chances.
    """

    policy: Policy
    load: str
    llm_count: int
    vision_count: int
    gateway_count: int = 4
    request_count: int = 20_000
    requests_per_second: float = 0.0
    client_count: int = 0
    seed: int = 0
    sizes: Sizes = field(default_factory=Sizes)


@dataclass(frozen=True)
class Figures:
    """What came of it.

    Attributes:
        requests_per_second: answered within the window.
        first_token_seconds: of each request, the shortest first.
        found_share: of the turns after the first, those whose picture their LLM replica had.
        encoded_share: of all requests, those for which a ViT ran.
        tries: how often a request was offered to LLM replicas.
        work_seconds: of the LLM replicas for a request.
    """

    requests_per_second: float
    first_token_seconds: Sequence[float]
    found_share: float
    encoded_share: float
    tries: float
    work_seconds: float

    def percentile(self, percent: float) -> float:
        """Returns a percentile of the seconds to the first token."""
        last = len(self.first_token_seconds) - 1
        return self.first_token_seconds[round(last * percent / 100)]


@dataclass
class _Answer:
    """One request, when it was over."""

    turn: Turn
    asked: float
    first: float
    has_image: bool
    ask_count: int
    ended: float


class Fleet:
    """Replicas, the choices among them, and what was answered."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._clock = Clock()
        self._chance = random.Random(setting.seed)
        times = SHAPES["8B"]
        self._llms = [
            LLMReplica(self._clock, times, setting.sizes) for _ in range(setting.llm_count)
        ]
        self._visions = [
            VisionReplica(self._clock, times, setting.sizes) for _ in range(setting.vision_count)
        ]
        self._llm_choice = self._chooser(setting.llm_count)
        self._vision_choice = self._chooser(setting.vision_count)
        self._pick = LOADS[setting.load]
        self._answers: list[_Answer] = []
        self._begun_count = 0
        self._full_until = 0.0
        self._conversation_count = 0

    def run(self) -> Figures:
        """Simulates until all requests are answered."""
        if self._setting.requests_per_second:
            self._clock.start(self._arrivals())
        for _ in range(self._setting.client_count):
            self._clock.start(self._client(), self._chance.random())
        self._clock.run()
        return self._figures()

    def _chooser(self, replica_count: int) -> Chooser:
        return Chooser(
            self._setting.policy, replica_count, self._setting.gateway_count, self._clock
        )

    def _is_over(self) -> bool:
        is_over = self._begun_count >= self._setting.request_count
        if not is_over:
            self._full_until = self._clock.now
        return is_over

    def _arrivals(self) -> Process:
        chance = random.Random(f"{self._setting.seed} arrivals")
        while not self._is_over():
            self._clock.start(self._talk())
            yield chance.expovariate(self._setting.requests_per_second / MEAN_TURN_COUNT)

    def _talk(self) -> Process:
        chance = self._next_chance()
        for turn in conversation(chance, self._conversation_count, self._pick):
            yield from self._ask(turn)
            yield chance.expovariate(1 / THINK_SECONDS)

    def _client(self) -> Process:
        while not self._is_over():
            chance = self._next_chance()
            for turn in conversation(chance, self._conversation_count, self._pick):
                yield from self._ask(turn)

    def _next_chance(self) -> random.Random:
        """Returns what makes the next conversation: the same one whatever the policy."""
        self._conversation_count += 1
        return random.Random(f"{self._setting.seed} conversation {self._conversation_count}")

    def _ask(self, turn: Turn) -> Process:
        self._begun_count += 1
        asked = self._clock.now
        llm, ask_count = yield from self._find(
            self._llm_choice, self._llms, turn.image, lambda _: False
        )
        has_image = bool(llm.cache.size(turn.image))
        if not has_image:
            yield from self._encode(turn)
        cached = llm.cache.size(turn.image) + llm.cache.size(turn.conversation)
        yield llm.read(cached, turn.prompt_token_count)
        first = self._clock.now
        llm.cache.put(turn.image, turn.image_token_count)
        yield llm.write(turn.prompt_token_count, turn.answer_token_count)
        llm.cache.put(turn.conversation, turn.end_token_count)
        self._answers.append(_Answer(turn, asked, first, has_image, ask_count, self._clock.now))

    def _encode(self, turn: Turn) -> Process:
        vision, _ = yield from self._find(
            self._vision_choice, self._visions, turn.image, lambda one: one.knows(turn.image)
        )
        yield vision.encode(turn.image, turn.tile_count)
        vision.keep(turn.image, turn.tile_count)

    def _find(
        self,
        choice: Chooser,
        replicas: Sequence[AnyReplica],
        key: str,
        has: Callable[[AnyReplica], bool],
    ) -> Generator[float, None, tuple[AnyReplica, int]]:
        """Offers a request until a replica takes it.

        Args:
            choice: whom to ask.
            replicas: all of them.
            key: of the request.
            has: whether a replica takes it whatever its backlog.

        Returns:
            That replica, and how often the request was offered.
        """
        gateway = self._chance.randrange(self._setting.gateway_count)
        backlogs: dict[int, float] = {}
        if (first := choice.first(key, gateway)) is not None:
            yield HOP_SECONDS
            backlogs[first] = replicas[first].backlog_seconds()
            if backlogs[first] <= choice.policy.spill_seconds or has(replicas[first]):
                return replicas[first], 1
            yield HOP_SECONDS
        others = choice.others(key, self._chance)
        yield HOP_SECONDS
        backlogs |= {index: replicas[index].backlog_seconds() for index in others}
        yield 2 * HOP_SECONDS
        found = choice.decide(key, gateway, first, backlogs)
        return replicas[found], 1 if first is None else 2

    def _figures(self) -> Figures:
        begin, end = self._window()
        answers = [answer for answer in self._answers if begin <= answer.asked < end]
        later = [answer for answer in answers if answer.turn.number > 1]
        ended_count = sum(begin <= answer.ended < end for answer in self._answers)
        return Figures(
            requests_per_second=ended_count / (end - begin),
            first_token_seconds=sorted(answer.first - answer.asked for answer in answers),
            found_share=mean(answer.has_image for answer in later),
            encoded_share=sum(one.encoded_count for one in self._visions) / len(self._answers),
            tries=mean(answer.ask_count for answer in answers),
            work_seconds=sum(llm.busy_seconds for llm in self._llms) / len(self._answers),
        )

    def _window(self) -> tuple[float, float]:
        """Returns the moments between which the fleet is warm and still asked."""
        warm_up = max(LEAST_WARM_UP_SECONDS, WARM_UP_SHARE * self._full_until)
        return min(warm_up, self._full_until / 2), self._full_until


def capacity(setting: Setting) -> float:
    """Returns the requests/s at which all LLM replicas are busy, were they used in turn."""
    quiet = Setting(
        ROUND_ROBIN,
        setting.load,
        setting.llm_count,
        setting.vision_count,
        request_count=setting.request_count // 4,
        requests_per_second=2.0 * setting.llm_count,
        sizes=setting.sizes,
    )
    return setting.llm_count / Fleet(quiet).run().work_seconds
