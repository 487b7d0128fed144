"""`runtape run` against a server whose answers the tests write."""

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtape.cli.exit_codes import exit_code
from runtape.cli.main import main
from tests.cli.commands import COMMAND, environment, runtape, start
from tests.cli.fake_server import BEGIN, EXECUTION, FakeServer, Reply, Request, lifecycle, output, result


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "hello.py"
    path.write_text("print('hello')\n")
    return path


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def answer_with(server: FakeServer, *pieces: bytes) -> None:
    async def execute(request: Request, reply: Reply) -> None:
        await reply.stream(*pieces)

    server.handlers["POST /execute"] = execute


def submitted(server: FakeServer) -> Any:
    (request,) = server.asked("POST", "/execute")
    return request.json()


def test_output_exit_code_and_last_line(server: FakeServer, script: Path) -> None:
    frames = (output(1, b"out\n"), output(2, b"err\n", stream="stderr"))
    answer_with(server, BEGIN, *frames, result(2, exit_code=7))
    done = runtape("run", script, "--server", server.url)
    assert done.stdout == b"out\n"
    last = f"runtape: {EXECUTION}: exited 7, wall 213 ms, CPU 30 ms, peak memory 9.4 MiB\n"
    assert done.stderr == b"err\n" + last.encode()
    assert done.returncode == 7


def test_bytes_pass_untouched(server: FakeServer, script: Path) -> None:
    data = bytes(range(256)) + b"\0\r\n\n\xff\xfe" + "é".encode()[:1]
    answer_with(server, BEGIN, output(1, data), output(2, data, stream="stderr"), result(2))
    done = runtape("run", script, "--server", server.url, "--quiet")
    assert done.stdout == data
    assert done.stderr == data


def test_last_line_does_not_continue_a_line_of_the_program(server: FakeServer, script: Path) -> None:
    answer_with(server, BEGIN, output(1, b"no newline", stream="stderr"), result(1))
    assert runtape("run", script, "--server", server.url).stderr.startswith(b"no newline\nruntape: ")


def test_request_carries_what_was_asked_for(server: FakeServer, script: Path, tmp_path: Path) -> None:
    answer_with(server, BEGIN, result())
    (tmp_path / "data.csv").write_text("a,b\n")
    (tmp_path / "a=b.bin").write_bytes(b"\xff")
    options = ["--lang-version", "3.11", "--timeout", "2.5", "--memory", "64", "--env", "A=1=2", "--arg", "-v"]
    files = ["--file", tmp_path / "data.csv", "--file", f"{tmp_path / 'data.csv'}=in/x", "--file", tmp_path / "a=b.bin"]
    arguments = ["first", "--", "--second", "-3"]
    done = runtape("run", script, "--server", server.url, "--api-key", "key", *options, *files, *arguments)
    assert done.returncode == 0
    assert submitted(server) == {
        "script": "print('hello')\n",
        "lang": "python",
        "lang_version": "3.11",
        "args": ["-v", "first", "--second", "-3"],
        "env": {"A": "1=2"},
        "files": [
            {"path": "data.csv", "content": "a,b\n"},
            {"path": "in/x", "content": "a,b\n"},
            {"path": "a=b.bin", "content_b64": "/w=="},
        ],
        "limits": {"wall_s": 2.5, "cpu_s": 2.5, "memory_mb": 64},
    }
    headers = server.requests[0].headers
    assert headers["authorization"] == "Bearer key"
    assert headers["accept"] == "text/event-stream"
    assert headers["idempotency-key"]


def test_nothing_is_sent_that_was_not_asked_for(server: FakeServer, script: Path) -> None:
    answer_with(server, BEGIN, result())
    runtape("run", script, env={"RUNTAPE_SERVER": server.url, "RUNTAPE_API_KEY": "from-env"})
    assert submitted(server) == {"script": "print('hello')\n", "lang": "python"}
    assert server.requests[0].headers["authorization"] == "Bearer from-env"


@pytest.mark.parametrize(
    ("data", "sent"), [(b"text\xc3\xa9\0", {"stdin": "text\u00e9\0"}), (b"\xff\n", {"stdin_b64": "/wo="})]
)
def test_standard_input_is_passed_on(server: FakeServer, script: Path, data: bytes, sent: dict[str, str]) -> None:
    answer_with(server, BEGIN, result())
    runtape("run", script, "--server", server.url, stdin=data)
    assert {name: value for name, value in submitted(server).items() if name.startswith("stdin")} == sent


