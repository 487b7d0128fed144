"""What the service tells about itself: health, limits, examples, its OpenAPI; and how much it allows."""

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.server import ADMIN_PASSWORD, Client, Server
from tests.e2e.test_refusals import PATHS, assert_problem

BODY = {"script": "print 1", "lang": "python"}


# Health and catalogue


async def test_health_needs_no_credentials(simulated: Server) -> None:
    async with simulated.client(None) as nobody:
        live = await nobody.get("/health/live")
        assert (live.status_code, live.json()["status"]) == (200, "ok")
        assert live.json()["uptime_s"] > 0
        ready = await nobody.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        assert set(ready.json()["parts"]) >= {"store", "log", "sandbox", "service"}
        assert set(ready.json()["parts"].values()) == {"ok"}


@pytest.mark.embedded
async def test_server_proves_that_it_is_the_one_of_its_folder_and_tells_its_secret_to_nobody(
    simulated: Server,
) -> None:
    told = json.loads((simulated.data / "server.json").read_text())
    assert (simulated.data / "server.json").stat().st_mode & 0o777 == 0o600
    async with simulated.client(None) as nobody:
        for challenge in ("a" * 16, "0123456789abcdef" * 8):
            answer = await nobody.get("/health/live", params={"challenge": challenge})
            proof = hmac.new(told["instance"].encode(), challenge.encode(), hashlib.sha256).hexdigest()
            assert answer.json()["instance_proof"] == proof
            assert told["instance"] not in answer.text
        assert (await nobody.get("/health/live")).json()["instance_proof"] is None
        for challenge in ("", "a" * 15, "a" * 129):
            refused = await nobody.get("/health/live", params={"challenge": challenge})
            assert_problem(refused, 422, "validation_failed", "challenge")


@pytest.mark.embedded
async def test_server_is_not_ready_while_its_sandbox_fails(simulated: Server) -> None:
    async with simulated.client(None) as nobody:
        simulated.tell("sandbox broken")
        ready = await nobody.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "not_ready")
        assert ready.json()["parts"]["sandbox"] == "no user namespaces; allow them"
        assert ready.json()["parts"]["store"] == "ok"
        assert (await nobody.get("/health/live")).status_code == 200
        simulated.tell("sandbox mended")
        assert (await nobody.get("/health/ready")).status_code == 200


async def test_limits_are_those_that_hold(client: Client) -> None:
    limits = (await client.get("/k8s-limits")).json()
    assert limits["script_bytes"] == 1 << 20
    assert limits["body_bytes"] == 10 << 20
    assert limits["files"] == 100
    expected = {"wall_s": (10, 300), "cpu_s": (10, 300), "memory_mb": (256, 4096), "processes": (64, 512)}
    for name, (default, maximum) in {**expected, "output_bytes": (1 << 20, 64 << 20)}.items():
        assert (limits["default"][name], limits["maximum"][name]) == (default, maximum), name
        assert (await client.post("/execute", json={**BODY, "limits": {name: maximum}})).status_code == 200, name
    runtimes = limits["supported_runtimes"]
    assert runtimes["python"] == {"versions": ["3.11"], "file_name": "main.py", "packages": True}
    examples = (await client.get("/example-scripts")).json()["scripts"]
    assert examples.keys() == runtimes.keys()


# Rate limits


@pytest.mark.embedded  # the allowance is a setting of the server's
async def test_allowance_is_told_on_every_answer_and_then_refused(serve: Callable[..., Server]) -> None:
    server = serve(rate_limits__executions_per_minute=3, rate_limits__calls_per_minute=7)
    async with server.client() as client:
        remaining: list[str] = []
        accepted: list[str] = []
        for body in ({**BODY}, {**BODY, "lang": "cobol"}, {**BODY}):
            answer = await client.post("/execute", json=body)
            assert answer.headers["x-ratelimit-limit"] == "3"
            assert int(answer.headers["x-ratelimit-reset"]) > 0
            remaining.append(answer.headers["x-ratelimit-remaining"])
            if answer.status_code == 200:
                accepted.append(answer.json()["execution_id"])
        assert remaining == ["2", "1", "0"]
        forged = {"x-forwarded-for": "203.0.113.7", "x-real-ip": "203.0.113.7", "forwarded": "for=203.0.113.7"}
        for headers in ({}, forged, {"accept": "text/event-stream"}):
            answer = await client.post("/execute", json=BODY, headers=headers)
            assert_problem(answer, 429, "rate_limited")
            assert 1 <= int(answer.headers["retry-after"]) <= 20
            assert answer.json()["retry_after_s"] == int(answer.headers["retry-after"])
            assert answer.headers["x-ratelimit-remaining"] == "0"
        assert (await client.post(f"/executions/{accepted[0]}/retry")).status_code == 429

        calls = [
            await client.get("/user/executions"),
            await client.get("/executions/none"),
            await client.get("/nothing"),
            await client.http.put("/execute"),
            await client.post(f"/executions/{accepted[0]}/cancel", content=b"{"),
            await client.get(f"/events/{accepted[0]}"),
            await client.get("/openapi.json"),
        ]
        assert [answer.headers["x-ratelimit-remaining"] for answer in calls] == ["6", "5", "4", "3", "2", "1", "0"]
        assert {answer.headers["x-ratelimit-limit"] for answer in calls} == {"7"}
        listed = [execution["execution_id"] for execution in calls[0].json()["executions"]]
        assert listed == accepted[::-1]
        assert_problem(await client.get("/user/executions"), 429, "rate_limited")
        for path in ("/health/live", "/health/ready"):
            answer = await client.get(path)
            assert (answer.status_code, answer.headers["x-ratelimit-limit"]) == (200, "7")
            assert answer.headers["x-ratelimit-remaining"] == "7"  # of the peer, who has made no call as nobody
    async with server.client(None) as nobody:
        answer = await nobody.get("/user/executions")
        assert (answer.status_code, answer.headers["x-ratelimit-remaining"]) == (401, "6")


