"""Debian's Redis 7, which keeps nothing over a kill: what is in it can always be made again from the store."""

import socket
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from redis import Redis as Client

from tests.rig import debian
from tests.rig.certificates import Authority, Pair
from tests.rig.part import Part, free_port
from tests.rig.store import obtained

PACKAGES = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1")


def programs() -> Path:
    """Return the folder that Redis is unpacked in.  Raises: Unobtainable."""
    return obtained("redis-7-debian", lambda folder: debian.unpack(PACKAGES, folder))


class Redis(Part):
    """One Redis server."""

    @property
    def url(self) -> str:
        """What clients connect to."""
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        root = programs()
        settings = {"bind": "127.0.0.1", "save": "", "appendonly": "no", **self._settings()}
        arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
        return [root / "usr/bin/redis-server", *arguments], debian.environment(root)

    def _settings(self) -> Mapping[str, str]:
        return {"port": str(self.port)}

    def flush(self) -> None:
        """Let it forget everything."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            connection.sendall(b"FLUSHALL\r\n")
            assert connection.recv(16).startswith(b"+OK")

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


class SecureRedis(Redis):
    """One that speaks TLS alone, and knows no user but those of `users`: what each is allowed, by name.

    A user is written as Redis's ACL has it: ``on >password ~* &* +@all``.  Where `mutual`, clients have to show a
    certificate of the authority.
    """

    def __init__(
        self, folder: Path, authority: Authority, pair: Pair, users: Mapping[str, str], *, mutual: bool = False
    ) -> None:
        super().__init__(folder)
        self._authority = authority
        self._pair = pair
        self._users = users
        self._mutual = mutual

    @property
    def url(self) -> str:
        """What clients connect to, who have credentials beside it."""
        return f"rediss://127.0.0.1:{self.port}/0"

    def command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        acl = self.folder / "users.acl"
        acl.write_text("user default off\n" + "".join(f"user {name} {may}\n" for name, may in self._users.items()))
        return super().command()

    def _settings(self) -> Mapping[str, str]:
        return {
            "port": "0",
            "tls-port": str(self.port),
            "tls-cert-file": str(self._pair.certificate),
            "tls-key-file": str(self._pair.key),
            "tls-ca-cert-file": str(self._authority.file),
            "tls-auth-clients": "yes" if self._mutual else "no",
            "aclfile": str(self.folder / "users.acl"),
        }

    def answers(self) -> bool:
        context = ssl.create_default_context(cafile=self._authority.file)
        context.load_cert_chain(self._pair.certificate, self._pair.key)
        try:
            with (
                socket.create_connection(("127.0.0.1", self.port), 1) as connection,
                context.wrap_socket(connection, server_hostname="127.0.0.1") as encrypted,
            ):
                encrypted.sendall(b"PING\r\n")
                return encrypted.recv(16).startswith(b"-NOAUTH")
        except OSError:
            return False


class ClusterRedis(Redis):
    """A node of a Redis Cluster that serves the slots of `keys` alone: it refuses all keys of other slots.

    The other slots have no node, so that it makes no difference whether a client knows clusters.
    """

    def __init__(self, folder: Path, keys: Sequence[str]) -> None:
        super().__init__(folder)
        self._keys = keys
        self._serves = False

    def _settings(self) -> Mapping[str, str]:
        return {
            **super()._settings(),
            "cluster-enabled": "yes",
            "cluster-port": str(free_port()),
            "cluster-require-full-coverage": "no",
        }

    def start(self) -> Self:
        """Start the node and return once it serves its slots.  Raises: Unobtainable; AssertionError, with its log."""
        super().start()
        if not self._serves:
            with Client.from_url(self.url) as client:
                ask: Any = client.execute_command
                ask("CLUSTER", "ADDSLOTS", *{ask("CLUSTER", "KEYSLOT", key) for key in self._keys})
            self._serves = True
            self.until_ready()
        return self

    def answers(self) -> bool:
        return super().answers() and (not self._serves or self._is_well())

    def _is_well(self) -> bool:
        with Client.from_url(self.url) as client:
            ask: Any = client.execute_command
            return b"cluster_state:ok" in ask("CLUSTER", "INFO")
