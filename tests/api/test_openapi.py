"""The published description of the API: everything that is served is in it, with examples."""

from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import pytest
from fastapi.routing import APIRoute

from runtape.api import health, raw, routers
from runtape.api.problems import MEDIA_TYPE
from runtape.api.rest import PREFIX, make_fastapi

APP = make_fastapi(None)
DOCUMENT = APP.openapi()
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


OPERATIONS = dict(operations())


def with_example(part: Any, seen: tuple[str, ...] = ()) -> bool:
    """Whether there is an example in `part` or in a schema that it refers to."""
    if isinstance(part, list):
        return any(with_example(each, seen) for each in part)
    if not isinstance(part, dict):
        return False
    if "example" in part or part.get("examples"):
        return True
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        return name not in seen and with_example(SCHEMAS[name], (*seen, name))
    return any(with_example(each, seen) for each in part.values())


def test_every_route_of_every_router_is_described_and_nothing_else() -> None:
    modules = [import_module(f"{routers.__name__}.{each.name}") for each in iter_modules(routers.__path__)]
    served = {
        f"{method} {PREFIX}{route.path}".replace(":path}", "}")
        for module in modules
        for route in module.router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    assert len(served) > 10
    hot = {
        f"POST {raw.EXECUTE}",
        f"GET {raw.EVENTS}{{execution_id}}",
        f"GET {raw.EXECUTION_EVENTS}{{execution_id}}",
        f"GET {health.LIVE}",
        f"GET {health.READY}",
    }
    assert set(OPERATIONS) == served | hot


def test_operation_ids_are_unique_and_fit_for_a_generated_client() -> None:
    ids = Counter(operation["operationId"] for operation in OPERATIONS.values())
    assert max(ids.values()) == 1, ids.most_common(3)
    assert all(each.isidentifier() and "api_v1" not in each for each in ids)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_says_what_it_does_and_shows_it(name: str) -> None:
    operation = OPERATIONS[name]
    assert operation["summary"]
    assert operation["description"]
    assert operation["tags"]
    for parameter in operation.get("parameters", ()):
        schema = parameter["schema"]
        told = with_example(parameter) or "default" in schema or "enum" in str(schema) or "$ref" in str(schema)
        assert told, parameter["name"]
    if "requestBody" in operation:
        assert with_example(operation["requestBody"]["content"])
    successes = [answer for status, answer in operation["responses"].items() if status.startswith("2")]
    assert successes
    for answer in successes:
        for media in answer.get("content", {}).values():
            assert with_example(media)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_refusal_is_a_problem_with_an_example(name: str) -> None:
    for status, answer in OPERATIONS[name]["responses"].items():
        if status.startswith(("4", "5")) and "Readiness" not in str(answer):
            assert list(answer["content"]) == [MEDIA_TYPE], status
            assert answer["content"][MEDIA_TYPE]["examples"], status


def test_every_reference_leads_somewhere() -> None:
    def references(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            if isinstance(part.get("$ref"), str):
                yield part["$ref"]
            for each in part.values():
                yield from references(each)
        elif isinstance(part, list):
            for each in part:
                yield from references(each)

    found = set(references(DOCUMENT))
    assert found
    assert {reference.rpartition("/")[2] for reference in found} <= set(SCHEMAS)
