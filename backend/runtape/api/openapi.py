"""OpenAPI of the hot routes, which FastAPI does not serve and so does not know."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from runtape.api.models import EXECUTION_EXAMPLE
from runtape.api.problems import documented
from runtape.api.requests import execute_schema

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


def _execute() -> dict[str, Any]:
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


def _events(operation_id: str) -> dict[str, Any]:
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


def _problems(*codes: str) -> dict[str, Any]:
    return {str(status): response for status, response in documented(*codes).items()}


def install(app: FastAPI) -> None:
    """Let ``app.openapi()`` tell of the hot routes too."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            _, components = execute_schema()
            document.setdefault("components", {}).setdefault("schemas", {}).update(components)
            document["paths"]["/api/v1/execute"] = {"post": _execute()}
            document["paths"]["/api/v1/events/{execution_id}"] = {"get": _events("stream_execution")}
            document["paths"]["/api/v1/events/executions/{execution_id}"] = {"get": _events("stream_execution_events")}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi
