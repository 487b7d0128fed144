"""The body of ``POST /execute``: whatever it is, it is decoded or refused, and a refusal names the field."""

import hashlib
import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from runtape.api.problems import encode, refusal
from runtape.api.requests import ExecuteRequest, decode_execute, execute_schema
from runtape.application.submission import Submission
from runtape.domain.errors import DomainError
from runtape.domain.events import Priority
from runtape.domain.execution import OnInterrupt
from tests.patience import examples

WHOLE: dict[str, Any] = {
    "script": "print(1)",
    "lang": "python",
    "lang_version": "3.11",
    "stdin": "é",
    "args": ["a", ""],
    "env": {"A": "1"},
    "files": [{"path": "t", "content": "x"}, {"path": "b", "content_b64": "/wA="}, {"path": "e"}],
    "requirements": ["numpy>=2"],
    "limits": {"wall_s": 1, "cpu_s": 0.5, "memory_mb": 64, "output_bytes": 9, "processes": 3},
    "priority": "high",
    "on_interrupt": "fail",
    "timeline": True,
}
LEAST = {"script": "", "lang": "python"}


def body(**changes: Any) -> bytes:
    return json.dumps(LEAST | changes).encode()


def refused(data: bytes) -> DomainError:
    with pytest.raises(DomainError) as caught:
        decode_execute(data, None)
    return caught.value


def test_everything_that_can_be_asked_for_is_decoded() -> None:
    data = json.dumps(WHOLE).encode()
    assert decode_execute(data, "key") == Submission(
        lang="python",
        lang_version="3.11",
        script="print(1)",
        stdin="é".encode(),
        args=("a", ""),
        env={"A": "1"},
        files=(("t", b"x"), ("b", b"\xff\0"), ("e", b"")),
        requirements=("numpy>=2",),
        limits={"wall_s": 1, "cpu_s": 0.5, "memory_mb": 64, "output_bytes": 9, "processes": 3},
        priority=Priority.HIGH,
        on_interrupt=OnInterrupt.FAIL,
        timeline=True,
        idempotency_key="key",
        body_sha256=hashlib.sha256(data).hexdigest(),
    )


def test_the_least_is_a_script_and_a_language() -> None:
    submission = decode_execute(body(), None)
    assert (submission.lang_version, submission.stdin, submission.files) == (None, b"", ())
    assert not any(submission.limits.values())
    assert (submission.priority, submission.on_interrupt) == (Priority.NORMAL, OnInterrupt.RESTART)
    assert not submission.timeline


def test_limits_that_are_left_out_or_null_are_the_defaults() -> None:
    assert decode_execute(body(limits={"wall_s": 2, "cpu_s": None}), None).limits == {
        "wall_s": 2, "cpu_s": None, "memory_mb": None, "output_bytes": None, "processes": None
    }  # fmt: skip


MALFORMED = [
    b"",
    b" ",
    b"{",
    b'{"script": "x", "lang": "python"} x',
    b'{"script": "x", "lang": "python",}',
    b'{"script": "a\x00b", "lang": "python"}',
    b'{"script": "\xff", "lang": "python"}',
    b'{"script": "\\ud800", "lang": "python"}',
    b'\xef\xbb\xbf{"script": "x", "lang": "python"}',
    b'{"script": "x", "lang": "python", "limits": {"wall_s": NaN}}',
    b"script=x&lang=python",
    "{}".encode("utf-16"),
]


@pytest.mark.parametrize("data", MALFORMED)
def test_what_is_no_json_is_told_apart(data: bytes) -> None:
    assert refused(data).code == "malformed_json"


