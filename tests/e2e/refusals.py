"""Requests to execute that are refused, each with the code and the field that the answer has to name."""

import dataclasses
from dataclasses import dataclass
from typing import Any

GOOD: dict[str, Any] = {"script": "print 1", "lang": "python"}


@dataclass(frozen=True)
class Refusal:
    """A body, or the `changes` that spoil a good one, and what is answered."""

    name: str
    code: str
    field: str | None
    changes: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    raw: bytes | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict[str, str])
    status: int = 422
    says: str = ""


def _limit(name: str, value: object) -> Refusal:
    return Refusal(
        f"{name} of {value}", "limit_out_of_range", f"limits.{name}", {"limits": {name: value}}, says="between"
    )


def _path(path: str, says: str = "") -> Refusal:
    shown = path if len(path) < 30 else path[:10] + "..."
    return Refusal(
        f"file {shown!r}", "invalid_path", "files[0].path", {"files": [{"path": path, "content": ""}]}, says=says
    )


def _invalid(name: str, where: str | None, says: str = "", **changes: Any) -> Refusal:
    return Refusal(name, "validation_failed", where, changes, says=says)


def _malformed(name: str, raw: bytes) -> Refusal:
    return Refusal(name, "malformed_json", None, raw=raw, status=400)


EXECUTE = (
    Refusal("unknown language", "runtime_unknown", "lang", {"lang": "cobol"}, says="have: bash, python"),
    Refusal("unknown version", "version_unknown", "lang_version", {"lang_version": "2.7"}, says="have: 3.11"),
    Refusal("script over 1 MiB", "script_too_large", "script", {"script": "#" * ((1 << 20) + 1)}, says="1048577"),
    Refusal("script over 1 MiB in bytes", "script_too_large", "script", {"script": "ü" * ((1 << 19) + 1)}),
    *(_limit(name, value) for name in ("wall_s", "cpu_s") for value in (0, 0.09, -1, 300.1, 1e300)),
    *(_limit("memory_mb", value) for value in (15, 4097)),
    *(_limit("output_bytes", value) for value in (0, (64 << 20) + 1)),
    *(_limit("processes", value) for value in (0, 513)),
    _invalid("limit as text", "limits.wall_s", limits={"wall_s": "10"}),
    _invalid("fraction of a MiB", "limits.memory_mb", limits={"memory_mb": 16.5}),
    _invalid("unknown limit", "limits.gpus", "gpus", limits={"gpus": 1}),
    _path("../escape", "leave"),
    _path("a/../../escape", "leave"),
    _path("/etc/passwd", "absolute"),
    _path(""),
    _path("folder/"),
    _path("."),
    _path("a\0b", "NUL"),
    _path(".tmp/x"),
    _path("out", "artifacts"),
    _path("n" * 256),
    _path("/".join(["d" * 200] * 25)),
    _path("main.py", "script itself"),
    Refusal(
        "same file twice",
        "invalid_path",
        "files[1].path",
        {"files": [{"path": "a", "content": ""}, {"path": "./a", "content": ""}]},
    ),
    Refusal(
        "file that is a folder too",
        "invalid_path",
        "files[1].path",
        {"files": [{"path": "a/b", "content": ""}, {"path": "a", "content": ""}]},
    ),
    _invalid("101 files", "files", "100", files=[{"path": f"f{n}", "content": ""} for n in range(101)]),
    _invalid("file without a path", "files[0].path", files=[{"content": ""}]),
    _invalid("unknown field of a file", "files[0].mode", files=[{"path": "a", "content": "", "mode": 493}]),
    _invalid("two contents", "files[0].content_b64", files=[{"path": "a", "content": "", "content_b64": ""}]),
    _invalid("content that is no base64", "files[0].content_b64", files=[{"path": "a", "content_b64": "?"}]),
    _invalid("two inputs", "stdin_b64", stdin="", stdin_b64=""),
    _invalid("input that is no base64", "stdin_b64", stdin_b64="YQ"),
    _invalid("NUL in an argument", "args[1]", args=["", "a\0b"]),
    _invalid("NUL in a variable", "env.A", env={"A": "\0"}),
    _invalid("name of no variable", "env", env={"A-B": ""}),
    _invalid("empty name of a variable", "env", env={"": ""}),
    _invalid("too many arguments", "args", "131072", args=["x" * 1024] * 128),
    _invalid("argument that is no text", "args[0]", args=[1]),
    _invalid("unknown priority", "priority", priority="asap"),
    _invalid("unknown reaction to an interruption", "on_interrupt", on_interrupt="ignore"),
    _invalid("unknown field", "timeout", "timeout", timeout=3),
    _invalid("script that is no text", "script", script=None),
    Refusal("no script", "validation_failed", "script", raw=b'{"lang": "python"}'),
    Refusal("no language", "validation_failed", "lang", raw=b'{"script": "print 1"}'),
    Refusal("list for a body", "validation_failed", None, raw=b"[]"),
    Refusal("empty key", "validation_failed", "Idempotency-Key", headers={"idempotency-key": ""}),
    Refusal("key of 256 bytes", "validation_failed", "Idempotency-Key", headers={"idempotency-key": "k" * 256}),
    _malformed("cut JSON", b'{"script": "print 1"'),
    _malformed("no body", b""),
    _malformed("text after the JSON", b'{"script": "print 1", "lang": "python"} x'),
    _malformed("invalid UTF-8", b'{"script": "\xff", "lang": "python"}'),
    _malformed("lone surrogate", b'{"script": "\\ud800", "lang": "python"}'),
    Refusal("very deep JSON", "validation_failed", "args[0]", raw=b'{"args": ' + b"[" * 100_000),
    Refusal("body over 10 MiB", "body_too_large", None, raw=b" " * ((10 << 20) + 1), status=413),
    Refusal("key of nobody", "unauthenticated", None, headers={"authorization": "Bearer rt_no_body"}, status=401),
    Refusal("password for a key", "unauthenticated", None, headers={"authorization": "Basic YTpi"}, status=401),
)
