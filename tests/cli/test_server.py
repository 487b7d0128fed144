"""Finding the server of a data folder, and starting one; a script stands in for the server's process."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtape.cli.errors import CliError
from runtape.cli.server import Locator, default_data
from tests.cli.commands import runtape
from tests.cli.fake_server import BEGIN, FakeServer, Reply, Request, output, result

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
    (data / "server.json.new").write_text(json.dumps({"url": does["url"], "pid": 1, "ephemeral": True}))
    os.replace(data / "server.json.new", data / "server.json")
sys.exit(does.get("exit", 0))
"""


@pytest.fixture
def server() -> Iterator[FakeServer]:
    async def healthy(request: Request, reply: Reply) -> None:
        await reply.json(200, {"status": "ok"})

    async def execute(request: Request, reply: Reply) -> None:
        await reply.stream(BEGIN, output(1, b"embedded\n"), result(1))

    handlers = {"GET /health/live": healthy, "GET /health/ready": healthy, "POST /execute": execute}
    with FakeServer(handlers) as running:  # type: ignore[arg-type]
        yield running


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "x.py"
    path.write_text("print('embedded')\n")
    return path


def tell(data: Path, url: str, key: str = "local-key") -> None:
    data.mkdir(exist_ok=True)
    (data / "server.json").write_text(json.dumps({"url": url, "pid": os.getpid(), "ephemeral": True}))
    (data / "local.key").write_text(f"{key}\n")


def stand_in(data: Path, *does: dict[str, object], start_s: float = 10.0) -> Locator:
    data.mkdir(exist_ok=True)
    (data / "does").write_text(json.dumps(does))
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
    assert api.call("GET", "/health/live") == {"status": "ok"}
    assert server.requests[0].path == "/health/ready"
    assert server.requests[-1].headers["authorization"] == "Bearer local-key"
    assert calls(data) == [f"--host 127.0.0.1 --port 0 --data {data}"]
    assert server.connections == 1
    assert (data / "server.log").stat().st_mode & 0o777 == 0o600
    api.close()


@pytest.mark.parametrize("port", ["closed", "of another program"])
def test_address_of_a_server_that_is_gone_is_not_believed(server: FakeServer, tmp_path: Path, port: str) -> None:
    data = tmp_path / "data"
    with FakeServer() as other:
        tell(data, "http://127.0.0.1:1" if port == "closed" else other.url)
        stand_in(data, {"url": server.url}).locate().close()
        assert all("authorization" not in request.headers for request in other.requests)
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
