"""Images of what the rig unpacks: for tests of containers where no registry of images is in reach."""

import shutil
from pathlib import Path

from tests.rig import mongo, redis
from tests.rig.docker import tree_of
from tests.rig.store import Unobtainable

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
