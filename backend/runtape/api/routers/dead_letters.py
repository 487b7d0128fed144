"""Dead letters, for administrators: looking, retrying, discarding, and when they are retried by themselves."""

import re
from typing import Annotated, Any

from dishka.integrations.fastapi import DishkaRoute, FromDishka
from fastapi import APIRouter, Path, Query
from pydantic import AwareDatetime

from runtape.api.access import require
from runtape.api.dependencies import PrincipalDep
from runtape.api.models import EXECUTION_EXAMPLE
from runtape.api.models_dead_letters import (
    LETTER_EXAMPLE,
    DiscardManyRequest,
    DiscardRequest,
    LetterAnswer,
    LetterList,
    ManyAnswer,
    ManyRequest,
    PolicyRequest,
    StatsAnswer,
    TopicAnswer,
    TopicList,
    TopicPolicyAnswer,
    WholeLetterAnswer,
)
from runtape.api.problems import documented
from runtape.application.dead_letter_queries import DeadLetterQueries
from runtape.application.dead_letters import DeadLetters, LetterOutcome
from runtape.domain.dead_letter import FailureKind, LetterStatus, RetryPolicy
from runtape.domain.errors import ValidationFailed
from runtape.domain.events import EXECUTION_EVENTS
from runtape.domain.identity import Scope
from runtape.domain.ids import DeadLetterId
from runtape.ports.dead_letters import DeadLetterFilter

router = APIRouter(prefix="/admin/dlq", route_class=DishkaRoute, tags=["dead letters"])

PAGE_LIMIT = 200
_CURSOR = re.compile(r"[1-9][0-9]{0,17}\Z", re.ASCII)
_READ = ("unauthenticated", "scope_missing", "validation_failed", "rate_limited")
_WRITE = (*_READ, "csrf_failed", "malformed_json", "body_too_large")

LetterIdPath = Annotated[str, Path(alias="id", examples=[LETTER_EXAMPLE])]
TopicPath = Annotated[str, Path(max_length=200, examples=[EXECUTION_EVENTS])]


@router.get("/stats", response_model=StatsAnswer, responses=documented(*_READ))
async def dead_letter_stats(principal: PrincipalDep, queries: FromDishka[DeadLetterQueries]) -> StatsAnswer:
    """Count dead letters by status, topic, consumer group and type."""
    require(principal, Scope.ADMIN)
    return StatsAnswer.model_validate(await queries.stats())


@router.get("/topics", response_model=TopicList, responses=documented(*_READ))
async def dead_letter_topics(principal: PrincipalDep, queries: FromDishka[DeadLetterQueries]) -> TopicList:
    """Summarise each topic that has dead letters, with the policy of its retries."""
    require(principal, Scope.ADMIN)
    return TopicList(topics=[TopicAnswer.model_validate(each) for each in await queries.topics()])


@router.get("/messages", response_model=LetterList, responses=documented(*_READ))
async def list_dead_letters(
    principal: PrincipalDep,
    queries: FromDishka[DeadLetterQueries],
    status: LetterStatus | None = None,
    topic: Annotated[str | None, Query(examples=[EXECUTION_EVENTS])] = None,
    type: Annotated[str | None, Query(examples=["execution.completed"])] = None,
    group: Annotated[str | None, Query(examples=["saga-orchestrator"])] = None,
    key: Annotated[str | None, Query(examples=[EXECUTION_EXAMPLE])] = None,
    failure: FailureKind | None = None,
    stack_digest: Annotated[str | None, Query(examples=["9f86d081884c7d65"])] = None,
    start_time: Annotated[
        AwareDatetime | None, Query(description="died first at this time or later", examples=["2026-01-31T12:00:00Z"])
    ] = None,
    end_time: Annotated[
        AwareDatetime | None, Query(description="died first before this time", examples=["2026-02-01T00:00:00Z"])
    ] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE_LIMIT)] = 50,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the page before", examples=[LETTER_EXAMPLE])
    ] = None,
) -> LetterList:
    """List dead letters, newest first."""
    require(principal, Scope.ADMIN)
    if cursor is not None and not _CURSOR.match(cursor):
        raise ValidationFailed(f'"{cursor[:80]}" is no cursor; send the next_cursor of the page before', field="cursor")
    where = DeadLetterFilter(
        statuses=frozenset({status}) if status is not None else None,
        topic=topic,
        type=type,
        group=group,
        key=key,
        failure=failure,
        stack_digest=stack_digest,
        from_=start_time,
        before=end_time,
    )
    page, next_cursor = await queries.page(where, limit, DeadLetterId(cursor) if cursor is not None else None)
    return LetterList(messages=[LetterAnswer.of(letter) for letter in page], next_cursor=next_cursor)


