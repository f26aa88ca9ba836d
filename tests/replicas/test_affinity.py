"""A conversation stays with the replica that knows its pictures, whichever gateway takes a turn."""

from __future__ import annotations

import asyncio

import pytest

from tests.replicas.fleet import Fleet
from tests.replicas.talks import Callers, Talk, about_a_picture, picture_part, text_part
from tests.replicas.traces import places_of, wanted_counts

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]
TALK_COUNT = 60


async def test_second_turns_find_their_image(fleet: Fleet, callers: Callers) -> None:
    """Turns go to the two gateways in turn, so that most first and second ones meet different."""
    talks = [about_a_picture(f"pictures.{index}") for index in range(TALK_COUNT)]
    first = await callers.go_on(talks, "first")
    assert wanted_counts(fleet, first) == [1] * TALK_COUNT
    for talk in talks:
        talk.say(text_part("And what colour is it?"))
    second = await callers.go_on(talks, "second")
    assert wanted_counts(fleet, second).count(0) >= TALK_COUNT - 1
    assert set(places_of(fleet, first)) == {*range(len(fleet.llm))}


async def test_a_picture_more_does_not_move_a_conversation(fleet: Fleet, callers: Callers) -> None:
    talks = [about_a_picture(f"more.{index}") for index in range(TALK_COUNT)]
    first = await callers.go_on(talks, "first")
    for talk in talks:
        talk.say(text_part("And this?"), picture_part(f"second picture of {talk.name}"))
    second = await callers.go_on(talks, "second")
    assert places_of(fleet, second) == places_of(fleet, first)
    assert wanted_counts(fleet, second) == [1] * TALK_COUNT


async def test_a_conversation_without_pictures_stays_where_it_began(
    fleet: Fleet, callers: Callers
) -> None:
    talks = [Talk(f"words.{index}") for index in range(TALK_COUNT)]
    for talk in talks:
        talk.messages.append({"role": "system", "content": "Be brief."})
        talk.say(text_part(f"My number is {talk.name}."))
    first = await callers.go_on(talks, "first")
    for talk in talks:
        talk.say(text_part("Which is my number?"))
    second = await callers.go_on(talks, "second")
    assert places_of(fleet, second) == places_of(fleet, first)
    assert set(places_of(fleet, first)) == {*range(len(fleet.llm))}


async def test_a_picture_is_encoded_where_it_was_encoded_before(
    fleet: Fleet, callers: Callers
) -> None:
    """Each of the other conversations about it may come to an LLM service that lacks its rows."""
    names = [f"same.{index}" for index in range(12)]
    for salt in ("a", "b", "c", "d", "e", "f"):
        asked = [
            callers.ask(about_a_picture(name).messages, name, cache_salt=salt) for name in names
        ]
        assert {answer.status for answer in await asyncio.gather(*asked)} == {200}
    encoded = [
        event
        for replica in fleet.vision
        for event in replica.events("encoded")
        if event["request_id"].rpartition(".")[0] in names
    ]
    assert sum(not event["is_held"] for event in encoded) == len(names)
    assert len(encoded) > len(names), "no LLM service lacked a picture: nothing was shown"
