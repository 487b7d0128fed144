"""OpenAPI of the hot routes, which FastAPI does not serve and so does not know."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from runtape.api.health import CHALLENGE_CHARACTERS, LIVE, READY
from runtape.api.models import EXECUTION_EXAMPLE, Health, Readiness
from runtape.api.problems import documented
from runtape.api.requests import execute_schema

Operation = dict[str, Any]
"""Of OpenAPI, or a part of one."""

_SSE_EXAMPLE = """\
id: 2.1.0
data: {"event_type":"execution_started","event_id":"...","execution_id":"...","attempt":1,"status":"running"}

id: 2.1.1
event: output
data: {"attempt":1,"seq":1,"stream":"stdout","t_ns":1204511,"text":"1\\n"}

id: 4.1.1
data: {"event_type":"result_stored","event_id":"...","attempt":1,"status":"completed","result":{"exit_code":0}}

id: 4.1.1
event: end
data: {}

"""

_STREAM = {
    "description": "The stream of the execution: lifecycle frames are unnamed, `output`, `gap`, `shutdown` and `end` "
    "are named. Send the last `id` back as `Last-Event-ID` to go on exactly where you were, after `shutdown` too: it "
    "comes when the server stops, and with a `code` and a `detail` when the credentials are valid no longer.",
    "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _SSE_EXAMPLE}},
}


def _execute() -> Operation:
    schema, _ = execute_schema()
    accepted = {
        "type": "object",
        "required": ["execution_id", "status"],
        "properties": {"execution_id": {"type": "string"}, "status": {"type": "string"}},
    }
    return {
        "tags": ["executions"],
        "summary": "Execute",
        "operationId": "execute",
        "description": "Accept a script and answer as soon as that is durable; it runs on its own. With "
        "`Accept: text/event-stream` the answer is the stream of the execution itself.",
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "The same key with the same body gives the same execution for 24 hours.",
                "schema": {"type": "string", "maxLength": 255},
                "example": "order-4711",
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": schema,
                    "examples": {
                        "input": {"value": {"script": "print(input())", "lang": "python", "stdin": "hello\n"}},
                        "packages": {
                            "summary": "with packages from the index",
                            "value": {
                                "script": "import numpy; print(numpy.arange(3).sum())",
                                "lang": "python",
                                "requirements": ["numpy>=2"],
                            },
                        },
                    },
                }
            },
        },
        "responses": {
            "200": {
                "description": "Accepted",
                "content": {
                    "application/json": {
                        "schema": accepted,
                        "example": {"execution_id": EXECUTION_EXAMPLE, "status": "queued"},
                    },
                    **_STREAM["content"],
                },
            },
            **_problems(
                "malformed_json",
                "unauthenticated",
                "scope_missing",
                "csrf_failed",
                "idempotency_conflict",
                "body_too_large",
                "runtime_unknown",
                "version_unknown",
                "limit_out_of_range",
                "script_too_large",
                "invalid_path",
                "requirement_invalid",
                "packages_disabled",
                "validation_failed",
                "rate_limited",
                "queue_full",
                "draining",
            ),
        },
    }


def _events(operation_id: str) -> Operation:
    return {
        "tags": ["executions"],
        "summary": "Stream an execution",
        "operationId": operation_id,
        "description": "First what is already on the tape, then live, until the result is stored.",
        "parameters": [
            {
                "name": "execution_id",
                "in": "path",
                "required": True,
                "schema": {"type": "string"},
                "example": EXECUTION_EXAMPLE,
            },
            {
                "name": "Last-Event-ID",
                "in": "header",
                "required": False,
                "description": "The last `id` that was received; `last_event_id` in the query does the same.",
                "schema": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
                "example": "2.1.7",
            },
        ],
        "responses": {
            "200": _STREAM,
            **_problems("unauthenticated", "scope_missing", "not_found", "validation_failed", "rate_limited"),
        },
    }


_REF = "#/components/schemas/{model}"


def _health(name: str, summary: str, description: str, answers: Mapping[str, tuple[type[BaseModel], str]]) -> Operation:
    return {
        "tags": ["health"],
        "summary": summary,
        "operationId": name,
        "description": description,
        "responses": {
            status: {
                "description": told,
                "content": {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}},
            }
            for status, (model, told) in answers.items()
        },
    }


def _live() -> Operation:
    shortest, longest = CHALLENGE_CHARACTERS
    operation = _health(
        "live",
        "Live",
        "Answer while the process can answer at all, and prove which process it is to whoever may know.",
        {"200": (Health, "The process answers")},
    )
    operation["parameters"] = [
        {
            "name": "challenge",
            "in": "query",
            "required": False,
            "description": "random text: `instance_proof` is its HMAC-SHA256 under the `instance` of `server.json`",
            "schema": {"type": "string", "minLength": shortest, "maxLength": longest},
            "example": "5f0c3a9be1d24c67a8f1b2d3c4e5f607",
        }
    ]
    operation["responses"].update(_problems("validation_failed"))
    return operation


def _ready() -> Operation:
    return _health(
        "ready",
        "Ready",
        "Answer 200 when store, log and sandbox answer, 503 with what is wrong otherwise. A cluster accepts runs "
        "without the log, which they wait for: that is `degraded`, with 200.",
        {"200": (Readiness, "A run could be carried out now, or accepted"), "503": (Readiness, "Not ready")},
    )


def _problems(*codes: str) -> Operation:
    return {str(status): response for status, response in documented(*codes).items()}


def install(app: FastAPI) -> None:
    """Let ``app.openapi()`` tell of the hot routes too."""

    def openapi() -> Operation:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            _, components = execute_schema()
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(components)
            schemas.update(
                {model.__name__: model.model_json_schema(ref_template=_REF) for model in (Health, Readiness)}
            )
            document["paths"]["/api/v1/execute"] = {"post": _execute()}
            document["paths"]["/api/v1/events/{execution_id}"] = {"get": _events("stream_execution")}
            document["paths"]["/api/v1/events/executions/{execution_id}"] = {"get": _events("stream_execution_events")}
            document["paths"][LIVE] = {"get": _live()}
            document["paths"][READY] = {"get": _ready()}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi
