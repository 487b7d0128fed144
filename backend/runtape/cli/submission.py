"""The body of POST /execute, made from files, arguments and standard input."""

import base64
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtape.cli.errors import CliError

BODY_BYTES = 10 << 20
"""The server's limit for a whole request; more input than this cannot be submitted."""

LANGUAGES = {
    ".py": "python",
    ".sh": "bash",
    ".bash": "bash",
    ".js": "node",
    ".mjs": "node",
    ".cjs": "node",
    ".rb": "ruby",
    ".pl": "perl",
    ".php": "php",
    ".lua": "lua",
    ".r": "r",
    ".sql": "sqlite",
    ".go": "go",
    ".c": "c",
    ".cpp": "c++",
    ".cc": "c++",
    ".java": "java",
    ".rs": "rust",
}
_INTERPRETERS = {
    "python": "python",
    "bash": "bash",
    "sh": "bash",
    "node": "node",
    "nodejs": "node",
    "ruby": "ruby",
    "perl": "perl",
    "php": "php",
    "lua": "lua",
    "Rscript": "r",
}


def read_script(file: str) -> str:
    """Return the text of a script; `-` stands for standard input.  Raises: CliError."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise CliError(f"cannot read {file}: {error.strerror}") from None
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CliError(
            f"{_named(file)} is not UTF-8 text (byte {error.start}); a script is text, give data with --file"
        ) from None


def language(file: str, script: str) -> str:
    """Return the language of a script, told by its suffix or else by its shebang line.  Raises: CliError."""
    suffix = Path(file).suffix.lower() if file != "-" else ""
    if suffix in LANGUAGES:
        return LANGUAGES[suffix]
    first = script.partition("\n")[0]
    if first.startswith("#!"):
        words = [word for word in first[2:].split() if not word.startswith("-") and "=" not in word]
        names = [word.rpartition("/")[2] for word in words]
        name = names[1] if len(names) > 1 and names[0] == "env" else (names[0] if names else "")
        if known := _INTERPRETERS.get(name.rstrip("0123456789.")):
            return known
    raise CliError(
        f"cannot tell the language of {_named(file)} from a suffix ({' '.join(LANGUAGES)}) or a #! line; "
        "name it with --lang"
    )


def attachments(specs: Sequence[str]) -> list[dict[str, str]]:
    """Return the `files` of a request for `PATH[=NAME]` each; a NAME that is left out is the file's own name."""
    files: list[dict[str, str]] = []
    for spec in specs:
        path, name = spec, ""
        # A file whose own name has a "=" is meant as it stands.
        if "=" in spec and not Path(spec).exists():
            path, _, name = spec.rpartition("=")
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise CliError(f"cannot read {path} (--file {spec}): {error.strerror}") from None
        files.append({"path": name or Path(path).name, **_content("content", data)})
    return files


def environment(pairs: Sequence[str]) -> dict[str, str]:
    """Return the `env` of a request for `K=V` each.  Raises: CliError."""
    result: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise CliError(f'--env takes NAME=VALUE, not "{pair}"')
        result[name] = value
    return result


def request_body(
    *,
    script: str,
    lang: str,
    lang_version: str | None = None,
    stdin: bytes = b"",
    args: Sequence[str] = (),
    env: Sequence[str] = (),
    files: Sequence[str] = (),
    requirements: Sequence[str] = (),
    timeout_s: float | None = None,
    memory_mb: int | None = None,
    timeline: bool = False,
) -> dict[str, Any]:
    """Return the request; what was not asked for is left to the server's defaults.  Raises: CliError."""
    if len(stdin) > BODY_BYTES:
        raise CliError(f"standard input has more than {BODY_BYTES >> 20} MiB; the whole request may have that much")
    limits = {"wall_s": timeout_s, "cpu_s": timeout_s, "memory_mb": memory_mb}
    options: dict[str, Any] = {
        "lang_version": lang_version,
        "args": list(args),
        "env": environment(env),
        "files": attachments(files),
        "timeline": timeline,
        "requirements": list(requirements),
        "limits": {name: value for name, value in limits.items() if value is not None},
        **(_content("stdin", stdin) if stdin else {}),
    }
    paths = [file["path"] for file in options["files"]]
    for word in [*options["args"], *options["env"], *options["env"].values(), *paths, *requirements]:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise CliError(f"{word!r} is not valid Unicode; arguments, variables and names are text") from None
    return {"script": script, "lang": lang, **{name: value for name, value in options.items() if value}}


def _content(name: str, data: bytes) -> dict[str, str]:
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_b64": base64.b64encode(data).decode()}


def _named(file: str) -> str:
    return "the script on standard input" if file == "-" else f'"{file}"'
