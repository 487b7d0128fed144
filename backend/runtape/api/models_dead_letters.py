"""The shapes of what administrators send and get about dead letters."""

import base64
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from runtape.api.models import EXECUTION_EXAMPLE, Answer
from runtape.application.dead_letter_queries import Level
from runtape.application.dead_letters import LetterOutcome
from runtape.domain.dead_letter import (
    OPEN,
    DeadLetter,
    FailureKind,
    LetterStatus,
    RetryPolicy,
    Strategy,
)
from runtape.domain.events import EXECUTION_EVENTS
from runtape.domain.ids import DeadLetterId
from runtape.ports.dead_letters import DeadLetterFilter

LETTER_EXAMPLE = "42"
MANY = 1000
"""How many letters one request retries or discards at most."""

_POLICY = {
    "strategy": "exponential",
    "max_retries": 5,
    "base_delay_s": 30.0,
    "max_delay_s": 300.0,
    "multiplier": 2.0,
    "jitter": 0.1,
}
_LETTER: dict[str, Any] = {
    "id": LETTER_EXAMPLE,
    "status": "scheduled",
    "group": "saga-orchestrator",
    "topic": EXECUTION_EVENTS,
    "partition": 0,
    "offset": 4711,
    "key": EXECUTION_EXAMPLE,
    "type": "execution.completed",
    "message_id": f"{EXECUTION_EXAMPLE}.3",
    "failure": "poison",
    "cause": "KeyError: 'exit_code'",
    "stack_digest": "9f86d081884c7d65",
    "attempts": 3,
    "retries": 0,
    "first_at": "2026-01-05T09:30:00Z",
    "last_at": "2026-01-05T09:30:00Z",
    "next_retry_at": "2026-01-05T09:30:30Z",
    "resolved_at": None,
    "resolved_by": None,
    "reason": None,
    "headers": {"correlation_id": "0b8f6f2a1c3d-1f", "causation_id": f"{EXECUTION_EXAMPLE}.2"},
    "size_bytes": 11,
}
_BY_STATUS = {"pending": 1, "scheduled": 2, "retried": 40, "discarded": 0}


def _shown(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(from_attributes=True, json_schema_extra={"example": example})


def _asked(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"example": example})


class LetterAnswer(Answer):
    """A dead letter without its bytes."""

    model_config = _shown(_LETTER)

    id: str
    status: LetterStatus
    group: str = Field(description="the consumer group that could not handle it")
    topic: str
    partition: int
    offset: int
    key: str
    type: str
    message_id: str | None = Field(description="null where the message cannot be decoded")
    failure: FailureKind = Field(description="`parked`: it did not fail itself, it waits behind one that did")
    cause: str
    stack_digest: str | None = Field(description="the same for failures that came the same way; the log has the stack")
    attempts: int = Field(description="calls of the handler")
    retries: int = Field(description="those of them since the message died")
    first_at: datetime
    last_at: datetime
    next_retry_at: datetime | None = None
    resolved_at: datetime | None = None
    resolved_by: str | None = Field(default=None, description="null where the schedule did it")
    reason: str | None = None
    headers: dict[str, str]
    size_bytes: int

    @classmethod
    def of(cls, letter: DeadLetter) -> "LetterAnswer":
        """Show `letter`."""
        return cls(**_fields(letter))


class WholeLetterAnswer(LetterAnswer):
    """A dead letter with its bytes: as text where they are UTF-8, else in base64."""

    model_config = _shown({**_LETTER, "body": '{"version":', "body_b64": None})

    body: str | None = None
    body_b64: str | None = None

    @classmethod
    def of(cls, letter: DeadLetter) -> "WholeLetterAnswer":
        """Show `letter` with its bytes."""
        data = letter.message.body
        try:
            return cls(**_fields(letter), body=data.decode(), body_b64=None)
        except UnicodeDecodeError:
            return cls(**_fields(letter), body=None, body_b64=base64.b64encode(data).decode())


def _fields(letter: DeadLetter) -> dict[str, Any]:
    message = letter.message
    own = {name: getattr(letter, name) for name in LetterAnswer.model_fields if hasattr(letter, name)}
    theirs = {name: getattr(message, name) for name in ("topic", "partition", "offset", "key", "type", "headers")}
    return {**own, **theirs, "size_bytes": len(message.body)}


class LetterList(Answer):
    """A page of dead letters, newest first; `next_cursor` is null on the last one."""

    model_config = _shown({"messages": [_LETTER], "next_cursor": LETTER_EXAMPLE})

    messages: list[LetterAnswer]
    next_cursor: str | None


class StatsAnswer(Answer):
    """How many dead letters there are; the breakdowns count open ones, that is pending or scheduled."""

    model_config = _shown(
        {
            "by_status": _BY_STATUS,
            "open": 3,
            "parked_keys": 2,
            "oldest_open_at": "2026-01-05T09:30:00Z",
            "level": "ok",
            "by_topic": {EXECUTION_EVENTS: 3},
            "by_group": {"saga-orchestrator": 3},
            "by_type": {"execution.completed": 3},
        }
    )

    by_status: dict[LetterStatus, int]
    open: int
    parked_keys: int = Field(description="keys whose messages wait, counted for each consumer group")
    oldest_open_at: datetime | None
    level: Level = Field(description="`warning` from 100 open letters on, `critical` from 1000 on")
    by_topic: dict[str, int]
    by_group: dict[str, int]
    by_type: dict[str, int]


