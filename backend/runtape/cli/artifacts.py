"""`runtape artifacts`: the files that a run has left, listed or saved.

What a server says about files is checked before anything is written: a path that leads out of the folder is refused,
folders below it are entered by name and never through a link, and a file appears under its name only once all its bytes
are there and are the right ones.
"""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPResponse
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from cyclopts import Parameter

from runtape.cli.client import Api, refusal
from runtape.cli.errors import CliError
from runtape.cli.server import Locator
from runtape.cli.summary import size
from runtape.cli.terminal import Terminal, print_text

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_REASONS = {
    "too_large": "too large",
    "too_many": "too many",
    "not_regular": "no regular file",
    "bad_name": "a name that cannot be kept",
    "too_deep": "in too many folders",
    "unreadable": "not readable",
    "interrupted": "cut short",
}


def artifacts(
    execution_id: Annotated[str, Parameter(name="ID")],
    /,
    *,
    out: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=(), show_default=False)] = False,
    server: str | None = None,
    api_key: str | None = None,
    data: Path | None = None,
) -> int:
    """List the files that a run left in its folder "out", or save them.

    Args:
        execution_id: The execution's id, as the last line of `runtape run` names it.
        out: The folder to save them in; made where it does not exist.
        as_json: Print the list as one JSON object.
        server: The server's address; also RUNTAPE_SERVER.  Without one, a server on this machine is used or started.
        api_key: The key for that server; also RUNTAPE_API_KEY.
        data: The folder of the server on this machine; also RUNTAPE_DATA.
    """
    with contextlib.closing(Locator(url=server, api_key=api_key, data=data).locate()) as api:
        found = {
            **api.call("GET", f"/executions/{quote(execution_id, safe='')}/artifacts"),
            "execution_id": execution_id,
        }
        if out is not None:
            save(api, found, out)
    if as_json:
        print_text(json.dumps(found))
        return 0
    for artifact in found["artifacts"]:
        print_text(f"{artifact['size_bytes']:>12} {_shown(artifact['path'])}")
    for line in _left_out(found):
        Terminal().say(line)
    return 0


def left_behind(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each artifact of a result, and one for what was left out."""
    for artifact in result.get("artifacts") or ():
        yield f"out/{_shown(artifact['path'])}, {size(artifact['size_bytes'])}"
    yield from _left_out(result)


def _left_out(result: Mapping[str, Any]) -> Iterator[str]:
    counts: Mapping[str, int] = result.get("artifacts_left_out") or {}
    if counts:
        yield "not kept: " + ", ".join(f"{count} ({_REASONS.get(name, name)})" for name, count in counts.items())


def _shown(path: str) -> str:
    return path if path.isprintable() else ascii(path)


def save(api: Api, result: Mapping[str, Any], folder: Path) -> None:
    """Write the artifacts of `result` into `folder`, over files of the same names.  Raises: CliError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # the folder itself may be a link of ours
        try:
            for artifact in result.get("artifacts") or ():
                _save_one(api, str(result["execution_id"]), artifact, root)
        finally:
            os.close(root)
    except OSError as error:
        raise CliError(f"cannot save the artifacts in {folder}: {error.strerror} ({error.filename})") from error


def _save_one(api: Api, execution_id: str, artifact: Mapping[str, Any], root: int) -> None:
    path = str(artifact["path"])
    *folders, name = path.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in (*folders, name)):
        raise CliError(f"the server names an artifact {path!a}, which leads out of the folder")
    response = api.request("GET", f"/executions/{quote(execution_id, safe='')}/artifacts/{quote(path)}")
    if response.status != 200:
        raise refusal(response)
    with _opened(root, folders) as parent:
        temporary = f".runtape-{secrets.token_hex(8)}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=parent)
        try:
            with open(fd, "wb") as file:
                digest = _download(api, response, file.write)
            if digest != artifact["sha256"]:
                raise CliError(f"{path!a} has not arrived as it was kept; try again")
            # Takes the place of a link rather than following it.
            os.replace(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            os.unlink(temporary, dir_fd=parent)
            raise


def _download(api: Api, response: HTTPResponse, write: Callable[[bytes], object]) -> str:
    digest = hashlib.sha256()
    while piece := api.read_some(response):
        digest.update(piece)
        write(piece)
    api.read(response)  # nothing: http.client frees the connection by this alone
    return digest.hexdigest()


@contextlib.contextmanager
def _opened(root: int, folders: list[str]) -> Iterator[int]:
    """Open the folder below `root` that `folders` lead to, made where it does not exist; no link is followed."""
    parent = os.dup(root)
    try:
        for name in folders:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=parent)
            below = os.open(name, _FOLDER_FLAGS, dir_fd=parent)
            os.close(parent)
            parent = below
        yield parent
    finally:
        os.close(parent)