def test_standard_input_can_be_left_out(server: FakeServer, script: Path) -> None:
    answer_with(server, BEGIN, result())
    runtape("run", script, "--server", server.url, "--no-stdin", stdin=b"ignored")
    assert "stdin" not in submitted(server)


def test_script_from_standard_input_with_its_language_in_the_first_line(server: FakeServer) -> None:
    answer_with(server, BEGIN, result())
    assert runtape("run", "-", "--server", server.url, stdin=b"#!/usr/bin/env bash\necho hi\n").returncode == 0
    assert submitted(server) == {"script": "#!/usr/bin/env bash\necho hi\n", "lang": "bash"}


def test_json_prints_the_result_alone(server: FakeServer, script: Path) -> None:
    answer_with(server, BEGIN, output(1, b"out\n"), output(2, b"err\n", stream="stderr"), result(2, exit_code=3))
    done = runtape("run", script, "--server", server.url, "--json")
    assert json.loads(done.stdout)["outcome"]["exit_code"] == 3
    assert done.stdout.count(b"\n") == 1
    assert done.stderr == b""
    assert done.returncode == 3


def test_output_appears_while_the_script_runs(server: FakeServer, script: Path) -> None:
    seen = os.pipe()

    async def execute(request: Request, reply: Reply) -> None:
        await reply.stream(BEGIN, output(1, b"now\n"))
        # The end is sent only after the test has read the first line.
        import asyncio

        await asyncio.get_running_loop().run_in_executor(None, os.read, seen[0], 1)
        await reply.stream(result(1))

    server.handlers["POST /execute"] = execute
    with start("run", script, "--server", server.url) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"now\n"
        assert process.poll() is None
        os.write(seen[1], b"!")
        assert process.wait(10) == 0
    os.close(seen[0])
    os.close(seen[1])


def test_lost_answer_to_the_post_is_asked_for_under_the_same_key(server: FakeServer, script: Path) -> None:
    async def execute(request: Request, reply: Reply) -> None:
        if len(server.requests) == 1:
            reply.drop()
        else:
            await reply.stream(BEGIN, output(1, b"once\n"), result(1))

    server.handlers["POST /execute"] = execute
    done = runtape("run", script, "--server", server.url)
    assert (done.stdout, done.returncode) == (b"once\n", 0)
    first, second = server.requests
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.body == second.body


def test_stream_lost_in_the_middle_is_resumed_and_said(server: FakeServer, script: Path) -> None:
    async def execute(request: Request, reply: Reply) -> None:
        await reply.stream(BEGIN, output(1, b"one\n"), output(2, b"two\n")[:30])
        await reply.cut()

    async def events(request: Request, reply: Reply) -> None:
        await reply.stream(output(2, b"two\n"), result(2))

    server.handlers |= {"POST /execute": execute, f"GET /events/{EXECUTION}": events}
    done = runtape("run", script, "--server", server.url)
    assert (done.stdout, done.returncode) == (b"one\ntwo\n", 0)
    assert server.requests[1].headers["last-event-id"] == "2.1.1"
    assert b"; resuming\n" in done.stderr
    assert b"connected again\n" in done.stderr


def test_answer_without_a_stream_is_followed_by_its_id(server: FakeServer, script: Path) -> None:
    async def execute(request: Request, reply: Reply) -> None:
        await reply.json(200, {"execution_id": EXECUTION, "status": "queued"})

    async def events(request: Request, reply: Reply) -> None:
        await reply.stream(BEGIN, output(1, b"stored\n"), result(1))

    server.handlers |= {"POST /execute": execute, f"GET /events/{EXECUTION}": events}
    assert runtape("run", script, "--server", server.url).stdout == b"stored\n"


