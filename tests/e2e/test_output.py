"""The exact bytes of a run's output, whole and in ranges."""

import hashlib

import pytest

from tests.e2e.server import Client, Server
from tests.e2e.test_refusals import assert_problem

DATA = bytes(range(256)) * 16
STDERR = b"to stderr\n"


@pytest.fixture
async def path(client: Client) -> str:
    """The path of the standard output of a run that printed `DATA`, in pieces of different sizes."""
    lines: list[str] = []
    start = 0
    while start < len(DATA):
        size = 1 + len(lines) * 7
        lines += [f"bytes {DATA[start : start + size].hex()}", "eprint " + "e" * len(lines)]
        start += size
    result = await client.run("\n".join(lines))
    return f"/executions/{result['execution_id']}/output/stdout"


async def test_whole_output_is_an_attachment_with_its_digest(client: Client, path: str) -> None:
    answer = await client.get(path)
    assert (answer.status_code, answer.content) == (200, DATA)
    headers = answer.headers
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-disposition"].startswith("attachment;")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["accept-ranges"] == "bytes"
    assert headers["content-length"] == str(len(DATA))
    assert headers["etag"] == f'"{hashlib.sha256(DATA).hexdigest()}"'


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-4095", 0, 4096),
        ("bytes=1-1000", 1, 1001),
        ("bytes=255-256", 255, 257),
        ("bytes=4000-", 4000, 4096),
        ("bytes=4095-9999", 4095, 4096),
        ("bytes=-1", 4095, 4096),
        ("bytes=-4096", 0, 4096),
        ("bytes=-999999", 0, 4096),
    ],
)
async def test_range_gives_exactly_its_bytes(client: Client, path: str, text: str, start: int, end: int) -> None:
    answer = await client.get(path, headers={"range": text})
    assert (answer.status_code, answer.content) == (206, DATA[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
    assert answer.headers["content-length"] == str(end - start)


async def test_every_split_point_joins_to_the_whole(client: Client, path: str) -> None:
    for cut in range(1, len(DATA), 97):
        head = await client.get(path, headers={"range": f"bytes=0-{cut - 1}"})
        tail = await client.get(path, headers={"range": f"bytes={cut}-"})
        assert head.content + tail.content == DATA, cut


@pytest.mark.parametrize("text", ["bytes=4096-", "bytes=5000-6000", "bytes=-0"])
async def test_range_beyond_the_end_cannot_be_satisfied(client: Client, path: str, text: str) -> None:
    answer = await client.get(path, headers={"range": text})
    assert_problem(answer, 416, "range_not_satisfiable", "Range")
    assert answer.headers["content-range"] == "bytes */4096"


@pytest.mark.parametrize("text", ["lines=0-1", "bytes=5-2", "bytes=", "bytes=-", "bytes=0-1,5-6", "bytes=a-b", "0-1"])
async def test_range_that_means_nothing_here_is_ignored(client: Client, path: str, text: str) -> None:
    """RFC 9110, 14.2: an unknown unit must be ignored, an invalid or many-part range may be."""
    answer = await client.get(path, headers={"range": text})
    assert (answer.status_code, answer.content) == (200, DATA)


async def test_known_output_is_not_sent_again(client: Client, path: str) -> None:
    etag = (await client.get(path)).headers["etag"]
    answer = await client.get(path, headers={"if-none-match": etag})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    answer = await client.get(path, headers={"if-none-match": '"something-else"'})
    assert (answer.status_code, answer.content) == (200, DATA)


async def test_range_of_another_version_gets_the_whole(client: Client, path: str) -> None:
    etag = (await client.get(path)).headers["etag"]
    same = await client.get(path, headers={"range": "bytes=0-9", "if-range": etag})
    assert (same.status_code, same.content) == (206, DATA[:10])
    other = await client.get(path, headers={"range": "bytes=0-9", "if-range": '"of-an-earlier-attempt"'})
    assert (other.status_code, other.content) == (200, DATA)


async def test_empty_output_is_empty(client: Client) -> None:
    result = await client.run("exit 0")
    for stream in ("stdout", "stderr"):
        answer = await client.get(f"/executions/{result['execution_id']}/output/{stream}")
        assert (answer.status_code, answer.content) == (200, b"")


async def test_output_can_be_read_before_the_end(client: Client, simulated: Server) -> None:
    execution_id = await client.execute("print early\nwait output-early\nprint late")
    path = f"/executions/{execution_id}/output/stdout"
    async with client.stream(execution_id) as stream:
        await stream.until("output")
        early = await client.get(path)
        assert (early.content, "etag" in early.headers) == (b"early\n", False)
        simulated.let("output-early")
        await stream.rest()
    rest = await client.get(path, headers={"range": f"bytes={len(early.content)}-"})
    assert rest.content == b"late\n"


async def test_result_carries_64_kib_inline_and_cuts_no_character(client: Client) -> None:
    text = "é" * 40_000
    result = await client.run(f"print x{text}")
    assert result["truncated_inline"] is True
    assert result["stdout"] == "x" + "é" * 32_767
    assert result["stdout_bytes"] == 80_002
    whole = await client.get(result["stdout_url"].removeprefix("/api/v1"))
    assert whole.content == f"x{text}\n".encode()
    assert hashlib.sha256(whole.content).hexdigest() == result["stdout_sha256"]


async def test_inline_output_replaces_what_is_no_utf8(client: Client) -> None:
    result = await client.run("bytes 61ff62")
    assert (result["stdout"], result["truncated_inline"]) == ("a�b", False)
