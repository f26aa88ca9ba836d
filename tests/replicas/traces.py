"""What the services' own logs say of requests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from tests.replicas.fleet import Fleet, Replica
from tests.replicas.talks import Answer


def places_of(fleet: Fleet, answers: Sequence[Answer]) -> list[int]:
    """Returns, of each answered request, which LLM service generated the answer."""
    found = {
        request_id: index
        for index, replica in enumerate(fleet.llm)
        for request_id in replica.request_ids("generated")
    }
    return [found[answer.request_id] for answer in answers]


def wanted_counts(fleet: Fleet, answers: Sequence[Answer]) -> list[int]:
    """Returns, of each request, how many images LLM services wanted for it."""
    counts = dict.fromkeys((answer.request_id for answer in answers), 0)
    for event in (one for replica in fleet.llm for one in replica.events("began")):
        if event["request_id"] in counts:
            counts[event["request_id"]] += event["wanted_count"]
    return [*counts.values()]


def had(replica: Replica, request_ids: set[str]) -> int:
    """Returns how many of these requests came to a service, whatever became of them."""
    return len(request_ids.intersection(replica.request_ids("began")))


def began_before(replica: Replica, moment: float) -> set[str]:
    """Returns the requests that a service had begun with at a moment, as time.time() has it."""
    return {
        event["request_id"]
        for event in replica.events("began")
        if datetime.fromisoformat(event["timestamp"].replace("Z", "+00:00")).timestamp() < moment
    }