FIELDS: list[tuple[bytes, str | None]] = [
    (b"[]", None),
    (b"null", None),
    (b"{}", "script"),
    (b'{"script": ""}', "lang"),
    (body(script=None), "script"),
    (body(script=["x"]), "script"),
    (body(lang=3), "lang"),
    (body(foo=1), "foo"),
    (body(**{"foo bar": 1}), "foo bar"),
    (body(**{"a`b": 1}), "a`b"),
    (body(**{"": 1}), None),
    (body(stdin=1), "stdin"),
    (body(stdin="a", stdin_b64="YQ=="), "stdin_b64"),
    (body(stdin_b64="YQ"), "stdin_b64"),
    (body(stdin_b64="é"), "stdin_b64"),
    (body(args="a"), "args"),
    (body(args=["a", 1]), "args[1]"),
    (body(env=["a"]), "env"),
    (body(env={"A": 1}), "env[...]"),
    (body(files={"a": "b"}), "files"),
    (body(files=[{"path": "a"}, {}]), "files[1].path"),
    (body(files=[{"path": "a", "mode": 7}]), "files[0].mode"),
    (body(files=[{"path": "a", "content_b64": "?"}]), "files[0].content_b64"),
    (body(files=[{"path": "a", "content_b64": "", "content": ""}]), "files[0].content_b64"),
    (body(limits={"wall_s": "1"}), "limits.wall_s"),
    (body(limits={"memory_mb": 1.5}), "limits.memory_mb"),
    (body(limits={"memory_mb": True}), "limits.memory_mb"),
    (body(limits={"disk_mb": 1}), "limits.disk_mb"),
    (b'{"script": "", "lang": "p", "limits": {"wall_s": 1e999}}', "limits.wall_s"),
    (b'{"script": "", "lang": "p", "limits": {"memory_mb": ' + b"9" * 5000 + b"}}", "limits.memory_mb"),
    (body(priority="urgent"), "priority"),
    (body(on_interrupt="panic"), "on_interrupt"),
    (body(timeline="yes"), "timeline"),
]


@pytest.mark.parametrize(("data", "field"), FIELDS)
def test_a_refusal_names_the_field(data: bytes, field: str | None) -> None:
    error = refused(data)
    assert (error.code, error.field) == ("validation_failed", field)
    assert error.detail


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"script":' * 100_000,
        b'{"script": "", "lang": "p", "env": ' + b'{"a":' * 200_000,
        b'{"script": "", "lang": "p", "x": ' + b"[" * 200_000,
        b'{"script": "", "lang": "p", "args": ' + b"[" * 200_000,
    ],
)
def test_deep_nesting_is_refused_and_hurts_nobody(data: bytes) -> None:
    assert refused(data).code in ("malformed_json", "validation_failed")


def test_a_refusal_does_not_repeat_what_was_sent_at_length() -> None:
    for data in (body(**{"n" * 1_000_000: 1}), body(priority="p" * 1_000_000), body(limits={"l" * 1_000_000: 1})):
        assert len(encode(refusal(refused(data)))) < 5000


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
names = st.sampled_from([*WHOLE, "stdin_b64", "path", "wall_s"]) | st.text(max_size=8)


@st.composite
def nearly_right(draw: st.DrawFn) -> Any:
    """Draw the whole body with one of its parts, at any depth, replaced, left out or added to."""
    document = json.loads(json.dumps(WHOLE))
    at: Any = document
    while isinstance(at, dict | list) and at:
        keys: list[Any] = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = draw(st.sampled_from(keys))
        if not isinstance(at[key], dict | list) or not at[key] or draw(st.booleans()):
            match draw(st.sampled_from(["replace", "remove", "add"])):
                case "replace":
                    at[key] = draw(values)
                case "remove":
                    del at[key]
                case _ if isinstance(at, dict):
                    at[draw(names)] = draw(values)
                case _:
                    at.append(draw(values))
            break
        at = at[key]
    return document


@settings(max_examples=examples(500), deadline=None)
@given(document=values | st.dictionaries(names, values, max_size=6) | nearly_right())
def test_any_json_is_decoded_or_refused_with_a_code(document: Any) -> None:
    try:
        data = json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        data = json.dumps(document).encode()
    try:
        submission = decode_execute(data, None)
    except DomainError as error:
        assert error.code in ("malformed_json", "validation_failed")
        assert json.loads(encode(refusal(error)))["code"] == error.code
        if isinstance(document, dict) and error.code == "validation_failed":
            assert error.field is not None or "" in document
    else:
        assert isinstance(submission.script, str)
        assert set(document) <= {*WHOLE, "stdin_b64"}


@settings(max_examples=examples(300), deadline=None)
@given(data=st.binary(max_size=40), cut=st.integers(0, 400))
def test_any_bytes_are_decoded_or_refused(data: bytes, cut: int) -> None:
    whole = json.dumps(WHOLE).encode()
    for attempt in (data, whole[:cut] + data + whole[cut:], whole[:cut]):
        try:
            decode_execute(attempt, None)
        except DomainError as error:
            json.loads(encode(refusal(error)))


def test_the_published_schema_has_every_field_and_no_other() -> None:
    schema, components = execute_schema()
    published = components[schema["$ref"].rpartition("/")[2]]
    assert set(published["properties"]) == set(ExecuteRequest.__struct_fields__) == {*WHOLE, "stdin_b64"}
    assert set(published["required"]) == {"script", "lang"}
    assert published["additionalProperties"] is False
