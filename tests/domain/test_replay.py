"""Replay sessions as a state machine."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtape.domain import replay
from runtape.domain.errors import SessionStateConflict
from runtape.domain.events import MESSAGE_TYPES, POD_COMMANDS
from runtape.domain.replay import (
    FAULTS,
    LONGEST_GAP_S,
    Advance,
    Fault,
    Pace,
    Preview,
    ReplaySession,
    ReplaySessionId,
    SessionStatus,
    Target,
    evolve_all,
)
from tests.clocks import START

SECOND = timedelta(seconds=1)
LATER = START + timedelta(seconds=10)


def a_session(total: int = 10, target: Target = Target.LOG) -> ReplaySession:
    return ReplaySession(
        id=ReplaySessionId("session-1"),
        target=target,
        created_by="admin",
        created_at=START,
        preview=Preview(total=total),
        until="100",
    )


def running(total: int = 10, target: Target = Target.LOG) -> ReplaySession:
    session = a_session(total, target)
    return evolve_all(session, replay.start(session, START))


def advanced(session: ReplaySession, **done: Any) -> ReplaySession:
    return evolve_all(session, replay.advance(session, Advance(position="5", **done)))


COMMANDS = {
    "start": replay.start,
    "pause": replay.pause,
    "resume": replay.resume,
    "cancel": lambda session, at: replay.cancel(session, at, "admin"),
}
ALLOWED = {
    ("created", "start"): "running",
    ("created", "cancel"): "cancelled",
    ("running", "start"): "running",
    ("running", "pause"): "paused",
    ("running", "resume"): "running",
    ("running", "cancel"): "cancelled",
    ("paused", "pause"): "paused",
    ("paused", "resume"): "running",
    ("paused", "cancel"): "cancelled",
    ("cancelled", "cancel"): "cancelled",
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("status", SessionStatus)
def test_a_command_leads_where_the_table_says_or_is_refused(status: SessionStatus, name: str) -> None:
    session = replace(a_session(), status=status)
    expected = ALLOWED.get((status, name))
    if expected is None:
        with pytest.raises(SessionStateConflict, match=f"is {status}"):
            COMMANDS[name](session, LATER)
        return
    events = COMMANDS[name](session, LATER)
    assert evolve_all(session, events).status == expected
    assert bool(events) == (expected != status)


@given(st.lists(st.sampled_from([*COMMANDS, "advance", "take_up", "complete", "fail"])))
def test_versions_count_the_events_and_nothing_changes_after_the_end(names: list[str]) -> None:
    session = a_session(total=1000)
    for name in names:
        before = session
        try:
            match name:
                case "advance":
                    events = replay.advance(session, Advance(position="7", replayed=1))
                case "take_up":
                    events = replay.take_up(session, LATER)
                case "complete":
                    events = replay.complete(session, LATER)
                case "fail":
                    events = replay.fail(session, LATER, "why")
                case _:
                    events = COMMANDS[name](session, LATER)
        except SessionStateConflict:
            continue
        session = evolve_all(session, events)
        assert session.version == before.version + len(events)
        assert not (before.status.ended and events)
        assert (session.ended_at is not None) == session.status.ended
        if before.status is not SessionStatus.RUNNING:
            assert session.done == before.done


def test_what_was_counted_and_is_gone_was_skipped() -> None:
    session = advanced(running(total=10), replayed=6, failed=1)
    ended = evolve_all(session, replay.complete(session, LATER))
    assert (ended.status, ended.replayed, ended.failed, ended.skipped) == ("completed", 6, 1, 3)
    assert "3 events" in ended.faults[-1].reason
    assert ended.done == ended.preview.total


def test_of_a_rebuild_nothing_is_said_to_be_gone() -> None:
    session = advanced(running(total=10, target=Target.EVENT_INDEX), replayed=6)
    ended = evolve_all(session, replay.complete(session, LATER, "digest"))
    assert (ended.status, ended.skipped, ended.digest_after) == ("completed", 0, "digest")


def test_faults_are_bounded_and_all_of_them_counted() -> None:
    session = running(total=1000)
    for number in range(FAULTS):
        faults = (Fault(f"a{number}", "why"), Fault(f"b{number}", "why"))
        step = Advance(position=str(number), failed=2, faults=faults)
        session = evolve_all(session, replay.advance(session, step))
    assert session.failed == 2 * FAULTS
    assert len(session.faults) == FAULTS
    assert session.faults[0].subject == "a0"


def test_rate_and_end_are_of_the_time_since_it_was_taken_up() -> None:
    session = advanced(running(total=100), replayed=50)
    assert session.rate(LATER) is None
    session = evolve_all(session, replay.take_up(session, LATER))
    session = advanced(session, replayed=20)
    now = LATER + 2 * SECOND
    assert session.rate(now) == 10.0
    assert session.estimated_end(now) == now + 3 * SECOND
    paused = evolve_all(session, replay.pause(session, now))
    assert paused.estimated_end(now) is None


class TestPace:
    def test_without_a_speed_nothing_waits(self) -> None:
        assert Pace().gap_s(START, LATER) == 0
        assert not Pace().paced

    @pytest.mark.parametrize(("speed", "gap_s"), [(1.0, 2.0), (10.0, 0.2), (100.0, 0.02), (0.5, 4.0)])
    def test_gaps_are_divided_by_the_speed(self, speed: float, gap_s: float) -> None:
        assert Pace(speed).gap_s(START, START + 2 * SECOND) == pytest.approx(gap_s)

    def test_long_silences_are_cut_unless_they_are_asked_for(self) -> None:
        assert Pace(1.0).gap_s(START, LATER) == LONGEST_GAP_S
        assert Pace(1.0, preserve_timestamps=True).gap_s(START, LATER) == 10
        assert Pace(None, preserve_timestamps=True).gap_s(START, LATER) == 10
        assert Pace(2.0, preserve_timestamps=True).gap_s(START, LATER) == 5

    def test_time_that_goes_back_is_no_wait(self) -> None:
        assert Pace(1.0).gap_s(LATER, START) == 0


@pytest.mark.parametrize("name", MESSAGE_TYPES)
def test_events_may_go_to_the_log_again_and_commands_never(name: str) -> None:
    assert (replay.refusal(name) is None) == (MESSAGE_TYPES[name].topic != POD_COMMANDS)


def test_a_type_that_is_not_known_any_more_is_not_published() -> None:
    assert replay.refusal("execution.exploded") is not None


@pytest.mark.parametrize("status", SessionStatus)
def test_what_runs_or_is_paused_cannot_be_removed(status: SessionStatus) -> None:
    session = replace(a_session(), status=status)
    if status in (SessionStatus.RUNNING, SessionStatus.PAUSED):
        with pytest.raises(SessionStateConflict):
            replay.check_deletable(session)
    else:
        replay.check_deletable(session)
