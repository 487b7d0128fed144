"""nginx as docker-compose.yml starts it, from packages of the next Debian.

The host's own is too old: it does not look the names of its upstreams up again.
"""

import signal
import socket
import socketserver
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.deploy.composition import PROJECT, environment, resolved, services
from tests.rig import debian
from tests.rig.certificates import Authority
from tests.rig.part import STOP_S, Part, free_port
from tests.rig.store import obtained

SUITE = "forky"
PACKAGES = ("nginx", "libc6", "libcrypt1", "libpcre2-8-0", "libssl3t64", "zlib1g", "gettext-base")
TEMPLATE = PROJECT / "deploy" / "frontend" / "nginx.conf.template"

_STARTER = """\
#!/bin/sh
root=$(dirname "$(dirname "$0")")
libraries=$root/{libraries}
exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" "$root/usr/{folder}/{name}" "$@"
"""


def programs() -> Path:
    """Return the folder that ``nginx`` and ``envsubst`` are in, started with a C library of theirs.

    Raises: Unobtainable.
    """

    def make(folder: Path) -> None:
        debian.unpack(PACKAGES, folder, suite=SUITE)
        (folder / "bin").mkdir()
        for where, name in (("sbin", "nginx"), ("bin", "envsubst")):
            starter = folder / "bin" / name
            starter.write_text(_STARTER.format(libraries=debian.LIBRARIES, folder=where, name=name))
            starter.chmod(0o755)

    return obtained(f"nginx-debian-{SUITE}", make) / "bin"


class Frontend(Part):
    """The service ``frontend`` before the addresses that `names` has for ``api``, which all listen on `api_port`.

    It differs from the service in addresses, ports and paths alone.  `port` is that of TLS.
    """

    def __init__(self, folder: Path, names: "Names", api_port: int) -> None:
        super().__init__(folder)
        self.plain_port = free_port()
        self.authority = Authority(folder / "certificates")
        self.certify("frontend")
        self._health = f"127.0.0.1:{free_port()}"
        self._names = names
        self.api_port = api_port

    def certify(self, name: str) -> None:
        """Put a certificate for `name` where the front end has its own, which it reads at its start and at SIGHUP."""
        pair = self.authority.pair(name)
        for file, place in ((pair.certificate, "certificate.pem"), (pair.key, "key.pem")):
            file.rename(self.folder / "certificates" / place)

    @property
    def url(self) -> str:
        """Where clients ask."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def values(self) -> dict[str, str]:
        """What stands for the variables of the template."""
        return {
            "FRONTEND_API": f"api:{self.api_port}",
            "FRONTEND_CERTIFICATES": str(self.folder / "certificates"),
            "FRONTEND_HEALTH": self._health,
            "FRONTEND_HTTP": f"127.0.0.1:{self.plain_port}",
            "FRONTEND_HTTPS": f"127.0.0.1:{self.port}",
            "FRONTEND_PORT": str(self.port),
            "FRONTEND_RESOLVER": f"127.0.0.1:{self._names.port}",
            "FRONTEND_RUN": str(self.folder),
        }

    def command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        path = f"{programs()}:/usr/bin:/bin"
        given = environment("frontend")
        assert given.keys() == self.values.keys()
        shell, option, script = (resolved(word) for word in services()["frontend"]["entrypoint"])
        return [shell, option, script.replace(f"/{TEMPLATE.name}", str(TEMPLATE))], {"PATH": path, **self.values}

    def reload(self) -> None:
        """Let it read its certificate again."""
        self._signal(signal.SIGHUP)

    def ended_by(self, number: signal.Signals) -> int:
        """Send a signal and return the exit code."""
        assert self._process is not None
        self._signal(number)
        return self._process.wait(STOP_S)

    def answers(self) -> bool:
        host, _, port = self._health.partition(":")
        try:
            with socket.create_connection((host, int(port)), 1) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return connection.recv(16).startswith(b"HTTP/1.1 204")
        except OSError:
            return False


class Names:
    """A name server on a port of the loopback, while it is entered: every name has the IPv4 addresses `addresses`.

    It knows as much of RFC 1035 as nginx asks for.
    """

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        names = self

        class Answer(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                query, connection = self.request
                connection.sendto(names.answer(query), self.client_address)

        self._server = socketserver.UDPServer(("127.0.0.1", 0), Answer)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="names", daemon=True)

    def answer(self, query: bytes) -> bytes:
        """Return the answer to `query`: its question, and for each address a record of type A that is good for 1 s."""
        end = query.index(b"\0", 12) + 5
        found = [socket.inet_aton(address) for address in self.addresses]
        failed = 0 if found else 3
        head = query[:2] + bytes((0x81, 0x80 | failed)) + b"\0\1" + len(found).to_bytes(2, "big") + b"\0\0\0\0"
        return head + query[12:end] + b"".join(b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + each for each in found)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
