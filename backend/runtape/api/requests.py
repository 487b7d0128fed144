"""The body of ``POST /execute``, decoded straight from bytes."""

import base64
import binascii
import hashlib
import re
from typing import Any

import msgspec

from runtape.api.problems import HttpRefusal
from runtape.application.submission import Submission
from runtape.domain.errors import ValidationFailed
from runtape.domain.events import Priority
from runtape.domain.execution import OnInterrupt


class MalformedJson(HttpRefusal):
    """The body is not JSON."""

    code = "malformed_json"


class RequestedLimits(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Limits to set; those left out have the installation's defaults."""

    wall_s: float | None = None
    cpu_s: float | None = None
    memory_mb: int | None = None
    output_bytes: int | None = None
    processes: int | None = None


class RequestedFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A file for the work directory: its text as `content`, or its bytes as `content_b64`."""

    path: str
    content: str | None = None
    content_b64: str | None = None


class ExecuteRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A script to run; `lang_version` is the newest one unless it is given, `timeline` asks for usage over time.

    `requirements` are packages from the index, as in ``["numpy>=2"]``; without the field a header of the script itself
    (PEP 723) says them.
    """

    script: str
    lang: str
    lang_version: str | None = None
    stdin: str | None = None
    stdin_b64: str | None = None
    args: list[str] = msgspec.field(default_factory=list[str])
    env: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    files: list[RequestedFile] = msgspec.field(default_factory=list[RequestedFile])
    requirements: list[str] | None = None
    limits: RequestedLimits = RequestedLimits()
    priority: Priority = Priority.NORMAL
    on_interrupt: OnInterrupt = OnInterrupt.RESTART
    timeline: bool = False


_decode = msgspec.json.Decoder(ExecuteRequest).decode
_LOCATION = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_NAMED = re.compile(r"field `(.*)`\Z", re.DOTALL)
_NO_LIMITS: dict[str, float | int | None] = {}


def decode_execute(body: bytes, idempotency_key: str | None) -> Submission:
    """Return the submission in `body`.  Raises: MalformedJson; ValidationFailed, naming the field."""
    try:
        request = _decode(body)
    except msgspec.ValidationError as error:
        raise _refused(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedJson(f"the body is not JSON: {error}") from None
    limits = request.limits
    return Submission(
        lang=request.lang,
        lang_version=request.lang_version,
        script=request.script,
        stdin=_bytes(request.stdin, request.stdin_b64, "stdin"),
        args=tuple(request.args),
        env=request.env,
        files=tuple(
            (file.path, _bytes(file.content, file.content_b64, f"files[{number}].content"))
            for number, file in enumerate(request.files)
        ),
        requirements=None if request.requirements is None else tuple(request.requirements),
        limits=_NO_LIMITS
        if limits is _DEFAULT_LIMITS
        else {name: getattr(limits, name) for name in limits.__struct_fields__},
        priority=request.priority,
        on_interrupt=request.on_interrupt,
        timeline=request.timeline,
        idempotency_key=idempotency_key,
        body_sha256=hashlib.sha256(body).hexdigest() if idempotency_key is not None else "",
    )


_DEFAULT_LIMITS = ExecuteRequest(script="", lang="").limits


def _bytes(text: str | None, b64: str | None, field: str) -> bytes:
    if b64 is None:
        try:
            return (text or "").encode()
        except UnicodeEncodeError:
            raise ValidationFailed("not valid Unicode", field=field) from None
    if text is not None:
        raise ValidationFailed(f"{field} and {field}_b64 exclude one another", field=f"{field}_b64")
    try:
        return base64.b64decode(b64, validate=True)
    except (binascii.Error, ValueError):
        raise ValidationFailed("not base64 (RFC 4648, with padding)", field=f"{field}_b64") from None


def _refused(error: msgspec.ValidationError) -> ValidationFailed:
    found = _LOCATION.match(str(error))
    what, path = (found["what"], found["path"] or "") if found else (str(error), "")
    named = _NAMED.search(what)
    if named:
        path = f"{path}.{named[1]}" if path else named[1]
    message = what.replace("Object contains unknown field", "there is no field").replace(
        "Object missing required field", "missing required field"
    )
    return ValidationFailed(message.replace("`", '"'), field=path or None)


def execute_schema() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the JSON schema of the body, and the components that it refers to."""
    (schema,), components = msgspec.json.schema_components([ExecuteRequest], ref_template="#/components/schemas/{name}")
    return schema, components
