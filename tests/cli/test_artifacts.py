"""Saving what a server says a run has left: nothing is written outside of the folder, through a link, or by half."""

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.cli.commands import runtape
from tests.cli.fake_server import EXECUTION, FakeServer, Reply, Request


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


def leave(server: FakeServer, files: dict[str, bytes], claims: dict[str, str] | None = None) -> None:
    """Have the server tell of `files`; `claims` are digests that are told instead of the true ones."""

    async def listed(_: Request, reply: Reply) -> None:
        digests = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()} | (claims or {})
        told = [{"path": path, "size_bytes": len(files[path]), "sha256": digests[path]} for path in files]
        await reply.json(200, {"artifacts": told, "artifacts_left_out": {"too_many": 4}})

    async def one(content: bytes, _: Request, reply: Reply) -> None:
        await reply.content(content)

    server.handlers[f"GET /executions/{EXECUTION}/artifacts"] = listed
    for path, content in files.items():
        server.handlers[f"GET /executions/{EXECUTION}/artifacts/{quote(path)}"] = partial(one, content)


def save(server: FakeServer, folder: Path) -> tuple[int, str]:
    done = runtape("artifacts", EXECUTION, "--server", server.url, "--out", folder)
    return done.returncode, done.stderr.decode()


def test_files_are_saved_over_earlier_ones(server: FakeServer, tmp_path: Path) -> None:
    files = {"a": bytes(range(256)) * 1000, "b/c/d": b"", "e f?g#h%41": b"odd"}
    leave(server, files)
    for _ in range(2):
        assert save(server, tmp_path / "kept") == (0, "runtape: not kept: 4 (too many)\n")
    found = {str(path.relative_to(tmp_path / "kept")): path for path in (tmp_path / "kept").rglob("*")}
    assert {name: path.read_bytes() for name, path in found.items() if path.is_file()} == files


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "..", ".", "a//x", "a/", "./x", "a\0b"])
def test_path_that_leads_elsewhere_is_refused(server: FakeServer, tmp_path: Path, path: str) -> None:
    leave(server, {path: b"evil"})
    code, told = save(server, tmp_path / "kept")
    assert (code, "which leads out of the folder" in told) == (1, True), told
    assert [each for each in tmp_path.rglob("*") if each.name != "kept"] == []


def test_links_that_lie_there_are_not_followed(server: FakeServer, tmp_path: Path) -> None:
    outside, kept = tmp_path / "outside", tmp_path / "kept"
    (outside / "folder").mkdir(parents=True)
    (outside / "file").write_bytes(b"untouched")
    kept.mkdir()
    (kept / "file").symlink_to(outside / "file")
    (kept / "folder").symlink_to(outside / "folder")
    leave(server, {"file": b"new"})
    assert save(server, kept)[0] == 0
    assert ((kept / "file").is_symlink(), (kept / "file").read_bytes()) == (False, b"new")
    leave(server, {"folder/file": b"new"})
    code, told = save(server, kept)
    assert (code, told) == (1, f"error: cannot save the artifacts in {kept}: Not a directory (folder)\n")
    assert (outside / "file").read_bytes() == b"untouched"
    assert list((outside / "folder").iterdir()) == []


def test_file_that_arrives_wrong_is_not_there(server: FakeServer, tmp_path: Path) -> None:
    leave(server, {"a": b"right", "b": b"wrong"}, claims={"b": "0" * 64})
    code, told = save(server, tmp_path)
    assert (code, told) == (1, "error: 'b' has not arrived as it was kept; try again\n")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"right"}


def test_name_that_would_work_on_the_terminal_is_shown_harmlessly(server: FakeServer) -> None:
    leave(server, {"\x1b[2Jx\n": b""})
    done = runtape("artifacts", EXECUTION, "--server", server.url)
    assert done.stdout == b"           0 '\\x1b[2Jx\\n'\n"