class PolicyAnswer(Answer):
    """When dead letters of a topic are retried by themselves."""

    model_config = _shown(_POLICY)

    strategy: Strategy
    max_retries: int
    base_delay_s: float
    max_delay_s: float
    multiplier: float
    jitter: float


class TopicPolicyAnswer(PolicyAnswer):
    """The policy that holds for a topic."""

    model_config = _shown({"topic": EXECUTION_EVENTS, **_POLICY})

    topic: str


class PolicyRequest(BaseModel):
    """When to retry: `exponential` and `fixed` after a delay, `immediate` at once, `manual` never."""

    model_config = _asked(_POLICY)

    strategy: Strategy
    max_retries: int = Field(ge=0, le=100)
    base_delay_s: float = Field(default=60.0, ge=0, le=86_400, description="of `fixed`, and the first of `exponential`")
    max_delay_s: float = Field(default=1800.0, ge=0, le=86_400, description="of `exponential`")
    multiplier: float = Field(default=2.0, ge=1, le=10, description="of `exponential`")
    jitter: float = Field(default=0.1, ge=0, le=1, description="the fraction by which delays vary, up and down")

    @model_validator(mode="after")
    def _delays_are_in_order(self) -> Self:
        if self.strategy is Strategy.EXPONENTIAL and self.max_delay_s < self.base_delay_s:
            raise ValueError("max_delay_s must not be less than base_delay_s")
        return self

    def policy(self) -> RetryPolicy:
        """Return it as the domain's value."""
        return RetryPolicy(**self.model_dump())


class TopicAnswer(Answer):
    """The dead letters of one topic."""

    topic: str
    by_status: dict[LetterStatus, int]
    open: int
    oldest_open_at: datetime | None
    newest_at: datetime
    policy: PolicyAnswer


class TopicList(Answer):
    """Every topic that has dead letters; there are few enough for one page."""

    model_config = _shown(
        {
            "topics": [
                {
                    "topic": EXECUTION_EVENTS,
                    "by_status": _BY_STATUS,
                    "open": 3,
                    "oldest_open_at": "2026-01-05T09:30:00Z",
                    "newest_at": "2026-01-05T09:31:00Z",
                    "policy": _POLICY,
                }
            ],
            "next_cursor": None,
        }
    )

    topics: list[TopicAnswer]
    next_cursor: str | None = None


class LetterFilter(BaseModel):
    """Which letters: all conditions hold together; without `status`, open ones."""

    model_config = ConfigDict(extra="forbid")

    status: LetterStatus | None = None
    topic: str | None = None
    type: str | None = None
    group: str | None = None
    key: str | None = None
    failure: FailureKind | None = None
    stack_digest: str | None = None
    start_time: AwareDatetime | None = Field(default=None, description="died first at this time or later")
    end_time: AwareDatetime | None = Field(default=None, description="died first before this time")

    def where(self) -> DeadLetterFilter:
        """Return it as the port's value."""
        return DeadLetterFilter(
            statuses=frozenset({self.status}) if self.status is not None else OPEN,
            topic=self.topic,
            type=self.type,
            group=self.group,
            key=self.key,
            failure=self.failure,
            stack_digest=self.stack_digest,
            from_=self.start_time,
            before=self.end_time,
        )


class ManyRequest(BaseModel):
    """Letters by their ids, or by a filter; never all by accident."""

    model_config = _asked({"filter": {"topic": EXECUTION_EVENTS, "stack_digest": "9f86d081884c7d65"}, "limit": 100})

    ids: Annotated[list[str], Field(min_length=1, max_length=MANY)] | None = None
    filter: LetterFilter | None = None
    limit: int = Field(default=100, ge=1, le=MANY, description="how many of those that the filter finds, oldest first")

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        if (self.ids is None) == (self.filter is None):
            raise ValueError("give either ids or a filter")
        return self

    def where(self) -> tuple[DeadLetterFilter, int]:
        """Return what is meant, and how many at most."""
        if self.filter is not None:
            return self.filter.where(), self.limit
        return DeadLetterFilter(ids=frozenset(map(DeadLetterId, self.ids or ()))), MANY


Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]


class DiscardRequest(BaseModel):
    """Why the letter will not be handled."""

    model_config = _asked({"reason": "written by a broken producer"})

    reason: Reason


class DiscardManyRequest(ManyRequest):
    """Which letters will not be handled, and why."""

    model_config = _asked({"ids": [LETTER_EXAMPLE], "reason": "written by a broken producer"})

    reason: Reason


class OutcomeAnswer(Answer):
    """What became of one letter."""

    id: str
    outcome: str = Field(description="its status, or the code of a refusal")
    detail: str | None = None


class ManyAnswer(Answer):
    """What became of each letter, oldest first, and how many there are of each outcome."""

    model_config = _shown(
        {
            "outcomes": [{"id": LETTER_EXAMPLE, "outcome": "retried", "detail": None}],
            "counts": {"retried": 1},
            "more": False,
        }
    )

    outcomes: list[OutcomeAnswer]
    counts: dict[str, int]
    more: bool = Field(description="whether the filter finds more than the limit")

    @classmethod
    def of(cls, outcomes: list[LetterOutcome], more: bool) -> "ManyAnswer":
        """Show `outcomes`."""
        counts: dict[str, int] = {}
        for each in outcomes:
            counts[each.outcome] = counts.get(each.outcome, 0) + 1
        return cls(outcomes=[OutcomeAnswer.model_validate(each) for each in outcomes], counts=counts, more=more)
