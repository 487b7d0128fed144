"""Packages over HTTP and by the command line, with a real server, a real resolver and an index of ours."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import runtape
from tests.e2e.server import Client, Server
from tests.e2e.sse import kinds
from tests.e2e.test_refusals import assert_problem
from tests.sandbox.package_index import Index, open_index, wheel

pytestmark = [
    pytest.mark.needs("server"),
    pytest.mark.timeout(120),
    pytest.mark.embedded,  # the index is a setting of the server's
]

WAITED_S = 20.0
Serve = Callable[..., Server]


@pytest.fixture(scope="module")
def index() -> Iterator[Index]:
    with open_index() as index:
        index.add(wheel("one", "1.0", {"one.py": "version = '1.0'\n"}))
        yield index


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, index: Index) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("packages") / "data"
    server = Server(data, packages__index_url=index.url.replace("//", "//somebody:s3cr3t-w0rd@")).start()
    yield server
    server.close()


async def until_resolving(server: Server, begun: Any) -> None:
    assert await asyncio.to_thread(begun.wait, WAITED_S), server.log.read_text()


async def test_packages_of_the_request_and_of_the_script(served: Server, tmp_path: Path) -> None:
    header = "# /// script\n# dependencies = ['one']\n# requires-python = '>=3.11'\n# ///\n"
    async with served.client() as client:
        asked = await client.run("import one; print(one.version)", requirements=["one>=1"])
        assert (asked["stdout"], asked["stderr"], asked["outcome"]["phase"]) == ("1.0\n", "", "run")
        assert (await client.run(f"{header}import one; print(one.version)"))["stdout"] == "1.0\n"
        retried = await client.post(f"/executions/{asked['execution_id']}/retry")
        assert (await client.ended(retried.json()["execution_id"]))["stdout"] == "1.0\n"
        limits = (await client.get("/k8s-limits")).json()["supported_runtimes"]
        assert (limits["python"]["packages"], limits["bash"]["packages"]) == (True, False)
    script = tmp_path / "script.py"
    script.write_text(f"{header}import one; print('header', one.version)")
    plain = tmp_path / "plain.py"
    plain.write_text("import one; print('with', one.version)")
    address = ("--server", served.url, "--api-key", served.key)
    assert runtape("run", script, *address).stdout == b"header 1.0\n"
    assert runtape("run", "--with", "one", plain, *address).stdout == b"with 1.0\n"
    failing = runtape("run", "--with", "one>1", plain, *address)
    assert failing.returncode == 1
    assert b"unsatisfiable" in failing.stderr
    assert b"resolver exited 1" in failing.stderr
    assert b"s3cr3t" not in failing.stderr + served.log.read_bytes()


async def test_failing_resolve_is_an_outcome_of_its_own(served: Server) -> None:
    async with served.client() as client:
        result = await client.run("print(1)", requirements=["one>1"])
        assert result["status"] == "completed"
        assert result["exit_code"] == 1
        assert (result["outcome"]["phase"], result["outcome"]["reason"]) == ("resolve", "unresolved")
        assert "one>1" in result["stderr"]
        assert result["stdout"] == ""


async def test_what_cannot_be_asked_for_is_refused(served: Server, serve: Serve) -> None:
    async with served.client() as client:
        answer = await client.post("/execute", json={"script": "", "lang": "python", "requirements": ["one", "./x"]})
        assert_problem(answer, 422, "requirement_invalid", "requirements[1]")
        answer = await client.post("/execute", json={"script": "", "lang": "bash", "requirements": ["one"]})
        assert_problem(answer, 422, "validation_failed", "requirements")
        answer = await client.post("/execute", json={"script": "# /// script\n", "lang": "python"})
        assert_problem(answer, 422, "validation_failed", "script")
    async with serve(packages__enabled="false").client() as client:
        answer = await client.post("/execute", json={"script": "", "lang": "python", "requirements": ["one"]})
        assert_problem(answer, 422, "packages_disabled", "requirements")


async def test_cancel_while_resolving(served: Server, index: Index) -> None:
    index.add(wheel("slow"))
    begun = index.hold("slow")
    async with served.client() as client:
        execution = await client.execute("print(1)", requirements=["slow"])
        await until_resolving(served, begun)
        await client.post(f"/executions/{execution}/cancel")
        result = await client.ended(execution)
        assert (result["status"], result["outcome"]["phase"]) == ("cancelled", "resolve")


@pytest.mark.needs("patience")
async def test_server_that_dies_while_resolving_leaves_nothing_and_its_run_is_run(serve: Serve, index: Index) -> None:
    index.add(wheel("late"))
    begun = index.hold("late")
    server = serve(simulated=False, packages__index_url=index.url)
    async with server.client() as client:
        execution = await client.execute("import late; print('ran')", requirements=["late"])
        await until_resolving(server, begun)
    server.kill()
    index.let("late")
    server.start()
    async with server.client() as client:
        await ran(client, execution)
    server.stop()
    layers = [path for path in (server.data / "packages" / "layers").iterdir() if not list(path.glob("late.py"))]
    assert layers == []


async def ran(client: Client, execution: str) -> None:
    async with client.stream(execution) as stream:
        frames = await stream.rest()
    result = frames[-2].data["result"]
    assert (result["stdout"], result["attempt"]) == ("ran\n", 2), kinds(frames)
