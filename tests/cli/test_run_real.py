"""The commands against the real embedded server and its sandbox."""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.commands import runtape, start, start_to_the_last

pytestmark = pytest.mark.needs("server")
EXAMPLES = Path(__file__).parents[2] / "examples"
LAST_LINE = re.compile(
    r"^runtape: (?P<id>[0-9a-f-]{36}): (?P<outcome>[^,]+), wall [\d.]+ m?s, CPU [\d.]+ m?s, "
    r"peak memory [\d.]+ [KMG]?i?B\n\Z",
    re.MULTILINE,
)
SAYS_AND_STAYS = "import time; print('working', flush=True); time.sleep(250)"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder whose server stays for all tests that do not look at its life."""
    data = tmp_path_factory.mktemp("shared")
    with start_to_the_last("up", "--port", "0", "--data", data) as server:
        assert server.stdout is not None
        while not (line := server.stdout.readline()).startswith(b"ready http://"):
            assert line, "the server ended before it was ready"
        yield data
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0


def script(tmp_path: Path, text: str, name: str = "x.py") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_hello(shared: Path) -> None:
    done = runtape("run", EXAMPLES / "hello.py", "--data", shared)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 3)
    assert done.stdout.startswith(b"Hello from Python 3.")
    last = LAST_LINE.search(done.stderr.decode())
    assert last is not None
    assert last["outcome"] == "exited 0"


@pytest.mark.needs("bash")
def test_hello_from_bash(shared: Path) -> None:
    done = runtape("run", EXAMPLES / "hello.sh", "--data", shared)
    assert done.returncode == 0
    assert done.stdout.startswith(b"Hello from bash ")
    assert done.stderr.startswith(b"This line went to standard error.\nruntape: ")


@pytest.mark.needs("node")
def test_hello_from_node(shared: Path) -> None:
    done = runtape("run", EXAMPLES / "hello.mjs", "--data", shared)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2), done.stderr


def test_standard_input_arrives_and_returns_byte_for_byte(shared: Path, tmp_path: Path) -> None:
    echo = script(tmp_path, "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())")
    data = bytes(range(256)) * 1000
    assert runtape("run", echo, "--data", shared, stdin=data).stdout == data
    assert runtape("run", EXAMPLES / "sum.py", "--data", shared, stdin=b"1 2\n3.5\n").stdout == b"6.5\n"


def test_exit_code_arguments_environment_and_files(shared: Path, tmp_path: Path) -> None:
    text = "import os, sys; print(sys.argv[1:], os.environ['A'], open('in/data').read(), end=''); sys.exit(41)"
    file = script(tmp_path, "content\n", "file")
    options = ["--env", "A=b=c", "--file", f"{file}=in/data", "--arg", "one"]
    done = runtape("run", script(tmp_path, text), "--data", shared, *options, "--", "-two")
    assert done.stdout == b"['one', '-two'] b=c content\n"
    assert done.returncode == 41


@pytest.mark.parametrize(
    ("text", "options", "code", "outcome"),
    [
        ("while True: pass", ["--timeout", "0.3"], 124, "limit reached"),
        ("import time; time.sleep(60)", ["--timeout", "0.3"], 124, "time limit reached"),
        ("x = bytearray(1 << 30)", ["--memory", "64"], 137, "memory limit reached"),
        ("while True: print('x' * 4095)", [], 153, "output limit reached"),
        ("import os; os.kill(os.getpid(), 11)", [], 139, "killed by SIGSEGV"),
    ],
)
def test_ends_that_are_not_the_scripts_own(
    shared: Path, tmp_path: Path, text: str, options: list[str], code: int, outcome: str
) -> None:
    done = runtape("run", script(tmp_path, text), "--data", shared, *options)
    assert (done.returncode, outcome in done.stderr.decode()) == (code, True), done.stderr


def test_refusal_names_what_is_wrong(shared: Path, tmp_path: Path) -> None:
    done = runtape("run", script(tmp_path, ""), "--lang", "cobol", "--data", shared)
    assert done.returncode == 125
    assert re.match(rb'error: no runtime for "cobol" \(have: .*\) \(runtime_unknown, lang\)\n', done.stderr)
    done = runtape("run", script(tmp_path, ""), "--memory", "1000000", "--data", shared)
    assert done.stderr.endswith(b"(limit_out_of_range, limits.memory_mb)\n")


def test_output_streams_and_ctrl_c_cancels(shared: Path, tmp_path: Path) -> None:
    with start("run", script(tmp_path, SAYS_AND_STAYS), "--data", shared) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"working\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130
        last = LAST_LINE.search(process.stderr.read().decode())
    assert last is not None
    assert last["outcome"].startswith("cancelled")


def test_json_is_the_result(shared: Path, tmp_path: Path) -> None:
    done = runtape("run", script(tmp_path, "print('out')"), "--data", shared, "--json")
    told = json.loads(done.stdout)
    assert (told["stdout"], told["outcome"]["kind"], told["status"]) == ("out\n", "exited", "completed")
    assert done.stderr == b""


def test_timeline_is_shown_as_bars_or_told_as_points(shared: Path, tmp_path: Path) -> None:
    spin = script(tmp_path, "import time\nwhile time.process_time() < 0.3:\n    pass")
    done = runtape("run", spin, "--timeline", "--data", shared)
    assert re.search(r"memory \|[ ▁-█]+\| up to .+\n.*CPU    \|[ ▁-█]+\| up to .+ processors", done.stderr.decode())
    points = json.loads(runtape("run", spin, "--timeline", "--json", "--data", shared).stdout)["timeline"]
    assert len(points) >= 2
    assert points[-1]["cpu_ns"] >= 250_000_000
    assert json.loads(runtape("run", spin, "--json", "--data", shared).stdout)["timeline"] is None


def test_files_out_are_named_saved_and_listed(shared: Path, tmp_path: Path) -> None:
    text = "import os\nos.makedirs('out/a'); open('out/a/b', 'wb').write(bytes(3000))\nopen('out/ü', 'w').write('x')\n"
    done = runtape(
        "run", script(tmp_path, text + "os.mkfifo('out/p')"), "--data", shared, "--artifacts", tmp_path / "new/kept"
    )
    told = done.stderr.decode().splitlines()
    assert told[:3] == ["runtape: out/a/b, 2.9 KiB", "runtape: out/ü, 1 B", "runtape: not kept: 1 (no regular file)"]
    assert ((tmp_path / "new/kept/a/b").read_bytes(), (tmp_path / "new/kept/ü").read_text()) == (bytes(3000), "x")
    last = LAST_LINE.search(done.stderr.decode())
    assert last is not None
    listed = runtape("artifacts", last["id"], "--data", shared, "--out", tmp_path / "again")
    assert listed.stdout.decode() == "        3000 a/b\n           1 ü\n"
    assert (tmp_path / "again/a/b").read_bytes() == bytes(3000)
    told_json = json.loads(runtape("artifacts", last["id"], "--data", shared, "--json").stdout)
    assert [each["path"] for each in told_json["artifacts"]] == ["a/b", "ü"]


def test_tape_prints_a_past_run_with_its_timing(shared: Path, tmp_path: Path) -> None:
    text = "import sys, time; print('a', flush=True); time.sleep(.2); print('b', file=sys.stderr); sys.exit(3)"
    ran = runtape("run", script(tmp_path, text), "--data", shared)
    last = LAST_LINE.search(ran.stderr.decode())
    assert last is not None
    for speed in ("1", "0"):
        again = runtape("tape", last["id"], "--data", shared, "--speed", speed)
        assert (again.stdout, again.stderr, again.returncode) == (ran.stdout, ran.stderr, 0)
    records = json.loads(runtape("tape", last["id"], "--data", shared, "--json").stdout)["records"]
    # How many records a line makes is the program's buffering.
    printed = {
        stream: [each["text"] for each in records if each["stream"] == stream] for stream in ("stdout", "stderr")
    }
    assert {stream: "".join(texts) for stream, texts in printed.items()} == {"stdout": "a\n", "stderr": "b\n"}
    # Since the start; a record may be read late, never early.
    assert records[-1]["t_ns"] >= 200_000_000


def test_two_at_once_share_one_server_that_leaves_nothing_behind(tmp_path: Path) -> None:
    data = tmp_path / "data"
    stays = script(tmp_path, SAYS_AND_STAYS)
    with start_to_the_last("run", stays, "--data", data) as one, start_to_the_last("run", stays, "--data", data) as two:
        for process in (one, two):
            assert process.stdout is not None
            assert process.stdout.readline() == b"working\n"
        assert (data / "server.log").read_text().count("ready http://") == 1
        for process in (one, two):
            process.send_signal(signal.SIGTERM)
        assert [process.wait(10) for process in (one, two)] == [130, 130]
    assert not (data / "server.json").exists()
    assert [path for path in data.iterdir() if path.stat().st_mode & 0o077] == []


def test_killed_server_is_replaced_and_the_run_followed_to_its_end(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with start_to_the_last("run", script(tmp_path, SAYS_AND_STAYS), "--data", data) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"working\n"
        os.kill(json.loads((data / "server.json").read_text())["pid"], signal.SIGKILL)
        # The second attempt prints it once more.
        assert process.stdout.readline() == b"working\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        said = process.stderr.read().decode()
    assert "; resuming\n" in said
    assert "attempt 2 starts again" in said


def test_doctor_says_that_code_can_be_run(tmp_path: Path) -> None:
    done = runtape("doctor", "--json", "--data", tmp_path)
    told = json.loads(done.stdout)
    assert (done.returncode, told["can_run"]) == (0, True), told
    assert {"interpreter", "data folder", "disk", "port"} <= {check["name"] for check in told["checks"]}
    assert runtape("doctor", "--data", tmp_path).stdout.endswith(b"code can be run here\n")
