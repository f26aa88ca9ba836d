"""Who sends a request, and what this caller may ask for."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# What is done for a caller only where its key says so.
Permission = Literal["priority", "file"]


def _with_zone(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("a moment must say its time zone, e.g. 2027-01-31T00:00:00Z")
    return moment


class Policy(BaseModel):
    """What a caller may use; None: as much as the gateway gives.

    Attributes:
        models: names of models that it may ask for; None: all.
        requests_per_minute, tokens_per_minute, images_per_minute: at most.
        max_concurrent_request_count: requests in flight at a time.
        may_use: "priority": a request's `priority`; "file": file:// URLs.
        most_urgent_priority: the lowest `priority` that it may give; lower ones go first.
        expires: from when on the key is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, ...] | None = None
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    images_per_minute: Annotated[int, Field(ge=0)] | None = None
    max_concurrent_request_count: Annotated[int, Field(ge=1)] | None = None
    may_use: Sequence[Permission] = ()
    most_urgent_priority: int = 0
    expires: Annotated[datetime, AfterValidator(_with_zone)] | None = None


class Caller(BaseModel):
    """Who sends a request.

    Attributes:
        name: of the key that came with it, for logs, metrics and traces.
        policy: what it may use.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    policy: Policy


# Where no keys are asked for: all that there is; `priority` has 32 bits.
ANYBODY = Caller(
    name="anybody", policy=Policy(may_use=("priority", "file"), most_urgent_priority=1 - 2**31)
)
