"""Images of what the rig unpacks, and a registry that gives images out: for tests where no other is in reach."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from tests.rig import debian, mongo, redis
from tests.rig.docker import SUITE, Docker, tree_of
from tests.rig.part import Part
from tests.rig.store import Unobtainable, obtained

MONGO_CHANGES = ("VOLUME /data/db",)
"""What MongoDB's own image says of itself and a tree of files does not."""

_AT = Path("usr/lib/mongo")


def tree_of_redis(into: Path) -> None:
    """Make the files of an image with ``redis-server``.  Raises: Unobtainable."""
    root = redis.programs() / "usr"
    tree_of([root / "bin" / "redis-server"], into, root / "lib" / "x86_64-linux-gnu")


def tree_of_mongo(into: Path) -> None:
    """Make the files of an image with ``mongod``: MongoDB's engine behind the words that `ContainedMongo` says.

    MongoDB's own image has its server instead, which begins as a member of a replica set, and a script in front that
    makes users and gives up being root.
    Raises: Unobtainable.
    """
    node = shutil.which("node")
    if node is None:
        raise Unobtainable("needs Node.js; on Debian: apt install nodejs")
    # All of it is over the newer C library, which is there first.
    shutil.copytree(mongo.c_library(), into, symlinks=True)
    for folder in ("lib", "lib64"):
        (into / folder).symlink_to(Path("usr", folder))
    tree_of([Path(node)], into)
    shutil.copytree(mongo.engine() / "node_modules", into / _AT / "node_modules")
    for script in ("mongod.js", "serve.js"):
        shutil.copy(mongo.HERE / "mongo" / script, into / _AT)
    (into / "usr/bin/mongod").symlink_to(Path("/", _AT, "mongod.js"))
    (into / "tmp").mkdir()


def programs() -> Path:
    """Return the folder that the registry is unpacked in.  Raises: Unobtainable."""
    return obtained(f"docker-registry-{SUITE}", lambda folder: debian.unpack(["docker-registry"], folder, suite=SUITE))


class ImageRegistry(Part):
    """Docker's registry of images, which asks for no name or password, in the network of `engine` or in this one's."""

    def __init__(self, folder: Path, engine: Docker | None) -> None:
        super().__init__(folder)
        self._engine = engine

    @property
    def host(self) -> str:
        """What the names of its images begin with; Docker wants no TLS of it, as it is on the loopback."""
        return f"127.0.0.1:{self.port}"

    def command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "version": "0.1",
            "storage": {"filesystem": {"rootdirectory": str(self.folder / "data")}},
            "http": {"addr": self.host},
        }
        file = self.folder / "config.yml"
        file.write_text(json.dumps(settings))  # which is YAML as well
        serve = [programs() / "usr/bin/docker-registry", "serve", file]
        return serve if self._engine is None else self._engine.within(serve), os.environ

    def answers(self) -> bool:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=1)
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()
