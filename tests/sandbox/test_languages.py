"""Every language that is found does what programs in it expect, and its ends are told apart.

Each has one program in `programs/`, which does what its first argument says; so a compiler runs once for most tests.
SQL sees no arguments and has a script for each.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtape.adapters.sandbox import LocalSandbox
from runtape.adapters.sandbox.runtimes import detect
from runtape.domain.limits import Limits
from runtape.domain.outcome import Outcome, OutcomeKind, Phase
from tests.conftest import LANGUAGES
from tests.sandbox.runs import Result, run

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.needs("sandbox")]

PROGRAMS = Path(__file__).parent / "programs"
FLOOD = b"".join(b"%09d\n" % n for n in range(1_000_000))
ROOMY = Limits(wall_s=30, cpu_s=30)
"""Enough for every compiler on a busy machine."""


@dataclass(frozen=True)
class Traits:
    """What differs between languages, as their own interpreters do it without a sandbox."""

    uncaught: tuple[int, bytes]
    """Exit code, or the negative number of a signal, and a part of what is told, for an error that nobody handles."""
    broken: str
    """A source that is no program."""
    broken_statuses: tuple[int, ...]
    """Exit codes, of which a version has one."""
    complaint: bytes
    """A part of what is told of it."""
    compiled: bool = False
    own_memory_error: bytes = b""
    """What a language tells that stops at its own bound of memory, below the limit."""


TRAITS = {
    "python": Traits((1, b"RuntimeError: boom"), "x = (", (1,), b"main.py"),
    "bash": Traits((1, b"boom: unbound variable"), "if true; then", (2,), b"main.sh: line 2: syntax error"),
    "node": Traits((1, b"Error: boom"), "let x = ;", (1,), b"main.js:1"),
    "ruby": Traits((1, b"boom (RuntimeError)"), "def x(", (1,), b"main.rb:1: syntax error"),
    "perl": Traits((255, b"boom at /box/main.pl"), "my $x = ;", (255,), b"syntax error at /box/main.pl line 1"),
    "php": Traits((255, b"Uncaught Exception: boom"), "<?php $x = ;", (255,), b"syntax error"),
    "lua": Traits((1, b"boom"), "local x = ", (1,), b"/box/main.lua:1: unexpected symbol"),
    "r": Traits((1, b"boom"), "x <- (", (1,), b"Execution halted"),
    "sqlite": Traits((1, b"no such table: boom"), "SELEC 1;", (1,), b'near line 1: near "SELEC": syntax error'),
    "go": Traits((2, b"panic: boom"), "package main\nfunc main() { x }", (2, 1), b"main.go:2:15: undefined: x", True),
    "c": Traits((-6, b"boom"), "int main(void) { x; }", (1,), b"main.c:1:18: error: ", True),
    "c++": Traits((-6, b"what():  boom"), "int main() { x; }", (1,), b"main.cpp:1:14: error: ", True),
    "java": Traits(
        (1, b"RuntimeException: boom"),
        "class Main { int x = y; }",
        (1,),
        b"Main.java:1: error: cannot find symbol",
        True,
        own_memory_error=b"java.lang.OutOfMemoryError",
    ),
    "rust": Traits((101, b"boom"), "fn main() { x }", (1,), b"cannot find value `x`", True),
}
SQL = {
    "stdin": ".import /dev/stdin lines\nSELECT 'got ' || line FROM lines;",
    "files": "SELECT CAST(trim(readfile('data/in.txt'), char(10)) AS TEXT);",
    "text": "SELECT 'žluťoučký 雪 🎉';",
    "exit": ".exit 7",
    "stderr": ".print to stdout\n.shell echo to stderr >&2",
    "uncaught": "SELECT * FROM boom;",
    "sleep": ".shell sleep 60",
    "hog": "CREATE TABLE held AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)\n"
    "SELECT CAST(zeroblob(1000000) AS TEXT) || i FROM n;",
    "flood": "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 999999)\n"
    "SELECT printf('%09d', i) FROM n;",
}


@dataclass(frozen=True)
class Language:
    lang: str
    version: str
    file_name: str
    example: str

    @property
    def traits(self) -> Traits:
        return TRAITS[self.lang]

    async def run(self, sandbox: LocalSandbox, case: str, *args: str, limits: Limits = ROOMY, **how: object) -> Result:
        """Have the language's program do `case`; built before, so that `limits` are for the program alone."""
        if self.lang == "sqlite":
            return await run(sandbox, SQL[case], lang=self.lang, version=self.version, limits=limits, **how)
        script = (PROGRAMS / self.file_name).read_text()
        if self.traits.compiled and limits is not ROOMY:
            built = await run(
                sandbox, script, lang=self.lang, version=self.version, limits=ROOMY, args=("text",), **how
            )
            assert built.outcome.exit_code == 0
        args = (case, *args)
        return await run(sandbox, script, lang=self.lang, version=self.version, limits=limits, args=args, **how)


def found() -> list[object]:
    """Return every runtime of this host as a parameter, and one without a version for a language that is missing."""
    runtimes = [each.runtime for each in detect()[0]]
    return [
        pytest.param(Language(lang, version, file_name, example), id=f"{lang} {version}", marks=pytest.mark.needs(lang))
        for lang in LANGUAGES
        for version, file_name, example in [
            (each.version, each.file_name, each.example) for each in runtimes if each.lang == lang
        ]
        or [("missing", "", "")]
    ]


every_language = pytest.mark.parametrize("language", found())


async def test_languages_are_those_that_are_described(sandbox: LocalSandbox) -> None:
    installed, missing = detect()
    assert {each.runtime.lang for each in installed} | {each.lang for each in missing} == set(LANGUAGES) == set(TRAITS)


