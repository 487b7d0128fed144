"""Replay sessions and rebuilds, for administrators.

None of this runs an execution again: that is ``POST /executions/{id}/retry``, and makes a new execution.
"""

from functools import partial
from typing import Annotated, Any

from dishka.integrations.fastapi import DishkaRoute, FromDishka
from fastapi import APIRouter, Header, Path, Query
from fastapi.responses import Response

from runtape.api.access import require
from runtape.api.dependencies import PrincipalDep
from runtape.api.downloads import DOWNLOADED, Download, WantedDep
from runtape.api.models_replay import (
    SESSION_EXAMPLE,
    EventReplayAnswer,
    EventReplayRequest,
    PreviewAnswer,
    RebuildRequest,
    ReplayRequest,
    ReplaySessionAnswer,
    ReplaySessionList,
)
from runtape.api.problems import documented
from runtape.api.responses import FrameResponse
from runtape.application.identity import Identity
from runtape.application.replay_stream import ReplayStreams
from runtape.application.replaying import ReplaySessions
from runtape.application.streaming import Cursor
from runtape.domain.errors import NotFound
from runtape.domain.identity import Scope
from runtape.domain.replay import Pace, ReplaySession, ReplaySessionId, SessionStatus, Target
from runtape.ports.clock import Clock

router = APIRouter(prefix="/admin", route_class=DishkaRoute, tags=["replay (administrators only)"])

_READ = ("unauthenticated", "scope_missing", "validation_failed", "rate_limited")
_CREATE = (*_READ, "malformed_json", "csrf_failed")
_CHANGE = (*_READ, "csrf_failed", "not_found", "session_state_conflict")

SessionIdPath = Annotated[ReplaySessionId, Path(examples=[SESSION_EXAMPLE])]

_FRAMES = """\
id: 7.0.0
event: status
data: {"session_id":"...","status":"running","progress":{"total":400,"replayed":200,"failed":0,"skipped":0}}

id: 12.0.0
event: status
data: {"session_id":"...","status":"completed","progress":{"total":400,"replayed":400,"failed":0,"skipped":0}}

id: 12.0.0
event: end
data: {}

"""
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The session, as `GET` shows it, whenever it has changed, ten times a second at most; `end` is "
        "the last frame. Send the last `id` back as `Last-Event-ID` to hear of later changes alone.",
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _FRAMES}},
    }
}


@router.post("/replay/sessions", status_code=201, response_model=ReplaySessionAnswer, responses=documented(*_CREATE))
async def create_replay_session(
    body: ReplayRequest, principal: PrincipalDep, sessions: FromDishka[ReplaySessions], clock: FromDishka[Clock]
) -> ReplaySessionAnswer:
    """Choose events and count them; nothing is replayed before `start`.

    Replaying tells again what happened. It never runs a program and never changes an execution: to run one again, use
    `POST /executions/{execution_id}/retry`, which makes a new execution.
    """
    require(principal, Scope.ADMIN)
    selection = body.filters.selection(body.max_events)
    session = await sessions.create(principal.username, body.target, selection, body.pace())
    return ReplaySessionAnswer.of(session, clock.now())


@router.get("/replay/sessions", response_model=ReplaySessionList, responses=documented(*_READ))
async def list_replay_sessions(
    principal: PrincipalDep,
    sessions: FromDishka[ReplaySessions],
    clock: FromDishka[Clock],
    status: SessionStatus | None = None,
    target: Target | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[
        str | None, Query(max_length=200, description="`next_cursor` of the page before", examples=[SESSION_EXAMPLE])
    ] = None,
) -> ReplaySessionList:
    """List replay sessions and rebuilds, newest first."""
    require(principal, Scope.ADMIN)
    before = ReplaySessionId(cursor) if cursor is not None else None
    page, following = await sessions.list(limit, before, status=status, target=target)
    now = clock.now()
    return ReplaySessionList(sessions=[ReplaySessionAnswer.of(each, now) for each in page], next_cursor=following)


@router.get(
    "/replay/sessions/{session_id}", response_model=ReplaySessionAnswer, responses=documented(*_READ, "not_found")
)
async def get_replay_session(
    session_id: SessionIdPath, principal: PrincipalDep, sessions: FromDishka[ReplaySessions], clock: FromDishka[Clock]
) -> ReplaySessionAnswer:
    """Show a session with its progress."""
    require(principal, Scope.ADMIN)
    return ReplaySessionAnswer.of(await sessions.get(session_id), clock.now())


@router.post("/replay/sessions/{session_id}/start", response_model=ReplaySessionAnswer, responses=documented(*_CHANGE))
async def start_replay_session(
    session_id: SessionIdPath, principal: PrincipalDep, sessions: FromDishka[ReplaySessions], clock: FromDishka[Clock]
) -> ReplaySessionAnswer:
    """Begin to replay."""
    require(principal, Scope.ADMIN)
    return ReplaySessionAnswer.of(await sessions.start(session_id), clock.now())