@router.get("/messages/{id}", response_model=WholeLetterAnswer, responses=documented(*_READ, "not_found"))
async def get_dead_letter(
    letter_id: LetterIdPath, principal: PrincipalDep, dead_letters: FromDishka[DeadLetters]
) -> WholeLetterAnswer:
    """Show a dead letter with the original bytes of its message."""
    require(principal, Scope.ADMIN)
    return WholeLetterAnswer.of(await dead_letters.get(DeadLetterId(letter_id)))


@router.post(
    "/messages/{id}/retry",
    response_model=LetterAnswer,
    responses=documented(*_WRITE, "not_found", "dead_letter_blocked", "dead_letter_resolved", "unavailable"),
)
async def retry_dead_letter(
    letter_id: LetterIdPath, principal: PrincipalDep, dead_letters: FromDishka[DeadLetters]
) -> LetterAnswer:
    """Run the handler on the original bytes now, and show how the letter stands after it.

    Only the first letter of a key can be retried.  Those behind it follow by themselves.  Retrying one that was
    retried has no effect.
    """
    require(principal, Scope.ADMIN)
    return LetterAnswer.of(await dead_letters.retry(DeadLetterId(letter_id), principal.username))


@router.post("/retry", response_model=ManyAnswer, responses=documented(*_WRITE, "unavailable"))
async def retry_dead_letters(
    body: ManyRequest, principal: PrincipalDep, dead_letters: FromDishka[DeadLetters]
) -> ManyAnswer:
    """Retry many letters, oldest first, and tell what became of each."""
    require(principal, Scope.ADMIN)
    return _many(body, *await dead_letters.retry_all(*body.where(), principal.username))


@router.post(
    "/messages/{id}/discard",
    response_model=LetterAnswer,
    responses=documented(*_WRITE, "not_found", "dead_letter_resolved", "unavailable"),
)
async def discard_dead_letter(
    letter_id: LetterIdPath, body: DiscardRequest, principal: PrincipalDep, dead_letters: FromDishka[DeadLetters]
) -> LetterAnswer:
    """Close a letter without handling its message; the next one of its key follows by itself."""
    require(principal, Scope.ADMIN)
    return LetterAnswer.of(await dead_letters.discard(DeadLetterId(letter_id), body.reason, principal.username))


@router.post("/discard", response_model=ManyAnswer, responses=documented(*_WRITE, "unavailable"))
async def discard_dead_letters(
    body: DiscardManyRequest, principal: PrincipalDep, dead_letters: FromDishka[DeadLetters]
) -> ManyAnswer:
    """Discard many letters, oldest first, and tell what became of each."""
    require(principal, Scope.ADMIN)
    return _many(body, *await dead_letters.discard_all(*body.where(), body.reason, principal.username))


@router.get("/retry-policy/{topic}", response_model=TopicPolicyAnswer, responses=documented(*_READ))
async def get_retry_policy(
    topic: TopicPath, principal: PrincipalDep, dead_letters: FromDishka[DeadLetters]
) -> TopicPolicyAnswer:
    """Show the policy that holds for a topic, also where nobody has set one."""
    require(principal, Scope.ADMIN)
    return _shown(topic, await dead_letters.policy(topic))


@router.put("/retry-policy/{topic}", response_model=TopicPolicyAnswer, responses=documented(*_WRITE, "unavailable"))
async def put_retry_policy(
    topic: TopicPath, body: PolicyRequest, principal: PrincipalDep, dead_letters: FromDishka[DeadLetters]
) -> TopicPolicyAnswer:
    """Set the policy of a topic, for what fails from now on.

    `manual` also takes the topic's letters off the schedule; any other policy leaves those that have none to you.
    """
    require(principal, Scope.ADMIN)
    await dead_letters.set_policy(topic, body.policy())
    return _shown(topic, await dead_letters.policy(topic))


def _many(body: ManyRequest, outcomes: list[LetterOutcome], more: bool) -> ManyAnswer:
    found = {each.id for each in outcomes}
    absent = [each for each in dict.fromkeys(body.ids or ()) if each not in found]
    missing = [LetterOutcome(DeadLetterId(each), "not_found", "there is no such letter") for each in absent]
    return ManyAnswer.of([*outcomes, *missing], more)


def _shown(topic: str, policy: RetryPolicy) -> TopicPolicyAnswer:
    fields: dict[str, Any] = {name: getattr(policy, name) for name in RetryPolicy.__dataclass_fields__}
    return TopicPolicyAnswer(topic=topic, **fields)
