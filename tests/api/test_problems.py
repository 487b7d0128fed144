"""Problem details: what each exception becomes on the wire."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
from starlette.types import Message

from runtape.api import problems
from runtape.domain.errors import DomainError, Invalid, NotFound, RateLimited
from tests.api.small_app import SECRET, SmallApp, small_app

ORDERS = "/api/v1/orders"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    async with small_app(tmp_path) as app:
        yield app.client


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[SmallApp]:
    async with small_app(tmp_path) as app:
        yield app


def refusals(kind: type[DomainError] = DomainError) -> Iterator[type[DomainError]]:
    for each in kind.__subclasses__():
        yield each
        yield from refusals(each)


def test_every_refusal_of_the_domain_has_a_status() -> None:
    bases = {Invalid, problems.HttpRefusal}
    unknown = {each.code for each in refusals() if each not in bases and each.code not in problems._STATUS}
    assert unknown == set()
    assert problems._STATUS["validation_failed"][0] == 422


def test_problem_is_written_in_its_own_order_and_without_empty_members() -> None:
    body = problems.encode(problems.refusal(NotFound("no execution 7")))
    assert body == (
        b'{"type":"urn:runtape:problem:not_found","title":"There is no such thing","status":404,'
        b'"detail":"no execution 7","code":"not_found"}'
    )


async def test_raw_answer_has_the_length_and_the_headers_of_its_problem() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await problems.send_problem(send, RateLimited("wait", retry_after_s=9), [(b"x-more", b"1")], "id-1")
    start, body = sent
    headers = dict(start["headers"])
    assert start["status"] == 429
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"content-length"] == b"%d" % len(body["body"])
    assert headers[b"retry-after"] == b"9"
    assert headers[b"x-more"] == b"1"
    assert b'"request_id":"id-1"' in body["body"]


class TestBodies:
    @pytest.mark.parametrize(
        ("body", "where"),
        [
            (b"{", "character 1"),
            (b'{"script": nope}', "character 11"),
            (b"'x'", "character 0"),
            (b"{}x", "character 2"),
        ],
    )
    async def test_what_is_not_json_is_told_with_its_place(
        self, client: httpx2.AsyncClient, body: bytes, where: str
    ) -> None:
        answer = await client.post(ORDERS, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert answer.json()["code"] == "malformed_json"
        assert where in answer.json()["detail"]

    @pytest.mark.parametrize("body", [b'{"script": "\xff"}', b"[" * 900])
    async def test_what_no_parser_takes_is_malformed(self, client: httpx2.AsyncClient, body: bytes) -> None:
        answer = await client.post(ORDERS, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert answer.json()["code"] == "malformed_json"

    async def test_missing_field_is_named(self, client: httpx2.AsyncClient) -> None:
        answer = await client.post(ORDERS, json={})
        assert answer.status_code == 422
        body = answer.json()
        assert (body["code"], body["field"], body["detail"]) == ("validation_failed", "script", "script is missing")
        assert "errors" not in body

    async def test_nested_field_is_named_by_its_dotted_path(self, client: httpx2.AsyncClient) -> None:
        answer = await client.post(ORDERS, json={"script": "x", "limits": {"wall_s": 0}})
        assert answer.json()["field"] == "limits.wall_s"
        assert answer.json()["detail"] == "limits.wall_s: input should be greater than 0"

    async def test_unknown_field_is_named(self, client: httpx2.AsyncClient) -> None:
        answer = await client.post(ORDERS, json={"script": "x", "srcipt": "y"})
        assert answer.json()["field"] == "srcipt"

    async def test_parameter_of_the_query_is_named(self, client: httpx2.AsyncClient) -> None:
        answer = await client.get(ORDERS, params={"limit": "many"})
        assert answer.status_code == 422
        assert answer.json()["field"] == "limit"

    async def test_all_faults_are_listed_up_to_ten(self, client: httpx2.AsyncClient) -> None:
        answer = await client.post(ORDERS, json={f"extra_{n}": 1 for n in range(20)})
        assert len(answer.json()["errors"]) == problems.MAX_ERRORS
        assert answer.json()["errors"][0] == {"detail": answer.json()["detail"], "field": answer.json()["field"]}

    async def test_missing_body_is_said_to_be_missing(self, client: httpx2.AsyncClient) -> None:
        answer = await client.post(ORDERS)
        assert answer.json()["detail"] == "the body is missing"
        assert "field" not in answer.json()

    async def test_what_was_sent_is_not_sent_back(self, client: httpx2.AsyncClient) -> None:
        answer = await client.post(ORDERS, json={"script": ["x"], "password": SECRET})
        assert answer.status_code == 422
        assert SECRET not in answer.text


class TestStatuses:
    async def test_wrong_method_tells_the_methods_of_every_route_at_the_path(self, client: httpx2.AsyncClient) -> None:
        answer = await client.delete(ORDERS)
        assert answer.status_code == 405
        assert answer.json()["code"] == "method_not_allowed"
        assert answer.headers["allow"] == "GET, POST"
        assert "GET, POST" in answer.json()["detail"]

    async def test_unknown_path_is_named(self, client: httpx2.AsyncClient) -> None:
        answer = await client.get("/api/v1/nowhere")
        assert answer.status_code == 404
        assert answer.json()["code"] == "not_found"
        assert "/api/v1/nowhere" in answer.json()["detail"]

    async def test_refusal_names_the_field(self, client: httpx2.AsyncClient) -> None:
        answer = await client.get("/api/v1/fails/conflict")
        assert answer.status_code == 409
        assert answer.json()["field"] == "Idempotency-Key"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]

    async def test_full_queue_tells_when_to_come_back(self, client: httpx2.AsyncClient) -> None:
        answer = await client.get("/api/v1/fails/queue")
        assert answer.status_code == 503
        assert answer.json()["code"] == "queue_full"
        assert answer.headers["retry-after"] == "7"

    async def test_transient_failure_asks_to_try_again_and_tells_nothing_else(self, client: httpx2.AsyncClient) -> None:
        answer = await client.get("/api/v1/fails/transient")
        assert answer.status_code == 503
        assert answer.json()["code"] == "unavailable"
        assert answer.headers["retry-after"] == "3"
        assert SECRET not in answer.text

    @pytest.mark.parametrize("how", ["unhandled", "permanent"])
    async def test_failure_tells_its_request_id_alone(self, client: httpx2.AsyncClient, how: str) -> None:
        answer = await client.get(f"/api/v1/fails/{how}")
        assert answer.status_code == 500
        assert answer.json()["code"] == "internal"
        assert answer.json()["request_id"] in answer.json()["detail"]
        assert SECRET not in answer.text

    @pytest.mark.parametrize(
        ("how", "status", "code"), [("teapot", 418, "im_a_teapot"), ("range", 416, "requested_range_not_satisfiable")]
    )
    async def test_other_statuses_have_the_codes_of_their_names(
        self, client: httpx2.AsyncClient, how: str, status: int, code: str
    ) -> None:
        answer = await client.get(f"/api/v1/fails/{how}")
        assert answer.status_code == status
        assert answer.json()["code"] == code
        assert answer.headers["content-type"] == "application/problem+json"


class TestDocumentation:
    def test_codes_of_one_status_share_an_entry_with_an_example_each(self) -> None:
        responses = problems.documented("scope_missing", "csrf_failed", "not_found")
        assert set(responses) == {403, 404}
        examples = responses[403]["content"]["application/problem+json"]["examples"]
        assert set(examples) == {"scope_missing", "csrf_failed"}
        assert examples["csrf_failed"]["value"]["status"] == 403

    async def test_every_operation_of_identity_has_an_example_and_its_refusals(self, running: SmallApp) -> None:
        paths = running.app.openapi()["paths"]
        operations = {
            f"{method} {path}": operation
            for path, methods in paths.items()
            if "/auth/" in path or "/api-keys" in path
            for method, operation in methods.items()
        }
        assert len(operations) == 6
        for name, operation in operations.items():
            assert operation["responses"].keys() >= {"401", "429"}, name
            (success,) = [response for status, response in operation["responses"].items() if status[0] == "2"]
            if name != "delete /api/v1/api-keys/{id}":
                assert "example" in success["content"]["application/json"], name
            for status, response in operation["responses"].items():
                if status[0] != "2":
                    assert set(response["content"]) == {"application/problem+json"}, (name, status)