def test_restart_is_said(server: FakeServer, script: Path) -> None:
    again = lifecycle("execution_restarted", 3, attempt=2)
    answer_with(server, BEGIN, output(1, b"a\n"), again, output(1, b"a\n", attempt=2, version=3), result(1, attempt=2))
    done = runtape("run", script, "--server", server.url)
    assert done.stdout == b"a\na\n"
    assert b"runtape: attempt 2 starts again\n" in done.stderr
    assert done.stderr.endswith(b", attempt 2\n")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            {
                "status": 422,
                "detail": 'no runtime for "cobol" (have: python)',
                "code": "runtime_unknown",
                "field": "lang",
            },
            'error: no runtime for "cobol" (have: python) (runtime_unknown, lang)\n',
        ),
        (
            {"status": 401, "detail": "no valid credentials", "code": "unauthenticated"},
            "error: no valid credentials (unauthenticated); give a key with --api-key or RUNTAPE_API_KEY\n",
        ),
        (
            {"status": 503, "detail": "the queue is full", "code": "queue_full", "retry_after": "3"},
            "error: the queue is full (queue_full); try again in 3 s\n",
        ),
    ],
)
def test_refusal_of_the_server(
    server: FakeServer, script: Path, answer: dict[str, Any], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async def execute(request: Request, reply: Reply) -> None:
        headers = {"Retry-After": answer["retry_after"]} if "retry_after" in answer else None
        await reply.json(answer["status"], answer, headers)

    server.handlers["POST /execute"] = execute
    assert main(["run", str(script), "--server", server.url]) == 125
    assert capfd.readouterr() == ("", told)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_cancels_the_run_and_waits_for_its_end(server: FakeServer, script: Path, number: signal.Signals) -> None:
    import asyncio

    cancelled = asyncio.Event()

    async def execute(request: Request, reply: Reply) -> None:
        await reply.stream(BEGIN, output(1, b"working\n"))
        await cancelled.wait()
        await reply.stream(output(2, b"last words\n"), result(2, kind="cancelled", exit_code=None))

    async def cancel(request: Request, reply: Reply) -> None:
        await reply.json(200, {"status": "cancellation_requested"})
        cancelled.set()

    server.handlers |= {"POST /execute": execute, f"POST /executions/{EXECUTION}/cancel": cancel}
    with start("run", script, "--server", server.url) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"working\n"
        process.send_signal(number)
        assert process.stdout.read() == b"last words\n"
        said = process.stderr.read().decode()
        assert process.wait(10) == 130
    assert f"runtape: cancelling ({number.name}); once more to leave at once\n" in said
    assert said.endswith(f"runtape: {EXECUTION}: cancelled, wall 213 ms, CPU 30 ms, peak memory 9.4 MiB\n")


def test_second_ctrl_c_leaves_at_once(server: FakeServer, script: Path) -> None:
    async def execute(request: Request, reply: Reply) -> None:
        await reply.stream(BEGIN, output(1, b"working\n"))

    async def cancel(request: Request, reply: Reply) -> None:
        await reply.json(200, {"status": "cancellation_requested"})

    server.handlers |= {"POST /execute": execute, f"POST /executions/{EXECUTION}/cancel": cancel}
    with start("run", script, "--server", server.url) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"working\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == b"runtape: cancelling (SIGINT); once more to leave at once\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


def test_ctrl_c_before_the_run_is_known_cancels_it_once_it_is(server: FakeServer, script: Path) -> None:
    import asyncio

    asked, cancelled = os.pipe(), asyncio.Event()

    async def execute(request: Request, reply: Reply) -> None:
        os.write(asked[1], b"!")
        await asyncio.get_running_loop().run_in_executor(None, os.read, answer[0], 1)
        await reply.stream(BEGIN)
        await cancelled.wait()
        await reply.stream(result(kind="cancelled", exit_code=None))

    async def cancel(request: Request, reply: Reply) -> None:
        await reply.json(200, {"status": "cancellation_requested"})
        cancelled.set()

    answer = os.pipe()
    server.handlers |= {"POST /execute": execute, f"POST /executions/{EXECUTION}/cancel": cancel}
    with start("run", script, "--server", server.url) as process:
        assert process.stderr is not None
        os.read(asked[0], 1)
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline().startswith(b"runtape: cancelling")
        os.write(answer[1], b"!")
        assert process.wait(10) == 130
    for fd in (*asked, *answer):
        os.close(fd)


def test_reader_that_goes_away_cancels_the_run_quietly(server: FakeServer, script: Path) -> None:
    async def execute(request: Request, reply: Reply) -> None:
        await reply.stream(BEGIN, *(output(seq, b"line\n" * 4096) for seq in range(1, 30)))

    async def cancel(request: Request, reply: Reply) -> None:
        await reply.json(200, {"status": "cancellation_requested"})

    server.handlers |= {"POST /execute": execute, f"POST /executions/{EXECUTION}/cancel": cancel}
    with start("run", script, "--server", server.url) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(5) == b"line\n"
        process.stdout.close()
        assert process.wait(10) == 141
        assert process.stderr.read() == b""
    assert len(server.asked("POST", f"/executions/{EXECUTION}/cancel")) == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_no_problem(server: FakeServer, script: Path, closed: str) -> None:
    answer_with(server, BEGIN, output(1, b"out\n"), output(2, b"err\n", stream="stderr"), result(2, exit_code=4))
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, "run", str(script), "--server", server.url]
    assert subprocess.run(command, env=environment(), capture_output=True, check=False).returncode == 4


