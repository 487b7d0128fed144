"""API keys: credentials for programs."""

from datetime import datetime
from typing import Annotated, Any

from dishka.integrations.fastapi import DishkaRoute, FromDishka
from fastapi import APIRouter, Path
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from runtape.api.access import require
from runtape.api.dependencies import PrincipalDep
from runtape.api.problems import documented
from runtape.application.identity import Identity
from runtape.domain.identity import ApiKey, Scope
from runtape.domain.ids import ApiKeyId

router = APIRouter(route_class=DishkaRoute, tags=["api keys"])

_KEY: dict[str, Any] = {
    "id": "01997d10-6a3e-7c51-9a0e-3c1df2a4b5c8",
    "name": "grader",
    "prefix": "rt_1f0a9c3e",
    "scopes": ["execute", "read"],
    "created_at": "2026-01-05T09:30:00Z",
    "expires_at": "2027-01-05T09:30:00Z",
}


class NewKey(BaseModel):
    """A key to make."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"name": "grader", "scopes": ["execute", "read"]}}
    )

    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)] = Field(
        description="what it is for"
    )
    scopes: list[Scope] = Field(min_length=1, max_length=len(Scope), description="at most those of the caller")
    expires_at: AwareDatetime | None = Field(default=None, description="with a zone; null: never")


class Key(BaseModel):
    """A key without its secret; `prefix` is how it begins."""

    id: str
    name: str
    prefix: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None


class MadeKey(Key):
    """A new key with its plain text, which is shown this one time."""

    key: str = Field(description="goes into requests as: Authorization: Bearer <key>")


class Keys(BaseModel):
    """All keys of the user; there are few enough for one page."""

    api_keys: list[Key]
    next_cursor: str | None = None


@router.post(
    "/api-keys",
    status_code=201,
    summary="Make an API key",
    responses={
        201: {
            "content": {
                "application/json": {
                    "example": {**_KEY, "key": "rt_1f0a9c3e_Jx0c4lWkq0fK9yWm3o7v5T1uZs8aR2bEdGhIjKlMnOp"}
                }
            }
        },
        **documented(
            "malformed_json",
            "unauthenticated",
            "scope_missing",
            "csrf_failed",
            "body_too_large",
            "validation_failed",
            "rate_limited",
        ),
    },
)
async def create(body: NewKey, principal: PrincipalDep, identity: FromDishka[Identity]) -> MadeKey:
    """Make a key that allows no more than the caller may do.

    It takes a login, or a key with the scope `admin`.
    """
    key, plain = await identity.create_key(principal, body.name, body.scopes, body.expires_at)
    return MadeKey(**_shown(key), key=plain)


@router.get(
    "/api-keys",
    summary="List API keys",
    responses={
        200: {"content": {"application/json": {"example": {"api_keys": [_KEY], "next_cursor": None}}}},
        **documented("unauthenticated", "scope_missing", "rate_limited"),
    },
)
async def list_keys(principal: PrincipalDep, identity: FromDishka[Identity]) -> Keys:
    """Return the caller's keys, oldest first, those that have expired too."""
    require(principal, Scope.READ)
    return Keys(api_keys=[Key(**_shown(key)) for key in await identity.list_keys(principal)])


@router.delete(
    "/api-keys/{id}",
    status_code=204,
    summary="Revoke an API key",
    responses={
        204: {"description": "The key is revoked"},
        **documented(
            "unauthenticated", "scope_missing", "csrf_failed", "not_found", "validation_failed", "rate_limited"
        ),
    },
)
async def revoke(
    key_id: Annotated[str, Path(alias="id", examples=[_KEY["id"]])],
    principal: PrincipalDep,
    identity: FromDishka[Identity],
) -> None:
    """Revoke one of the caller's keys at once; somebody else's is not found."""
    await identity.revoke_key(principal, ApiKeyId(key_id))


def _shown(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "scopes": sorted(key.scopes),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
    }