# Sessions


@pytest.fixture
async def session(simulated: Server) -> Any:
    """A client with the cookies of the admin's session, and its CSRF token."""
    async with simulated.client(None) as client:
        answer = await client.post("/auth/login", data={"username": "admin", "password": ADMIN_PASSWORD})
        assert answer.status_code == 200, answer.text
        yield client, answer.json()["csrf_token"], answer


async def test_session_reads_with_its_cookie_and_changes_with_its_token(session: Any, client: Client) -> None:
    browser, token, login = session
    cookie = next(value for value in login.headers.get_list("set-cookie") if value.startswith("session="))
    assert "httponly" in cookie.lower()
    assert "samesite=strict" in cookie.lower()
    assert login.json()["username"] == "admin"
    me = (await browser.get("/auth/me")).json()
    assert (me["username"], me["credential"], me["csrf_token"]) == ("admin", "session", token)

    async def newest() -> list[str]:
        answer = await browser.get("/user/executions?limit=1")
        return [each["execution_id"] for each in answer.json()["executions"]]

    before = await newest()
    for headers in ({}, {"x-csrf-token": "0" * 64}, {"x-csrf-token": token, "origin": "http://evil.example"}):
        for path in ("/execute", "/executions/x/cancel", "/executions/x/retry", "/api-keys", "/auth/logout"):
            assert_problem(await browser.post(path, json=BODY, headers=headers), 403, "csrf_failed")
        assert_problem(await browser.http.delete("/executions/x", headers=headers), 403, "csrf_failed")
    assert await newest() == before

    answer = await browser.post("/execute", json=BODY, headers={"x-csrf-token": token})
    assert answer.status_code == 200
    stream = await browser.get(f"/events/{answer.json()['execution_id']}")
    assert stream.text.endswith("event: end\ndata: {}\n\n")
    assert (await client.result(answer.json()["execution_id"]))["stdout"] == "1\n"


async def test_session_ends_with_its_logout(session: Any, simulated: Server) -> None:
    browser, token, _ = session
    cookies = dict(browser.http.cookies)
    assert (await browser.post("/auth/logout", headers={"x-csrf-token": token})).status_code == 200
    async with simulated.client(None) as thief:
        header = "; ".join(f"{name}={value}" for name, value in cookies.items())
        assert_problem(await thief.get("/auth/me", headers={"cookie": header}), 401, "unauthenticated")


async def test_wrong_password_begins_no_session(simulated: Server) -> None:
    async with simulated.client(None) as nobody:
        answer = await nobody.post("/auth/login", data={"username": "admin", "password": "wrong"})
        assert_problem(answer, 401, "unauthenticated")
        assert "set-cookie" not in answer.headers
        answer = await nobody.post("/auth/login", data={"username": "admin"})
        assert_problem(answer, 422, "validation_failed", "password")


# OpenAPI


@pytest.fixture
async def openapi(client: Client) -> dict[str, Any]:
    answer = await client.get("/openapi.json")
    assert answer.status_code == 200
    return answer.json()


