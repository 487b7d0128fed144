"""Which kinds of records are removed in time, whatever keeps them."""

from datetime import timedelta

from runtape.application.dead_letters import DeadLetters
from runtape.application.replaying import ExpiredReplaySessions
from runtape.application.retention import Retention, RetentionRule
from runtape.ports.clock import Clock
from runtape.ports.events import EventStore
from runtape.ports.notifications import NotificationStore
from runtape.ports.retention import Expirable
from runtape.runtime.settings import RetentionSettings


def retention(
    keep: RetentionSettings,
    clock: Clock,
    *,
    executions: Expirable,
    tapes: Expirable,
    events: Expirable,
    archived_events: EventStore,
    dead_letters: DeadLetters,
    notifications: NotificationStore,
    replays: ExpiredReplaySessions,
) -> Retention:
    """Return the sweeps of all kinds; each is kept for its own time."""
    kinds: tuple[tuple[str, Expirable, float | None], ...] = (
        ("executions", executions, keep.executions_days),
        ("tapes", tapes, keep.tapes_days),
        ("events", events, keep.events_days),
        ("archived_events", archived_events, keep.events_days),
        ("dead_letters", dead_letters, keep.dead_letters_days),
        ("notifications", notifications, keep.notifications_days),
        ("replays", replays, keep.replays_days),
    )
    rules = [RetentionRule(name, kind, timedelta(days=days) if days else None) for name, kind, days in kinds]
    return Retention(rules=rules, clock=clock)
