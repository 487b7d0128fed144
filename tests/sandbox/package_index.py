"""A package index on loopback (PEP 503) with wheels that a test makes by hand."""

import base64
import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def wheel(
    name: str,
    version: str = "1.0",
    files: Mapping[str, str | bytes] | None = None,
    *,
    requires: Sequence[str] = (),
    record: str | None = None,
    symlinks: Mapping[str, str] | None = None,
) -> tuple[str, bytes]:
    """Return file name and content of a wheel; `record` stands in for the list of its files."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {each}\n" for each in requires)
    contents: dict[str, str | bytes] = {
        **(files or {f"{name}.py": f"version = {version!r}\n"}),
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = ""
    for path, content in contents.items():
        data = content.encode() if isinstance(content, str) else content
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines += f"{path},sha256={digest},{len(data)}\n"
    contents[f"{info}/RECORD"] = record if record is not None else f"{lines}{info}/RECORD,,\n"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in contents.items():
            archive.writestr(path, content)
        for path, target in (symlinks or {}).items():
            entry = zipfile.ZipInfo(path)
            entry.create_system, entry.external_attr = 3, 0o120777 << 16
            archive.writestr(entry, target)
    return f"{name}-{version}-py3-none-any.whl", packed.getvalue()


class Index:
    """The index; `asked` has the projects that somebody asked for, in order."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/simple"
        self.asked: list[str] = []
        self.credentials: list[str] = []
        self._files: dict[str, dict[str, bytes]] = {}
        self._begun: dict[str, threading.Event] = {}
        self._held: dict[str, threading.Event] = {}

    def add(self, file: tuple[str, bytes]) -> None:
        """Offer a file."""
        name, content = file
        self._files.setdefault(name.split("-")[0].replace("_", "-"), {})[name] = content

    def hold(self, project: str) -> threading.Event:
        """Answer nobody who asks for `project` until `let` is called; return what is set when somebody does."""
        self._held[project] = threading.Event()
        return self._begun.setdefault(project, threading.Event())

    def let(self, project: str) -> None:
        self._held.pop(project).set()

    def answer(self, path: str) -> bytes | None:
        kind, _, rest = path.strip("/").partition("/")
        if kind == "files":
            project, _, name = rest.partition("/")
            return self._files.get(project, {}).get(name)
        self.asked.append(rest)
        held = self._held.get(rest)
        if held is not None:
            self._begun[rest].set()
            held.wait(30)
        if rest not in self._files:
            return None
        links = "".join(
            f'<a href="/files/{rest}/{name}#sha256={hashlib.sha256(content).hexdigest()}">{name}</a>'
            for name, content in self._files[rest].items()
        )
        return f"<!doctype html><html><body>{links}</body></html>".encode()

    def close(self) -> None:
        for held in self._held.values():
            held.set()


@contextmanager
def open_index() -> Iterator[Index]:
    """Serve an index until the context ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "Authorization" in self.headers:
                index.credentials.append(base64.b64decode(self.headers["Authorization"].split()[1]).decode())
            content = index.answer(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(content or b"")))
            self.end_headers()
            if self.command == "GET":
                with suppress(BrokenPipeError):  # a resolver that was killed
                    self.wfile.write(content or b"")

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # as above, sooner

    server = Server(("127.0.0.1", 0), Handler)
    index = Index(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield index
    finally:
        index.close()
        server.shutdown()
        thread.join()
        server.server_close()