@pytest.mark.parametrize("no_color", ["", "1"])
def test_own_lines_are_dim_on_a_terminal_unless_colour_is_unwanted(
    server: FakeServer, script: Path, no_color: str
) -> None:
    queued = b'data: {"event_type": "execution_queued", "position": 3, "estimated_wait_s": 2.2}\n\n'
    answer_with(server, lifecycle("execution_requested", 1, attempt=0), queued, BEGIN, output(1, b"tail"), result(1))
    ours, theirs = pty.openpty()
    env = environment(NO_COLOR=no_color, TERM="xterm")
    command = [*COMMAND, "run", str(script), "--server", server.url]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:
            pass  # a terminal whose other side is closed answers EIO
        assert process.wait(10) == 0
    os.close(ours)
    assert b"queued, position 3, about 2 s" in shown
    assert b"tail\r\n" in shown
    assert (b"\x1b[2mruntape: " in shown) is not bool(no_color)
    assert (b"\x1b" in shown) is not bool(no_color)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["/nowhere/x.py"], "error: cannot read /nowhere/x.py: No such file or directory"),
        (["{script}.txt"], "name it with --lang"),
        (["{script}", "--file", "/nowhere/data"], "error: cannot read /nowhere/data (--file /nowhere/data)"),
        (["{script}", "--env", "novalue"], 'error: --env takes NAME=VALUE, not "novalue"'),
        (["{script}", "--timeout", "soon"], 'error: Invalid value for --timeout: unable to convert "soon" into float'),
        (["{script}", "--sevrer", "x"], "error: Unknown option: --sevrer"),
        (["--sevrer", "{script}"], "error: Unknown option: --sevrer"),
        ([], "see `runtape run --help`"),
        (["{script}", "--server", "ftp://x"], 'error: "ftp://x" is not a server address'),
        (["{script}", "--server", "http://127.0.0.1:1"], "error: cannot reach http://127.0.0.1:1: Connection refused"),
    ],
)
def test_errors_name_the_thing_and_exit_with_125(
    script: Path, arguments: list[str], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (script.parent / "hello.py.txt").write_text("no language\n")
    code = main(["run", *(argument.format(script=script) for argument in arguments)])
    printed = capfd.readouterr()
    assert told in printed.err
    assert (code, printed.out) == (125, "")


def test_script_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_bytes(b"print()\xff")
    done = runtape("run", tmp_path / "x.py")
    assert b"is not UTF-8 text (byte 7)" in done.stderr
    assert done.returncode == 125


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        ({"kind": "exited", "exit_code": 0}, 0),
        ({"kind": "exited", "exit_code": 255}, 255),
        ({"kind": "signalled", "signal": 9}, 137),
        ({"kind": "signalled", "signal": 11}, 139),
        ({"kind": "time_limit"}, 124),
        ({"kind": "wall_limit"}, 124),
        ({"kind": "memory_limit"}, 137),
        ({"kind": "output_limit"}, 153),
        ({"kind": "cancelled"}, 130),
        ({"kind": "sandbox_error"}, 125),
        ({"kind": "of another version"}, 125),
        (None, 125),
    ],
)
def test_exit_codes(outcome: dict[str, Any] | None, code: int) -> None:
    assert exit_code(outcome) == code