async def test_what_a_language_shows_cannot_be_written_to(sandbox: LocalSandbox) -> None:
    shown = {folder for each in detect()[0] for folder in each.shown}
    script = 'for each; do test -d "$each" && ! touch "$each/new" 2>/dev/null && echo "$each"; done'
    result = await run(sandbox, script, lang="bash", args=tuple(sorted(shown)))
    assert result.text.split() == sorted(shown)


@pytest.mark.needs("php")
async def test_settings_of_php_itself_are_not_shown(sandbox: LocalSandbox) -> None:
    script = "<?php echo php_ini_loaded_file() === false ? 'none' : 'some', ' ', ctype_digit('12') ? 'extended' : '';"
    assert (await run(sandbox, script, lang="php")).text == "none extended"


@every_language
async def test_example_greets(sandbox: LocalSandbox, language: Language) -> None:
    result = await run(sandbox, language.example, lang=language.lang, version=language.version, limits=ROOMY)
    assert result.outcome == Outcome(kind=OutcomeKind.EXITED, exit_code=0)
    assert b"3 squared is 9\n" in result.stdout.replace(b" \n", b"\n")
    assert language.version.encode() in result.stdout
    assert result.stderr == b""


@every_language
async def test_stdin_is_read(sandbox: LocalSandbox, language: Language) -> None:
    header = b"line\n" if language.lang == "sqlite" else b""
    result = await language.run(sandbox, "stdin", stdin=header + b"one\ntwo two\n")
    assert result.text == "got one\ngot two two"


@every_language
async def test_args_are_passed_whatever_they_look_like(sandbox: LocalSandbox, language: Language) -> None:
    args = ("a b", "-x", "--", "--version", "", "$HOME", "雪", "-e")
    if language.lang == "sqlite":
        result = await run(sandbox, "SELECT 1;", lang="sqlite", version=language.version, args=args)
        assert result.text == "1"
    else:
        assert (await language.run(sandbox, "args", *args)).text == "\n".join(f"[{each}]" for each in args)


@every_language
async def test_files_lie_in_the_work_directory(sandbox: LocalSandbox, language: Language) -> None:
    result = await language.run(sandbox, "files", files={"data/in.txt": "první\n雪\n".encode()})
    assert result.text == "první\n雪"


@every_language
async def test_text_beyond_ascii_is_kept(sandbox: LocalSandbox, language: Language) -> None:
    assert (await language.run(sandbox, "text")).stdout == "žluťoučký 雪 🎉\n".encode()


@every_language
async def test_exit_code_is_the_programs(sandbox: LocalSandbox, language: Language) -> None:
    assert (await language.run(sandbox, "exit")).outcome == Outcome(kind=OutcomeKind.EXITED, exit_code=7)


@every_language
async def test_stderr_is_a_stream_of_its_own(sandbox: LocalSandbox, language: Language) -> None:
    result = await language.run(sandbox, "stderr")
    assert (result.stdout, result.stderr) == (b"to stdout\n", b"to stderr\n")
    assert result.outcome.exit_code == 0


@every_language
async def test_uncaught_error_is_told_and_ends_the_program(sandbox: LocalSandbox, language: Language) -> None:
    result = await language.run(sandbox, "uncaught")
    status, told = language.traits.uncaught
    if status < 0:
        assert result.outcome == Outcome(kind=OutcomeKind.SIGNALLED, signal=-status)
    else:
        assert result.outcome == Outcome(kind=OutcomeKind.EXITED, exit_code=status)
    assert told in result.stderr


@every_language
async def test_broken_source_is_told_by_who_reads_it(sandbox: LocalSandbox, language: Language) -> None:
    traits = language.traits
    result = await run(sandbox, traits.broken, lang=language.lang, version=language.version, limits=ROOMY)
    assert result.outcome.kind is OutcomeKind.EXITED
    assert result.outcome.exit_code in traits.broken_statuses
    assert result.outcome.phase is (Phase.COMPILE if traits.compiled else Phase.RUN)
    assert traits.complaint in result.stderr
    assert result.stdout == b""
    assert result.usage.output_bytes == len(result.stderr)


@every_language
async def test_wall_limit_stops_it(sandbox: LocalSandbox, language: Language) -> None:
    result = await language.run(sandbox, "sleep", limits=Limits(wall_s=0.5))
    assert result.outcome == Outcome(kind=OutcomeKind.WALL_LIMIT)
    assert 0.5e9 <= result.usage.wall_ns < 2e9


@every_language
async def test_memory_limit_stops_it(sandbox: LocalSandbox, language: Language) -> None:
    result = await language.run(sandbox, "hog", limits=Limits(memory_mb=128, wall_s=30))
    if language.traits.own_memory_error:
        assert result.outcome == Outcome(kind=OutcomeKind.EXITED, exit_code=1)
        assert language.traits.own_memory_error in result.stderr
    else:
        assert result.outcome == Outcome(kind=OutcomeKind.MEMORY_LIMIT, reason="oom")
    assert 60 << 20 < result.usage.peak_memory_bytes < 256 << 20


@pytest.mark.needs("patience")
@every_language
async def test_ten_megabytes_of_output_are_kept_byte_for_byte(sandbox: LocalSandbox, language: Language) -> None:
    result = await language.run(sandbox, "flood", limits=Limits(output_bytes=len(FLOOD), wall_s=30, cpu_s=30))
    assert result.outcome == Outcome(kind=OutcomeKind.EXITED, exit_code=0)
    assert len(result.stdout) == len(FLOOD)
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(FLOOD).digest()
