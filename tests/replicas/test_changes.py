"""Replicas that come, go, die and hang under load: nobody but who was in flight there notices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.replicas.fleet import Fleet, Replica, scripted
from tests.replicas.scripted import Manner
from tests.replicas.talks import Answer, Callers, Load, Talk, about_a_picture, text_part
from tests.replicas.traces import began_before, had, places_of, wanted_counts

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]
TALK_COUNT = 60
CLIENT_COUNT = 8
STREAM_COUNT = 200
POLL_SECONDS = 0.05
# How soon a replica that is added must have its share, and one that hangs no more new calls.
SHARE_SECONDS = 10.0
HANG_SECONDS = 15.0
# Far less than a hung replica would take to be given up.
SOON_SECONDS = 5.0
PATIENCE_SECONDS = 20.0


async def becomes_true(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    """Waits for a condition; fails when it takes longer."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not happened in time"
        await asyncio.sleep(POLL_SECONDS)


def encodings(replicas: Sequence[Replica]) -> list[dict[str, Any]]:
    """Returns the lines of all images that vision services have answered with."""
    return [event for replica in replicas for event in replica.events("encoded")]


def streams_in(replicas: Sequence[Replica], names: list[str]) -> set[str]:
    """Returns the requests of these names that replicas have begun with, and not ended."""
    open_ones = set[str]()
    for replica in replicas:
        open_ones |= {*replica.request_ids("began")} - {*replica.request_ids("generated")}
    return {one for one in open_ones if one.rpartition(".")[0] in names}


async def go_on(callers: Callers, talks: list[Talk], name: str) -> list[Answer]:
    """Asks one more question in each conversation."""
    for talk in talks:
        if name != "first":
            talk.say(text_part(f"And {name}?"))
    return await callers.go_on(talks, name)


async def test_only_a_dead_replicas_conversations_move_and_once(
    fleet: Fleet, callers: Callers
) -> None:
    dead = 1
    talks = [about_a_picture(f"moved.{index}") for index in range(TALK_COUNT)]
    first = await go_on(callers, talks, "first")
    home = places_of(fleet, first)
    await fleet.kill(fleet.llm[dead])
    second = await go_on(callers, talks, "second")
    third = await go_on(callers, talks, "third")
    now = places_of(fleet, second)
    moved = [index for index in range(TALK_COUNT) if now[index] != home[index]]
    assert moved == [index for index in range(TALK_COUNT) if home[index] == dead]
    assert moved, "the dead one had no conversation: nothing was shown"
    assert wanted_counts(fleet, second) == [int(index in moved) for index in range(TALK_COUNT)]
    assert sum(wanted_counts(fleet, third)) == 0
    assert places_of(fleet, third) == now
    # What moved was not encoded anew, but taken from the cache of the vision service.
    asked = {answer.request_id for answer in second}
    encoded = [one for one in encodings(fleet.vision) if one["request_id"] in asked]
    assert [one["is_held"] for one in encoded] == [True] * len(moved)


async def test_only_a_dead_vision_services_pictures_are_encoded_again(
    fleet: Fleet, callers: Callers
) -> None:
    """New conversations about them, under further cache salts, come to LLM services without."""
    dead, left = fleet.vision
    names = [f"vision.{index}" for index in range(TALK_COUNT)]

    async def ask(salt: str) -> set[str]:
        """Returns the contents that were encoded anew."""
        talks = [about_a_picture(f"{salt}.{name}", f"picture of {name}") for name in names]
        ids = {one.request_id for one in await callers.go_on(talks, salt, cache_salt=salt)}
        encoded = [one for one in encodings(fleet.vision) if one["request_id"] in ids]
        anew = [str(one["content"]) for one in encoded if not one["is_held"]]
        assert len(set(anew)) == len(anew)
        return {*anew}

    assert len(await ask("before")) == TALK_COUNT
    lost = {str(one["content"]) for one in dead.events("encoded")}
    kept = {str(one["content"]) for one in left.events("encoded")}
    await fleet.kill(dead)
    anew = [await ask(salt) for salt in ("a", "b", "c")]
    assert anew[0], "no LLM service lacked a picture of the dead one: nothing was shown"
    assert set.union(*anew) <= lost - kept
    assert sum(map(len, anew)) == len(set.union(*anew))


async def test_a_replica_killed_under_load_takes_only_its_own_calls_along(
    fleet: Fleet, callers: Callers
) -> None:
    dead = fleet.llm[2]
    async with Load(callers, "killed").running(CLIENT_COUNT) as load:
        await becomes_true(lambda: had(dead, load.request_ids) > 2)
        await fleet.kill(dead)
        await becomes_true(load.has_gone_on)
    lost = {answer.request_id for answer in load.failed()}
    assert len(lost) <= CLIENT_COUNT
    assert lost <= set(dead.request_ids("began")) - set(dead.request_ids("generated"))


@pytest.mark.slow
async def test_a_replica_that_drains_refuses_nothing(fleet: Fleet, callers: Callers) -> None:
    async with Load(callers, "drained").running(CLIENT_COUNT) as load:
        for draining in (fleet.llm[0], fleet.vision[0]):
            await becomes_true(lambda one=draining: had(one, load.request_ids) > 2)  # type: ignore[misc]
            await fleet.terminate(draining)
            await becomes_true(load.has_gone_on)
    assert load.failed() == []
    ids = load.request_ids
    for gateway in fleet.gateways:  # not even what would have been sent once more
        assert [one for one in gateway.events("unavailable") if one["request_id"] in ids] == []


