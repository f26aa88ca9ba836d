"""What a caller's request is let in for: its key's limits, and its permissions once it is read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    nullcontext,
)

from aiohttp import web

from gateway.access.accounts import Account
from gateway.access.callers import ANYBODY, Caller
from gateway.access.permissions import check_file, check_model, check_priority
from gateway.app_keys import ACCOUNT, ACCOUNTS, CALLER, PAIR, RECORD
from gateway.estimates import TokenEstimate
from gateway.generation import GenerationRequest
from gateway.images.http_urls import scheme_of


def account_of(request: web.Request) -> Account | None:
    """Returns the account of a request's caller, held to the limits of the request's begin.

    None: nothing limits the caller.
    """
    if (caller := request[CALLER]) is ANYBODY:
        return None
    if ACCOUNT not in request:
        request[ACCOUNT] = request.app[ACCOUNTS].of(caller)
    return request[ACCOUNT]


def visiting(request: web.Request) -> AbstractContextManager[None]:
    """Counts a request, as one in flight until the block is left.

    Raises:
        CallerLimitError: its caller has too many, at a time or in a minute.
    """
    return account.visit() if (account := account_of(request)) else nullcontext()


def admit_prompt(request: web.Request, prompt: GenerationRequest) -> None:
    """Lets in a prompt that is only counted: its images are fetched all the same.

    Raises:
        AccessDeniedError: the caller's key does not allow something in it.
        CallerLimitError: it has too many images.
    """
    if account := account_of(request):
        _check(request[CALLER], prompt)
        account.use(images=len(prompt.images))


def admitted(
    request: web.Request, generations: Sequence[GenerationRequest], deadline: float
) -> AbstractAsyncContextManager[None]:
    """Lets generations in, and settles what they have used when the block is left.

    Raises:
        AccessDeniedError: the caller's key does not allow something in them.
        CallerLimitError: they have too many images, or would take too many tokens.
        ServiceError: it cannot be told how many tokens they would take.
    """
    account = account_of(request)
    return _admitted(request, account, generations, deadline) if account else nullcontext()


@asynccontextmanager
async def _admitted(
    request: web.Request,
    account: Account,
    generations: Sequence[GenerationRequest],
    deadline: float,
) -> AsyncIterator[None]:
    for generation in generations:
        _check(request[CALLER], generation)
    image_count = sum(len(each.images) for each in generations)
    if not account.counts_tokens:
        account.use(images=image_count)
        yield
        return
    estimate = await _estimate(request.app, generations, deadline)
    reserved = sum(estimate.of_prompt(each) + estimate.of_outputs(each) for each in generations)
    taking = account.use(images=image_count, tokens=reserved)
    try:
        yield
    finally:
        # Whatever that raises: while it is under way, a cancellation may look like an error.
        is_gone = request.transport is None
        untold = estimate.of_prompt if is_gone else _nothing
        if taking:
            taking.settle(request[RECORD].used_token_count(untold))


def _nothing(_: GenerationRequest) -> int:
    """Tells the tokens of a prompt that was refused, or not read for another reason.

    Where its client is gone nobody says so, and the service may have read it.
    """
    return 0


async def _estimate(
    app: web.Application, generations: Sequence[GenerationRequest], deadline: float
) -> TokenEstimate:
    model = generations[0].model
    llm = await app[PAIR].llm_info(model, deadline)
    has_images = any(each.images for each in generations)
    vision = await app[PAIR].vision_info(model, deadline) if has_images else None
    return TokenEstimate(llm.max_context_token_count, vision)


def _check(caller: Caller, generation: GenerationRequest) -> None:
    check_model(caller, generation.model)
    # The contract's priority is the other way round: the highest goes first.
    if priority := -generation.fields.get("priority", 0):
        # To name a field takes a look at all that there are: 0.15 ms.
        check_priority(caller, priority, generation.name_field("priority"))
    for image in generation.images:
        if scheme_of(image.source.url) == "file":
            check_file(caller, image.name_field("url"))
