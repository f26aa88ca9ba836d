"""The benchmark of many replicas: what its simulation concludes, and its parts."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gateway.services.routing import RING_SIZE
from llm_service.engines.base import ImageRows, Prompt
from protos.identity import EmbeddingId
from tests.benchmarks.crossover.clients import Answer
from tests.benchmarks.crossover.prefixes import BLOCK_TOKEN_COUNT, PrefixCache
from tests.benchmarks.crossover.workload import photos
from tests.benchmarks.replicas import comparison
from tests.benchmarks.replicas.__main__ import main
from tests.benchmarks.replicas.curves import CURVE_LOADS, POLICIES, Cell, draw, simulated_report
from tests.benchmarks.replicas.questions import NamedPictures, half_as_many, one_hot
from tests.benchmarks.replicas.simulation.clock import Clock, Process
from tests.benchmarks.replicas.simulation.fleet import Figures, Fleet, Setting, capacity
from tests.benchmarks.replicas.simulation.load import LOADS, conversation
from tests.benchmarks.replicas.simulation.model import Cache, Replica
from tests.benchmarks.replicas.simulation.routing import (
    BOUNDED,
    RING,
    ROUND_ROBIN,
    Chooser,
    Ring,
)

KEYS = [f"key {number}" for number in range(2000)]


# What the simulation concludes.


@pytest.fixture(scope="module")
def skewed() -> dict[str, Figures]:
    """Figures of each way to choose, with half of the conversations about one picture."""
    base = Setting(ROUND_ROBIN, "one hot", 8, 2, request_count=3000)
    busy = replace(base, requests_per_second=0.9 * capacity(base))
    return {policy.name: Fleet(replace(busy, policy=policy)).run() for policy in POLICIES}


def test_a_hash_finds_pictures_that_round_robin_does_not(skewed: dict[str, Figures]) -> None:
    found = {name: figures.found_share for name, figures in skewed.items()}
    assert found[ROUND_ROBIN.name] < 0.7
    assert found[RING.name] == 1
    assert found[BOUNDED.name] > 0.95
    encoded = {name: figures.encoded_share for name, figures in skewed.items()}
    assert encoded[BOUNDED.name] < 0.8 * encoded[ROUND_ROBIN.name]


def test_the_bound_keeps_a_hot_picture_from_making_others_wait(skewed: dict[str, Figures]) -> None:
    high = {name: figures.percentile(99) for name, figures in skewed.items()}
    assert high[RING.name] > 10 * high[ROUND_ROBIN.name]
    assert high[BOUNDED.name] <= 1.05 * high[ROUND_ROBIN.name]
    assert skewed[BOUNDED.name].percentile(50) < skewed[ROUND_ROBIN.name].percentile(50)
    assert skewed[BOUNDED.name].tries < 1.2


def test_the_same_seed_gives_the_same_figures() -> None:
    setting = Setting(BOUNDED, "Zipf 1.0", 2, 1, request_count=300, requests_per_second=10)
    assert Fleet(setting).run() == Fleet(setting).run()
    assert Fleet(setting).run() != Fleet(replace(setting, seed=1)).run()


def test_where_all_are_busy_conversations_stay_where_they_are() -> None:
    base = Setting(ROUND_ROBIN, "half reused", 4, 1, request_count=1000, client_count=64)
    in_turn = Fleet(base).run()
    assert in_turn.requests_per_second * in_turn.work_seconds == pytest.approx(4, rel=0.1)
    bounded = Fleet(replace(base, policy=BOUNDED)).run()
    assert bounded.found_share > 0.8
    assert bounded.requests_per_second > 1.15 * in_turn.requests_per_second
    assert bounded.percentile(99) < in_turn.percentile(99)


# The parts of the simulation.


def test_processes_run_in_the_order_of_their_moments() -> None:
    clock, seen = Clock(), []

    def process(name: str, *pauses: float) -> Process:
        for pause in pauses:
            yield pause
            seen.append((name, clock.now))

    clock.start(process("a", 1, 2))
    clock.start(process("b", 2, 0), 0.5)
    clock.run()
    assert seen == [("a", 1), ("b", 2.5), ("b", 2.5), ("a", 3)]


def test_a_replica_does_its_work_in_order() -> None:
    clock = Clock()
    replica = Replica(clock, Cache(1))
    assert replica.backlog_seconds() == 0
    assert (replica.work(2), replica.work(3)) == (2, 5)
    clock.now = 4
    assert replica.backlog_seconds() == 1
    clock.now = 9
    assert replica.backlog_seconds() == 0
    assert replica.work(1) == 1


def test_a_cache_lets_go_what_was_used_longest_ago() -> None:
    cache = Cache(10)
    cache.put("a", 4)
    cache.put("b", 4)
    assert cache.size("a") == 4
    cache.put("c", 4)
    assert [name in cache for name in "abc"] == [True, False, True]
    cache.put("a", 7)  # it has grown
    assert [name in cache for name in "abc"] == [True, False, False]
    cache.put("d", 11)
    assert not any(name in cache for name in "abcd")


def test_a_new_replica_takes_its_share_of_the_keys_and_moves_no_others() -> None:
    before, after = Ring(4, 4096), Ring(5, 5120)
    owners = [(before.owner(key), after.owner(key)) for key in KEYS]
    moved = [new for old, new in owners if old != new]
    assert set(moved) == {4}
    assert len(moved) / len(KEYS) == pytest.approx(1 / 5, abs=0.03)


@pytest.mark.parametrize(("replica_count", "share"), [(4, 0.13), (16, 0.05)])
def test_with_a_replica_less_some_of_the_others_keys_move_too(
    replica_count: int, share: float
) -> None:
    """As each has more points then; docs/decisions.md has these figures."""
    before, after = Ring(replica_count, RING_SIZE), Ring(replica_count - 1, RING_SIZE)
    others = [key for key in KEYS if before.owner(key) != replica_count - 1]
    moved = [key for key in others if before.owner(key) != after.owner(key)]
    assert len(moved) / len(others) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("replica_count", [1, 3, 16])
def test_shares_are_what_keys_show(replica_count: int) -> None:
    ring = Ring(replica_count, 1024)
    shares = ring.shares(replica_count)
    assert sum(shares) == pytest.approx(1)
    owners = [ring.owner(key) for key in KEYS]
    for replica, share in enumerate(shares):
        assert owners.count(replica) / len(KEYS) == pytest.approx(share, abs=0.04)


def test_a_key_that_went_elsewhere_is_passed_over_for_a_while() -> None:
    clock = Clock()
    chooser = Chooser(BOUNDED, 64, 2, clock)
    home = Ring(64, RING_SIZE).owner("key")
    other = (home + 1) % 64
    assert chooser.first("key", 0) == home
    assert chooser.decide("key", 0, home, {home: 1.9, other: 1.0}) == home
    assert chooser.first("key", 0) == home
    assert chooser.decide("key", 0, home, {home: 2.1, other: 1.0}) == other
    assert chooser.first("key", 0) is None
    assert chooser.decide("key", 0, None, {home: 1.2, other: 1.3}) == home
    assert chooser.first("key", 1) == home  # the other gateway does not know
    clock.now += BOUNDED.busy_seconds
    assert chooser.first("key", 0) == home


def test_others_are_any_and_round_robin_takes_turns() -> None:
    chooser, chance = Chooser(BOUNDED, 4, 1, Clock()), random.Random(0)
    assert {index for _ in range(50) for index in chooser.others("key", chance)} == {0, 1, 2, 3}
    in_turn = Chooser(ROUND_ROBIN, 3, 1, Clock())
    assert [in_turn.first("key", 0) for _ in range(5)] == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("load", LOADS)
def test_a_conversation_keeps_its_picture_and_grows(load: str) -> None:
    chance = random.Random(0)
    for number in range(50):
        turns = [*conversation(chance, number, LOADS[load])]
        assert len({(turn.image, turn.tile_count) for turn in turns}) == 1
        for before, after in zip(turns, turns[1:], strict=False):
            assert after.history_token_count == before.end_token_count
            assert after.prompt_token_count > before.prompt_token_count


def test_the_report_and_the_chart_have_all_points(tmp_path: Path) -> None:
    figures = Figures(2.0, [0.1, 0.2, 0.3], 0.5, 0.25, 1.5, 0.1)
    cells = [
        Cell(policy, load, count, figures, figures)
        for load in CURVE_LOADS
        for count in (1, 2)
        for policy in POLICIES
    ]
    assert len(simulated_report(cells).rows) == 12
    draw(cells, tmp_path / "chart.svg")
    assert "<svg" in (tmp_path / "chart.svg").read_text(encoding="utf-8")


# The requests to real processes.


def test_a_name_stands_for_the_same_picture() -> None:
    half = NamedPictures("model", photos(1, shrink=8), 1, 1, "seed", half_as_many(100))
    pictures = [half.question(number).first_picture for number in range(100)]
    assert 25 < len(set(pictures)) <= 50
    bodies = {half.question(number).body for number in range(100)}
    assert len(bodies) == 100  # about the same pictures, but other words
    hot = replace(half, pick=one_hot)
    hottest = [hot.question(number).first_picture for number in range(100)]
    assert sorted(map(hottest.count, set(hottest)))[-2:] == [1, pytest.approx(50, abs=15)]


@pytest.mark.parametrize("token_count", [BLOCK_TOKEN_COUNT * 3, BLOCK_TOKEN_COUNT * 3 + 5])
def test_the_prefixes_of_prompts_are_known_again(token_count: int) -> None:
    cache = PrefixCache(BLOCK_TOKEN_COUNT * 8)
    prompt = _prompt(token_count, b"a")
    assert cache.known_count(prompt) == 0
    cache.add(prompt)
    known = min(BLOCK_TOKEN_COUNT * 3, token_count - 1)
    assert cache.known_count(prompt) == known
    assert cache.known_count(_prompt(token_count + 100, b"a")) == BLOCK_TOKEN_COUNT * 3
    assert cache.known_count(_prompt(token_count, b"b")) == 0
    assert cache.known_count(replace(prompt, cache_salt="other")) == 0
    for image in (b"c", b"d", b"e"):
        cache.add(_prompt(token_count, image))
    assert cache.known_count(prompt) == 0


def _prompt(token_count: int, image: bytes) -> Prompt:
    id_ = EmbeddingId(image * 32, bytes(32))
    return Prompt([*range(token_count)], torch.zeros(1, 1), (ImageRows(id_, 1),))


def test_the_report_of_a_comparison_counts_what_failed() -> None:
    found = {name: comparison.Found() for name in comparison.WAYS}
    for number, one in enumerate(found.values()):
        one.rates += [2.0 + number, 1.0, 9.0]
        one.first_token_seconds += [0.1, 0.2]
        one.error_count = number
    first, second = comparison.report("title", "compared", found).rows
    assert first == ["round robin", "2.00", "1.00x", "150", "199", "2", "0"]
    assert second == ["ring hash", "3.00", "1.50x", "150", "199", "2", "1"]


def test_a_rate_leaves_failures_out() -> None:
    answers = [Answer(str(end), 0, 0, end) for end in (4.0, 2.0, 3.0)]
    assert comparison.rate([*answers, Answer("x", 0, 0, 9.0, error="503")]) == 1.0


@pytest.mark.slow
def test_a_whole_run(tmp_path: Path) -> None:
    main(["--quick", "--slowness", "4", "--output", str(tmp_path), "miss", "vision"])
    page = (tmp_path / "replicas.md").read_text(encoding="utf-8")
    assert "no ViT" in page
    assert "tiles/s" in page