@pytest.mark.slow
async def test_two_hundred_streams_survive_a_scale_down_to_one(
    fleet: Fleet, callers: Callers
) -> None:
    """Each replica is ended as Kubernetes does, as soon as the one before has stopped serving."""
    *leaving, _ = fleet.llm
    manner = Manner(word_count=16, seconds=8)
    talks = [about_a_picture(f"stream.{index}", manner=manner) for index in range(STREAM_COUNT)]
    streams = [
        asyncio.create_task(callers.ask(talk.messages, talk.name, stream=True)) for talk in talks
    ]
    begun = [f"stream.{index}" for index in range(STREAM_COUNT)]
    await becomes_true(lambda: len(streams_in(fleet.llm, begun)) == STREAM_COUNT)
    ends = []
    async with Load(callers, "meanwhile").running(2) as load:
        for replica in leaving:
            assert streams_in([replica], begun), "it had no stream: nothing was shown"
            ends.append(asyncio.create_task(fleet.terminate(replica)))
            await becomes_true(lambda one=replica: bool(one.events("draining")))  # type: ignore[misc]
        await asyncio.gather(*ends)
        await becomes_true(load.has_gone_on)
    answers = await asyncio.gather(*streams)
    assert [one.status for one in answers if not one.is_whole_stream] == []
    assert load.failed() == []


@pytest.mark.slow
async def test_a_replica_that_is_added_gets_its_share(fleet: Fleet, callers: Callers) -> None:
    late = fleet.add("llm", scripted("llm"))
    try:
        async with Load(callers, "added").running(CLIENT_COUNT) as load:
            await becomes_true(load.has_gone_on)
            await fleet.start(late)
            await becomes_true(lambda: had(late, load.request_ids) > 0, SHARE_SECONDS)
            begin = len(load.answers)
            await becomes_true(lambda: len(load.answers) > begin + 200)
        assert load.failed() == []
        ids = {answer.request_id for answer in load.answers[begin:]}
        assert had(late, ids) >= 0.5 * len(ids) / len(fleet.llm)
    finally:
        await fleet.terminate(late)
        fleet.llm.remove(late)


@pytest.mark.slow
async def test_a_hung_replica_gets_no_new_calls(fleet: Fleet, callers: Callers) -> None:
    hung = (fleet.llm[0], fleet.vision[0])
    async with Load(callers, "hung").running(CLIENT_COUNT) as load:
        for replica in hung:
            await becomes_true(lambda one=replica: had(one, load.request_ids) > 2)  # type: ignore[misc]
        moment = time.time()
        for replica in hung:
            replica.stop_running()
        try:
            while time.time() < moment + HANG_SECONDS:
                assert {status for status, _ in await callers.ready()} == {200}
                await asyncio.sleep(1)
            await becomes_true(load.has_gone_on)
        finally:
            end = time.time()
            for replica in hung:
                replica.go_on()
    late = {
        one.request_id
        for one in load.answers
        if one.sent > moment + HANG_SECONDS and one.sent + one.seconds < end
    }
    begun = set[str]().union(*(began_before(replica, moment) for replica in hung))
    assert {answer.request_id for answer in load.failed()} <= begun
    assert late
    assert max(one.seconds for one in load.answers if one.request_id in late) < SOON_SECONDS
    # What was sent to them all the same, they deal with now.
    await asyncio.sleep(1)
    assert [had(replica, late) for replica in hung] == [0, 0]


async def test_a_hot_picture_is_asked_about_at_several_replicas(
    fleet: Fleet, callers: Callers
) -> None:
    """Its own replica takes three such calls at a time, and refuses more.

    Another one is found by lot, and the lot may fall on its own one again. Then a caller is told
    to come back, which one in a hundred is.
    """
    manner = Manner(word_count=2, seconds=1, place_count=3)
    # Calls that come one by one find out that it is full without being refused: then once more.
    for turn in range(5):
        talks = [
            about_a_picture(f"hot.{turn}.{i}", f"hot picture {turn}", manner) for i in range(6)
        ]
        answers = await asyncio.gather(*(callers.ask(one.messages, one.name) for one in talks))
        assert {answer.status for answer in answers} <= {200, 429}
        taken = [answer for answer in answers if answer.status == 200]
        assert len(taken) > manner.place_count
        assert len(set(places_of(fleet, taken))) > 1
        if any(replica.events("refused") for replica in fleet.llm):
            return
    pytest.fail("no replica has refused a call")


async def test_readiness_names_the_service_without_a_healthy_replica(
    fleet: Fleet, callers: Callers
) -> None:
    assert {status for status, _ in await callers.ready()} == {200}
    await fleet.kill(fleet.vision[0])
    assert {status for status, _ in await callers.ready()} == {200}
    await fleet.kill(fleet.vision[1])
    answers = await callers.ready()
    assert {status for status, _ in answers} == {503}
    assert [[*answer["reasons"]] for _, answer in answers] == [["vision"]] * len(answers)
    await fleet.start(fleet.vision[1])
    deadline = time.monotonic() + SHARE_SECONDS
    while {status for status, _ in await callers.ready()} != {200}:
        assert time.monotonic() < deadline
        await asyncio.sleep(POLL_SECONDS)