@router.post("/replay/sessions/{session_id}/pause", response_model=ReplaySessionAnswer, responses=documented(*_CHANGE))
async def pause_replay_session(
    session_id: SessionIdPath, principal: PrincipalDep, sessions: FromDishka[ReplaySessions], clock: FromDishka[Clock]
) -> ReplaySessionAnswer:
    """Stop for now; the answer's progress is where it stopped."""
    require(principal, Scope.ADMIN)
    return ReplaySessionAnswer.of(await sessions.pause(session_id), clock.now())


@router.post("/replay/sessions/{session_id}/resume", response_model=ReplaySessionAnswer, responses=documented(*_CHANGE))
async def resume_replay_session(
    session_id: SessionIdPath, principal: PrincipalDep, sessions: FromDishka[ReplaySessions], clock: FromDishka[Clock]
) -> ReplaySessionAnswer:
    """Go on where it was paused."""
    require(principal, Scope.ADMIN)
    return ReplaySessionAnswer.of(await sessions.resume(session_id), clock.now())


@router.post("/replay/sessions/{session_id}/cancel", response_model=ReplaySessionAnswer, responses=documented(*_CHANGE))
async def cancel_replay_session(
    session_id: SessionIdPath, principal: PrincipalDep, sessions: FromDishka[ReplaySessions], clock: FromDishka[Clock]
) -> ReplaySessionAnswer:
    """End a session; what it has published or written stands."""
    require(principal, Scope.ADMIN)
    return ReplaySessionAnswer.of(await sessions.cancel(session_id, principal.username), clock.now())


@router.delete("/replay/sessions/{session_id}", status_code=204, responses=documented(*_CHANGE))
async def delete_replay_session(
    session_id: SessionIdPath, principal: PrincipalDep, sessions: FromDishka[ReplaySessions]
) -> None:
    """Remove a session that does not run, with its file; what it has published stays in the log."""
    require(principal, Scope.ADMIN)
    await sessions.delete(session_id)


@router.get(
    "/replay/sessions/{session_id}/status",
    response_class=Response,
    responses={**_STREAM, **documented(*_READ, "not_found")},
)
async def stream_replay_session(
    session_id: SessionIdPath,
    principal: PrincipalDep,
    sessions: FromDishka[ReplaySessions],
    streams: FromDishka[ReplayStreams],
    identity: FromDishka[Identity],
    clock: FromDishka[Clock],
    last_event_id: Annotated[str | None, Header(description="the last `id` received", examples=["7.0.0"])] = None,
) -> Response:
    """Follow the progress of a session as server-sent events."""
    require(principal, Scope.ADMIN)
    await sessions.get(session_id)
    cursor = Cursor.parse(last_event_id) if last_event_id else Cursor()

    def encode(session: ReplaySession) -> bytes:
        return ReplaySessionAnswer.of(session, clock.now()).model_dump_json().encode()

    return FrameResponse(*streams.open(session_id, cursor, encode, partial(identity.confirm, principal)))


@router.get(
    "/replay/sessions/{session_id}/download",
    response_class=Response,
    responses={**DOWNLOADED, **documented(*_READ, "not_found", "range_not_satisfiable")},
)
async def download_replay_session(
    session_id: SessionIdPath, principal: PrincipalDep, sessions: FromDishka[ReplaySessions], wanted: WantedDep
) -> Response:
    """Download what a session with the target `file` has written so far: one event on a line, as JSON."""
    require(principal, Scope.ADMIN)
    session = await sessions.get(session_id)
    if session.target is not Target.FILE:
        raise NotFound(f"session {session_id} writes no file; its target is {session.target}")
    download = Download(f"replay-{session.id}.jsonl", session.file_bytes, None)
    return download.answer(sessions.read_file(session), wanted)


@router.post("/events/replay", response_model=EventReplayAnswer, responses=documented(*_CREATE, "not_found"))
async def replay_events(
    body: EventReplayRequest, principal: PrincipalDep, sessions: FromDishka[ReplaySessions]
) -> EventReplayAnswer:
    """Publish some events to the log again, up to 1,000, or tell what that would be.

    It runs nothing: to run an execution again, use `POST /executions/{execution_id}/retry`.
    """
    require(principal, Scope.ADMIN)
    selection = body.selection()
    preview = await sessions.preview(selection)
    if preview.total == 0:
        raise NotFound("no event matches")
    session = None
    if not body.dry_run:
        session = await sessions.create(principal.username, Target.LOG, selection, Pace(), started=True)
    return EventReplayAnswer(
        dry_run=body.dry_run,
        total_events=preview.total if session is None else session.preview.total,
        preview=PreviewAnswer.of(preview if session is None else session.preview),
        session_id=session and session.id,
        status=session and session.status,
    )


@router.post("/rebuild", status_code=202, response_model=ReplaySessionAnswer, responses=documented(*_CREATE))
async def rebuild(
    body: RebuildRequest, principal: PrincipalDep, sessions: FromDishka[ReplaySessions], clock: FromDishka[Clock]
) -> ReplaySessionAnswer:
    """Make a read model anew from the log, or compare documents with their events; the session tells how it goes.

    Documents are the truth: they are compared, and never changed. Each difference is an entry of `errors`.
    """
    require(principal, Scope.ADMIN)
    return ReplaySessionAnswer.of(await sessions.rebuild(principal.username, body.what), clock.now())
