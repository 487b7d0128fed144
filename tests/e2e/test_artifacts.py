"""The files that a run leaves: on its result, in a list, and as downloads."""

import hashlib
from collections.abc import Callable
from urllib.parse import quote

import pytest

from tests.e2e.server import Client, Server
from tests.e2e.test_refusals import assert_problem

NAMES = ("a.txt", "b/c.html", "größe 😀.txt", 'q"uo;te.txt', "per%2Fcent.txt", "c:\\d.txt", "..a/...", "a b?c#d&e")
EMPTY = {"artifacts": [], "artifacts_left_out": {}}


def leaving(*paths: str) -> str:
    return "\n".join(f"leave {path} content of {path}" for path in paths if " " not in path)


def content(path: str) -> bytes:
    return f"content of {path}\n".encode()


@pytest.fixture
async def left(client: Client) -> dict[str, object]:
    """The result of a run that has left files, and more that were not kept."""
    return await client.run(leaving(*NAMES) + "\nomit too_large 2\nomit not_regular 1\nexit 7")


async def test_artifacts_are_on_the_result_and_in_the_list(client: Client, left: dict[str, object]) -> None:
    expected = [
        {"path": path, "size_bytes": len(content(path)), "sha256": hashlib.sha256(content(path)).hexdigest()}
        for path in sorted(NAMES)
        if " " not in path
    ]
    assert left["artifacts"] == expected
    assert left["artifacts_left_out"] == {"too_large": 2, "not_regular": 1}
    answer = await client.get(f"/executions/{left['execution_id']}/artifacts")
    assert answer.json() == {name: left[name] for name in EMPTY}
    assert (await client.result(str(left["execution_id"])))["artifacts"] == expected


async def test_every_artifact_is_an_attachment_that_no_browser_shows(client: Client, left: dict[str, object]) -> None:
    for path in (name for name in NAMES if " " not in name):
        answer = await client.get(f"/executions/{left['execution_id']}/artifacts/{quote(path)}")
        assert (answer.status_code, answer.content) == (200, content(path)), path
        headers = answer.headers
        assert headers["content-type"] == "application/octet-stream"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'; sandbox"
        assert headers["content-disposition"].startswith('attachment; filename="')
        assert headers["content-disposition"].isascii()
        assert headers["etag"] == f'"{hashlib.sha256(content(path)).hexdigest()}"'
        assert headers["content-length"] == str(len(content(path)))


@pytest.mark.parametrize(
    ("path", "disposition"),
    [
        ("b/c.html", 'attachment; filename="c.html"'),
        ('q"uo;te.txt', "attachment; filename=\"q_uo_te.txt\"; filename*=UTF-8''q%22uo%3Bte.txt"),
        ("c:\\d.txt", "attachment; filename=\"c__d.txt\"; filename*=UTF-8''c%3A%5Cd.txt"),
    ],
)
async def test_name_of_a_download_is_that_of_the_file(
    client: Client, left: dict[str, object], path: str, disposition: str
) -> None:
    answer = await client.get(f"/executions/{left['execution_id']}/artifacts/{quote(path)}")
    assert answer.headers["content-disposition"] == disposition


@pytest.mark.parametrize(
    "path",
    [
        *("", "nobody", "a.txt/", "/a.txt", "A.TXT", "b", "b/", "b//c.html", "c.html", "a.txt%00", "a.txt%0Ax"),
        *("%2e%2e/a.txt", "b/%2e%2e/a.txt", "b%2f%2e%2e%2fa.txt", "..%2fresult", "%2fetc%2fpasswd", "b%252fc.html"),
    ],
)
async def test_only_the_exact_path_leads_to_an_artifact(client: Client, left: dict[str, object], path: str) -> None:
    answer = await client.get(f"/executions/{left['execution_id']}/artifacts/{path}")
    assert_problem(answer, 404, "not_found")


async def test_a_range_and_a_known_digest_are_understood(client: Client, left: dict[str, object]) -> None:
    path = f"/executions/{left['execution_id']}/artifacts/a.txt"
    part = await client.get(path, headers={"range": "bytes=3-6"})
    assert (part.status_code, part.content) == (206, content("a.txt")[3:7])
    assert_problem(await client.get(path, headers={"range": "bytes=999-"}), 416, "range_not_satisfiable", "Range")
    known = await client.get(path, headers={"if-none-match": part.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")


async def test_there_are_none_before_the_end(client: Client, simulated: Server) -> None:
    execution_id = await client.execute("leave a b\nprint up\nwait artifacts")
    async with client.stream(execution_id) as stream:
        await stream.until("output")
        assert (await client.get(f"/executions/{execution_id}/artifacts")).json() == EMPTY
        assert_problem(await client.get(f"/executions/{execution_id}/artifacts/a"), 404, "not_found")
        simulated.let("artifacts")
        frames = await stream.rest()
    assert [each["path"] for each in frames[-2].data["result"]["artifacts"]] == ["a"]


async def test_only_those_of_the_last_attempt_count(client: Client) -> None:
    result = await client.run("leave a b\nfail lost", on_interrupt="restart")
    assert (result["status"], result["attempt"]) == ("failed", 3)
    assert [each["path"] for each in result["artifacts"]] == ["a"]


async def test_they_go_with_their_execution_and_no_other(client: Client) -> None:
    first, second = [(await client.run("leave same text"))["execution_id"] for _ in range(2)]
    assert (await client.http.delete(f"/executions/{first}")).status_code == 204
    assert_problem(await client.get(f"/executions/{first}/artifacts/same"), 404, "not_found")
    assert (await client.get(f"/executions/{second}/artifacts/same")).content == b"text\n"


@pytest.mark.embedded  # the server is killed
async def test_they_outlive_the_server(serve: Callable[..., Server]) -> None:
    server = serve()
    async with server.client() as client:
        result = await client.run("leave a kept")
    server.kill()
    async with serve(data=server.data).client() as client:
        answer = await client.get(f"/executions/{result['execution_id']}/artifacts/a")
        assert answer.content == b"kept\n"
        assert (await client.result(result["execution_id"]))["artifacts"] == result["artifacts"]


@pytest.mark.needs("server")
async def test_real_program_leaves_files(real: Client) -> None:
    script = "open('out/data.bin', 'wb').write(bytes(range(256)) * 4096)\nimport os; os.symlink('/etc/passwd', 'out/x')"
    result = await real.run(script)
    assert [each["path"] for each in result["artifacts"]] == ["data.bin"]
    assert result["artifacts_left_out"] == {"not_regular": 1}
    answer = await real.get(f"/executions/{result['execution_id']}/artifacts/data.bin")
    assert answer.content == bytes(range(256)) * 4096
