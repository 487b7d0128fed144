"""The benchmark itself, at its shortest: it measures, tells it in the promised shape, and leaves nothing behind."""

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from runtape.bench.answers import check
from runtape.bench.client import Clients, Load
from runtape.bench.errors import WrongAnswer
from tests.cli.commands import COMMAND, environment

TIME_LIMIT_S = 60


@pytest.mark.needs("patience")
@pytest.mark.timeout(80)
def test_quick_benchmark_of_the_control_plane_gives_the_promised_figures(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "bench", "--null-sandbox", "--quick", "--json"],
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        env=environment(TMPDIR=str(tmp_path)),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    figures = report["end_to_end"]
    assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
    assert 0.01 < figures["p50_ratio_to_bare"] < 5
    assert 0.1 < figures["throughput_ratio_to_bare"] < 100
    assert 0.1 < figures["cpu_ms_per_run"] < 50
    assert report["bare"]["p50_ms"] > 0
    assert report["memory"]["idle_mib"] > 10
    assert report["machine"]["cores"] >= 1
    assert {target["name"] for target in report["targets"]}
    assert list(tmp_path.iterdir()) == []


def answer(*frames: str, status: str = "200 OK") -> bytes:
    body = "".join(f"{frame}\n\n" for frame in frames).encode()
    return (
        f"HTTP/1.1 {status}\r\ntransfer-encoding: chunked\r\n\r\n{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    )


OUTPUT = 'event: output\ndata: {"text":"1\\n"}'
STORED = 'data: {"event_type":"result_stored","result":{"stdout":"1\\n","exit_code":0}}'
END = "event: end\ndata: {}"


def test_right_answer_is_accepted() -> None:
    check(answer(OUTPUT, STORED, END))


@pytest.mark.parametrize(
    "wrong",
    [
        answer(STORED, OUTPUT, END),
        answer(OUTPUT, END),
        answer(OUTPUT, STORED),
        answer(OUTPUT, OUTPUT, STORED, END),
        answer(OUTPUT, STORED.replace(":0}", ":1}"), END),
        answer(OUTPUT, STORED, END, status="503 Service Unavailable"),
        answer(),
    ],
    ids=["result before output", "no result", "no end", "output twice", "exit code 1", "refused", "nothing"],
)
def test_wrong_answer_ends_the_benchmark(wrong: bytes) -> None:
    with pytest.raises(WrongAnswer):
        check(wrong)


async def test_client_opens_a_connection_again_that_the_server_has_closed() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(answer(OUTPUT, STORED, END))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    clients = Clients()
    async with server:
        for _ in range(2):
            loaded = await clients.carry(Load(url=f"http://127.0.0.1:{port}", key="key", clients=1, runs=1))
            assert (len(loaded.latencies_s), loaded.wrong) == (1, None)
            async with asyncio.timeout(5):
                while any(each.is_open for each in clients.opened):  # noqa: ASYNC110 - the closing tells nobody
                    await asyncio.sleep(0)