def operations(openapi: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in openapi["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def resolved(openapi: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        found: Any = openapi
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = found
    return schema


def mismatch(openapi: dict[str, Any], schema: dict[str, Any], value: Any, where: str = "$") -> str | None:
    """Return where `value` differs from `schema`, by the keywords of JSON Schema that our schemas use."""
    if "$ref" in schema:
        return mismatch(openapi, resolved(openapi, schema), value, where)
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            found = [mismatch(openapi, each, value, where) for each in schema[choice]]
            return None if None in found else found[0]
    if "enum" in schema and value not in schema["enum"]:
        return f"{where} is none of {schema['enum']}"
    kinds: dict[str, tuple[type, ...]] = {
        "object": (dict,),
        "array": (list,),
        "string": (str,),
        "integer": (int,),
        "number": (int, float),
        "boolean": (bool,),
        "null": (type(None),),
    }
    wanted = schema.get("type")
    if isinstance(wanted, str) and not isinstance(value, kinds[wanted]):
        return f"{where} is no {wanted}: {value!r}"
    if isinstance(value, dict):
        for name in schema.get("required", ()):
            if name not in value:
                return f"{where}.{name} is missing"
        for name, each in value.items():
            if name in schema.get("properties", {}):
                found = mismatch(openapi, schema["properties"][name], each, f"{where}.{name}")
            elif schema.get("additionalProperties") is False:
                found = f"{where}.{name} is unknown"
            else:
                found = None
            if found:
                return found
    if isinstance(value, list):
        for number, each in enumerate(value):
            if found := mismatch(openapi, schema.get("items", {}), each, f"{where}[{number}]"):
                return found
    return None


def examples(openapi: dict[str, Any], media: dict[str, Any]) -> list[Any]:
    """Return the examples of one media type, beside it or in its schema."""
    if "example" in media:
        return [media["example"]]
    if "examples" in media:
        return [each["value"] for each in media["examples"].values()]
    schema = resolved(openapi, media["schema"])
    if "example" in schema:
        return [schema["example"]]
    if "examples" in schema:
        return schema["examples"]
    if "anyOf" in schema:
        return [example for each in schema["anyOf"] for example in examples(openapi, {"schema": each})]
    shown = {name: each["examples"][0] for name, each in schema.get("properties", {}).items() if "examples" in each}
    return [shown] if shown and shown.keys() >= set(schema.get("required", ())) else []


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def test_mismatch_finds_what_differs() -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"anyOf": [{"type": "integer"}]}}}
    assert mismatch({}, schema, {"a": 1}) is None
    assert mismatch({}, schema, {"a": "1"}) == "$.a is no integer: '1'"
    assert mismatch({}, schema, {}) == "$.a is missing"
    assert mismatch({}, {"type": "array", "items": {"enum": [1]}}, [1, 2]) == "$[1] is none of [1]"


async def test_openapi_is_whole(openapi: dict[str, Any]) -> None:
    assert re.fullmatch(r"3\.1\.\d", openapi["openapi"])
    assert openapi["info"]["title"] == "Runtape"
    for reference in references(openapi):
        resolved(openapi, {"$ref": reference})
    ids = [operation["operationId"] for _, _, operation in operations(openapi)]
    assert len(ids) == len(set(ids))
    for path, method, operation in operations(openapi):
        declared = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
        assert declared == set(re.findall(r"{(\w+)}", path)), (method, path)
        assert operation["summary"], (method, path)
        assert operation["responses"], (method, path)
    json.dumps(openapi, allow_nan=False)


async def test_openapi_tells_every_path_and_method(openapi: dict[str, Any]) -> None:
    served = {path: {method.upper() for method in item} for path, item in openapi["paths"].items()}
    for path, methods in PATHS.items():
        matching = [told for told in served if _matches(told, "/api/v1" + path)]
        assert matching, path
        assert set().union(*(served[told] for told in matching)) == methods, path
    assert len(served) == len(PATHS)


def _matches(template: str, path: str) -> bool:
    parts, wanted = template.split("/"), path.split("/")
    return len(parts) == len(wanted) and all(
        each == other or each.startswith("{") for each, other in zip(parts, wanted, strict=True)
    )


async def test_every_operation_has_an_example_that_fits_its_schema(openapi: dict[str, Any]) -> None:
    for path, method, operation in operations(openapi):
        where = f"{method} {path}"
        good = {status: each for status, each in operation["responses"].items() if status.startswith("2")}
        assert good, where
        for status, response in good.items():
            if "content" not in response:
                continue
            for name, media in response["content"].items():
                found = examples(openapi, media)
                assert found, f"{where}: no example of {status} {name}"
                for example in found:
                    assert mismatch(openapi, media["schema"], example) is None, (where, status)
        for name, media in operation.get("requestBody", {}).get("content", {}).items():
            found = examples(openapi, media)
            assert found, f"{where}: no example of the body as {name}"
            for example in found:
                assert mismatch(openapi, media["schema"], example) is None, where
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path":
                schema = resolved(openapi, parameter["schema"])
                known = "example" in parameter or "examples" in parameter or "examples" in schema or "enum" in schema
                assert known, f"{where}: no example of {parameter['name']}"


async def test_answers_fit_their_schemas(openapi: dict[str, Any], client: Client) -> None:
    execution_id = await client.execute("print 1")
    await client.ended(execution_id)
    for path in ("/executions/{}", "/executions/{}/result", "/executions/{}/events"):
        answer = (await client.get(path.format(execution_id))).json()
        template = "/api/v1" + path.format("{execution_id}")
        media = openapi["paths"][template]["get"]["responses"]["200"]["content"]["application/json"]
        assert mismatch(openapi, media["schema"], answer) is None
    admin = tuple(f"/admin/dlq/{each}" for each in ("stats", "topics", "messages", "retry-policy/{topic}"))
    for path in (
        "/user/executions",
        "/k8s-limits",
        "/example-scripts",
        "/auth/me",
        "/api-keys",
        "/health/live",
        "/health/ready",
        *admin,
    ):
        media = openapi["paths"][f"/api/v1{path}"]["get"]["responses"]["200"]["content"]["application/json"]
        assert mismatch(openapi, media["schema"], (await client.get(path)).json()) is None, path
