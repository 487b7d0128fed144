"""Finding the server of a data folder, and starting one; a script stands in for the server's process."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from runtape.cli.errors import CliError, Unreachable
from runtape.cli.server import Locator, default_data
from tests.cli.commands import runtape
from tests.cli.fake_server import BEGIN, INSTANCE, FakeServer, Handler, Reply, Request, live, output, result

# Called as `up` would be.  Notes the call, and does what the file "does" says for this call.
STAND_IN = """
import json, os, pathlib, signal, sys
data = pathlib.Path(sys.argv[sys.argv.index("--data") + 1])
calls = data / "calls"
with calls.open("a") as file:
    print(" ".join(sys.argv[1:]), file=file)
turn = len(calls.read_text().splitlines()) - 1
does = json.loads((data / "does").read_text())
print("starting up")
does = does[min(turn, len(does) - 1)]
if "hangs" in does:
    signal.pause()
if "url" in does:
    (data / "local.key").write_text("local-key\\n")
    (data / "server.json.new").write_text(json.dumps({"url": does["url"], "pid": 1, "instance": does["instance"]}))
    os.replace(data / "server.json.new", data / "server.json")
sys.exit(does.get("exit", 0))
"""


@pytest.fixture
def server() -> Iterator[FakeServer]:
    async def healthy(request: Request, reply: Reply) -> None:
        await reply.json(200, live(request))

    async def ready(request: Request, reply: Reply) -> None:
        await reply.json(200, {"status": "ready"})

    async def execute(request: Request, reply: Reply) -> None:
        await reply.stream(BEGIN, output(1, b"embedded\n"), result(1))

    handlers = {"GET /health/live": healthy, "GET /health/ready": ready, "POST /execute": execute}
    with FakeServer(handlers) as running:  # type: ignore[arg-type]
        yield running


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "x.py"
    path.write_text("print('embedded')\n")
    return path


def tell(data: Path, url: str) -> None:
    data.mkdir(exist_ok=True)
    (data / "server.json").write_text(json.dumps({"url": url, "pid": os.getpid(), "instance": INSTANCE}))
    (data / "local.key").write_text("local-key\n")


def stand_in(data: Path, *does: dict[str, object], start_s: float = 10.0) -> Locator:
    data.mkdir(exist_ok=True)
    (data / "does").write_text(json.dumps([{"instance": INSTANCE, **each} for each in does]))
    (data / "stand_in.py").write_text(STAND_IN)
    return Locator(data=data, start_s=start_s, command=(sys.executable, "-S", str(data / "stand_in.py")))


def calls(data: Path) -> list[str]:
    return (data / "calls").read_text().splitlines()


def test_running_server_is_used_on_the_connection_that_found_it(
    server: FakeServer, tmp_path: Path, script: Path
) -> None:
    tell(tmp_path / "data", server.url)
    done = runtape("run", script, "--data", tmp_path / "data")
    assert (done.returncode, done.stdout) == (0, b"embedded\n")
    assert [request.path for request in server.requests] == ["/health/live", "/execute"]
    assert server.connections == 1


def test_key_is_not_shown_before_the_server_has_answered(server: FakeServer, tmp_path: Path, script: Path) -> None:
    tell(tmp_path / "data", server.url)
    runtape("run", script, env={"RUNTAPE_DATA": str(tmp_path / "data")})
    probe, execute = server.requests
    assert "authorization" not in probe.headers
    assert execute.headers["authorization"] == "Bearer local-key"


def test_named_folder_wins_over_a_server_of_the_environment(server: FakeServer, tmp_path: Path, script: Path) -> None:
    tell(tmp_path / "data", server.url)
    env = {"RUNTAPE_SERVER": "http://127.0.0.1:1"}
    assert runtape("run", script, "--data", tmp_path / "data", env=env).returncode == 0
    assert runtape("run", script, env=env).returncode == 125


def test_server_is_started_when_there_is_none(server: FakeServer, tmp_path: Path) -> None:
    data = tmp_path / "data"
    api = stand_in(data, {"url": server.url}).locate()
    assert api.call("GET", "/health/ready") == {"status": "ready"}
    assert [request.path for request in server.requests] == ["/health/live", "/health/ready", "/health/ready"]
    assert server.requests[-1].headers["authorization"] == "Bearer local-key"
    assert calls(data) == [f"--host 127.0.0.1 --port 0 --data {data}"]
    assert server.connections == 1
    assert (data / "server.log").stat().st_mode & 0o777 == 0o600
    api.close()


async def _knows_nothing(request: Request, reply: Reply) -> None:
    await reply.json(200, {"status": "ok"})


async def _knows_another_secret(request: Request, reply: Reply) -> None:
    await reply.json(200, live(request, "what it made up"))


async def _repeats_an_earlier_proof(request: Request, reply: Reply) -> None:
    await reply.json(200, live(replace(request, query="challenge=an-earlier-one")))


async def _gives_no_object(request: Request, reply: Reply) -> None:
    await reply.json(200, ["ok"])


async def _sends_elsewhere(request: Request, reply: Reply) -> None:
    await reply.json(302, live(request, ""), {"location": "http://127.0.0.1:1/"})


async def _proves_and_closes(request: Request, reply: Reply) -> None:
    await reply.json(200, live(request), {"connection": "close"})


async def _breaks_off(request: Request, reply: Reply) -> None:
    reply.drop()


IMPOSTORS = (
    _knows_nothing,
    _knows_another_secret,
    _repeats_an_earlier_proof,
    _gives_no_object,
    _sends_elsewhere,
    _proves_and_closes,
    _breaks_off,
)


@pytest.mark.parametrize("answer", IMPOSTORS)
def test_key_is_not_shown_to_a_program_that_has_the_port_of_a_server_that_is_gone(
    server: FakeServer, tmp_path: Path, answer: Handler
) -> None:
    data = tmp_path / "data"
    with FakeServer({"GET /health/live": answer}) as other:
        tell(data, other.url)
        stand_in(data, {"url": server.url}).locate().close()
        assert {request.path for request in other.requests} == {"/health/live"}
        assert all("authorization" not in request.headers for request in other.requests)
    assert len(calls(data)) == 1


def test_every_connection_to_our_server_is_proved_before_the_key_is_shown(server: FakeServer, tmp_path: Path) -> None:
    tell(tmp_path / "data", server.url)
    api = Locator(data=tmp_path / "data").locate()
    second = api.another(timeout_s=10.0)
    second.call("GET", "/health/ready")
    challenges = [request.query for request in server.asked("GET", "/health/live")]
    assert len(set(challenges)) == 2
    second.close()
    server.handlers["GET /health/live"] = _knows_nothing
    with pytest.raises(Unreachable, match="not our server"):
        second.call("GET", "/health/ready")
    assert len(server.asked("GET", "/health/ready")) == 1
    api.close()


def test_address_where_nobody_answers_leads_to_a_start(server: FakeServer, tmp_path: Path) -> None:
    data = tmp_path / "data"
    tell(data, "http://127.0.0.1:1")
    stand_in(data, {"url": server.url}).locate().close()
    assert len(calls(data)) == 1


def test_start_that_fails_shows_the_end_of_the_log(tmp_path: Path) -> None:
    with pytest.raises(CliError, match=r"(?s)ended with 3; its last lines:\n  starting up\n.*runtape doctor"):
        stand_in(tmp_path / "data", {"exit": 3}).locate()


def test_start_that_hangs_is_ended_after_a_while(tmp_path: Path) -> None:
    with pytest.raises(CliError, match=r"no server was ready in .* within 0.3 s"):
        stand_in(tmp_path / "data", {"hangs": True}, start_s=0.3).locate()
    # A process of ours that still ran would fail this test as a ResourceWarning.


def test_start_that_met_a_leaving_server_is_repeated(server: FakeServer, tmp_path: Path) -> None:
    data = tmp_path / "data"
    stand_in(data, {}, {"url": server.url}).locate().close()
    assert len(calls(data)) == 2


def test_server_that_goes_between_probe_and_submission_is_looked_for_again(
    server: FakeServer, tmp_path: Path, script: Path
) -> None:
    async def execute(request: Request, reply: Reply) -> None:
        if len(server.asked("POST", "/execute")) == 1:
            reply.drop()
        else:
            await reply.stream(BEGIN, output(1, b"second\n"), result(1))

    server.handlers["POST /execute"] = execute
    tell(tmp_path / "data", server.url)
    assert runtape("run", script, "--data", tmp_path / "data").stdout == b"second\n"
    assert [request.path for request in server.requests] == ["/health/live", "/execute"] * 2


def test_folder_that_cannot_be_made_is_named(tmp_path: Path, script: Path) -> None:
    (tmp_path / "file").write_text("")
    done = runtape("run", script, "--data", tmp_path / "file" / "data")
    assert b"choose another folder with --data" in done.stderr
    assert done.returncode == 125


@pytest.mark.parametrize(
    ("env", "folder"),
    [
        ({"RUNTAPE_DATA": "/srv/tape", "XDG_DATA_HOME": "/xdg"}, "/srv/tape"),
        ({"XDG_DATA_HOME": "/xdg"}, "/xdg/runtape"),
        ({"XDG_DATA_HOME": "relative"}, "/home/me/.local/share/runtape"),
        ({}, "/home/me/.local/share/runtape"),
    ],
)
def test_data_folder(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], folder: str) -> None:
    for name in ("RUNTAPE_DATA", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **env}.items():
        monkeypatch.setenv(name, value)
    assert default_data() == Path(folder)
