"""Logging in and out, and who one is."""

from typing import Annotated, Any, Literal

from dishka.integrations.fastapi import DishkaRoute, FromDishka
from fastapi import APIRouter, Form, Request, Response
from pydantic import BaseModel, Field, SecretStr

from runtape.api.access import PRINCIPAL_KEY, peer_of, session_cookie
from runtape.api.dependencies import PrincipalDep
from runtape.api.problems import documented
from runtape.application.identity import Identity
from runtape.domain.identity import CredentialKind, Principal, Role, Scope

router = APIRouter(route_class=DishkaRoute, tags=["auth"])

CSRF_COOKIE = "csrf_token"
"""Readable by our page, which sends it back as ``X-CSRF-Token``."""

_USER = {"username": "admin", "role": "admin"}
_CSRF = "6c1f9f8e1f0f4a52b7d5c2a1f70b9d0e3a4d5c6b7a8f9e0d1c2b3a4f5e6d7c8b"


def _example(value: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"application/json": {"example": value}}}}


class LoggedIn(BaseModel):
    """A session has begun; its token is in the cookie."""

    message: str
    username: str
    role: Role
    csrf_token: str = Field(description="goes with every changing request of this session, as X-CSRF-Token")


class Message(BaseModel):
    """A sentence."""

    message: str


class Me(BaseModel):
    """Whom the credentials stand for, and what they allow."""

    user_id: str
    username: str
    role: Role
    project_id: str
    scopes: list[Scope]
    credential: CredentialKind
    csrf_token: str | None = Field(description="of the session; null with an API key")


@router.post(
    "/auth/login",
    summary="Begin a session",
    responses={
        **_example({"message": "logged in", **_USER, "csrf_token": _CSRF}),
        **documented("csrf_failed", "unauthenticated", "validation_failed", "rate_limited"),
    },
)
async def login(
    request: Request,
    response: Response,
    identity: FromDishka[Identity],
    username: Annotated[str, Form(min_length=1, max_length=200, examples=["admin"])],
    password: Annotated[SecretStr, Form(min_length=1, max_length=1024, examples=["correct horse battery staple"])],
    grant_type: Annotated[Literal["password"] | None, Form(description="as OAuth2 clients send it")] = None,
) -> LoggedIn:
    """Check the password and set the session cookie.

    After five failures in 15 minutes, of the name or from the address, every attempt is refused for a while.
    """
    begun = await identity.login(username, password.get_secret_value(), peer_of(request.scope))
    csrf_token = begun.principal.csrf_token or ""
    tls = request.scope["scheme"] == "https"
    response.set_cookie(
        session_cookie(tls), begun.token, max_age=begun.lifetime_s, secure=tls, httponly=True, samesite="strict"
    )
    response.set_cookie(CSRF_COOKIE, csrf_token, max_age=begun.lifetime_s, secure=tls, samesite="strict")
    return LoggedIn(
        message="logged in",
        username=begun.principal.username,
        role=begun.principal.role,
        csrf_token=csrf_token,
    )


@router.post(
    "/auth/logout",
    summary="End the session",
    responses={**_example({"message": "logged out"}), **documented("unauthenticated", "csrf_failed", "rate_limited")},
)
async def logout(request: Request, response: Response, identity: FromDishka[Identity]) -> Message:
    """Revoke the session for good and clear its cookies; without a session, only that."""
    principal: Principal | None = request.scope.get(PRINCIPAL_KEY)
    if principal is not None:
        await identity.logout(principal)
    tls = request.scope["scheme"] == "https"
    response.delete_cookie(session_cookie(tls), secure=tls, httponly=True, samesite="strict")
    response.delete_cookie(CSRF_COOKIE, secure=tls, samesite="strict")
    return Message(message="logged out")


@router.get(
    "/auth/me",
    summary="Who am I",
    responses={
        **_example(
            {
                "user_id": "01997d10-6a3e-7c51-9a0e-3c1df2a4b5c6",
                **_USER,
                "project_id": "01997d10-6a3e-7c51-9a0e-3c1df2a4b5c7",
                "scopes": ["admin", "execute", "read"],
                "credential": "session",
                "csrf_token": _CSRF,
            }
        ),
        **documented("unauthenticated", "rate_limited"),
    },
)
async def me(principal: PrincipalDep) -> Me:
    """Return whom the credentials stand for; a page that was loaded anew gets its CSRF token here."""
    return Me(
        user_id=principal.user_id,
        username=principal.username,
        role=principal.role,
        project_id=principal.project_id,
        scopes=sorted(principal.scopes),
        credential=principal.credential,
        csrf_token=principal.csrf_token,
    )
