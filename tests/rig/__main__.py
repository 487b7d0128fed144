"""`./runtape rig`: the real parts of a cluster on this machine, for who works on the product.

`up` starts them, says how to reach them, and stays until Ctrl-C or `down`; they end with it, and keep their data.
Where Docker is, they are containers (`choice`).
`obtain` gets them and goes.  Kubernetes is dealt with when it is named: it is built first, begins empty each time, and
is up beside the others or alone.  `bench`, `streams`, `pods` and `scale` measure over parts of their own.
"""

import argparse
import asyncio
import json
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from runtape.adapters.kafka import topics
from tests.rig import choice, contained, docker, given, images, store
from tests.rig.contained import Contained
from tests.rig.kafka import Kafka
from tests.rig.kubernetes.cluster import Kubernetes
from tests.rig.mongo import Mongo
from tests.rig.nginx import Frontend, Names
from tests.rig.part import Part, free_port
from tests.rig.redis import Redis
from tests.rig.registry import Registry

STOP_S = 30.0
KEPT = "runtape-rig-"
"""What the names of the containers begin with, where Docker is."""

PORTS = {"redis": 16379, "mongo": 27117, "kafka": 19092, "registry": 18081, "kubernetes": 16443}
USUAL, KUBERNETES = "usual", "kubernetes"
"""The parts that are meant where none is named."""


def folder() -> Path:
    """Return where the parts keep their data."""
    return store.folder() / "developer"


def made(below: Path, which: str, kept: str = "") -> dict[str, Part]:
    """Return the parts by name, with their data below the folder, or in containers whose names begin with `kept`."""
    if which == KUBERNETES:
        return {KUBERNETES: Kubernetes(below / KUBERNETES)}
    makers: dict[str, Callable[[Path, str], Part]] = {
        "redis": choice.our_redis,
        "mongo": choice.our_mongo,
        "kafka": choice.our_kafka,
        "registry": choice.our_registry,
    }
    return {name: make(below / name, kept and f"{kept}{name}") for name, make in makers.items()}


def parts(which: str) -> dict[str, Part]:
    """Return the parts by name, each at its port."""
    found = made(folder(), which, KEPT)
    for name, part in found.items():
        part.port = PORTS[name]
    return found


def settings(found: Mapping[str, Part]) -> dict[str, str]:
    """Return the settings that name the parts."""
    if isinstance(kubernetes := found.get(KUBERNETES), Kubernetes):
        return {"KUBECONFIG": str(kubernetes.kubeconfig)}
    redis, mongo, kafka, registry = found["redis"], found["mongo"], found["kafka"], found["registry"]
    assert isinstance(redis, Redis) and isinstance(mongo, Mongo)
    assert isinstance(kafka, Kafka) and isinstance(registry, Registry)
    return {
        "RUNTAPE_PROFILE": "cluster",
        "RUNTAPE_KAFKA__BOOTSTRAP": kafka.bootstrap,
        "RUNTAPE_REGISTRY__URL": registry.url,
        "RUNTAPE_MONGO__URL": mongo.url,
        "RUNTAPE_REDIS__URL": redis.url,
    }


def _as_what(part: Part) -> str:
    return f", in a container of {part.image}" if isinstance(part, Contained) else ""


def told(which: str) -> Path:
    """Return the file in which the process that keeps the parts tells of itself."""
    return folder() / ("running.json" if which == USUAL else f"running-{which}.json")


def running(which: str) -> int | None:
    """Return the process that keeps the parts, None when there is none."""
    try:
        pid = json.loads(told(which).read_text())["pid"]
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError, KeyError):
        return None
    return pid if b"tests.rig" in words else None


def obtain(which: str) -> int:
    """Get what is not there yet of each part, and start it once, which is slower the first time."""
    with tempfile.TemporaryDirectory(prefix="runtape-rig-") as name, Names() as names:
        found = made(Path(name), which)
        if which == USUAL:
            found["nginx"] = Frontend(Path(name) / "nginx", names, free_port())
        for called, part in found.items():
            began_s = time.monotonic()
            try:
                part.start().stop()
            except store.Unobtainable as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
            print(f"{called:<10} is there after {time.monotonic() - began_s:.1f} s{_as_what(part)}", flush=True)
    if which == USUAL:
        try:
            images.programs()  # which the tests of the containers pull from
            if contained.missing() is not None and os.geteuid() == 0:
                docker.programs()  # and what they take where there is no Docker
        except store.Unobtainable as error:
            print(f"docker     cannot be had for its tests: {error}", file=sys.stderr)
    return 0


def up(which: str) -> int:
    """Start the parts and stay."""
    if (pid := running(which)) is not None:
        print(f"error: the rig is up already, in process {pid}; ./runtape rig down ends it", file=sys.stderr)
        return 1
    folder().mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    found = parts(which)
    started: list[Part] = []
    try:
        for name, part in found.items():
            print(f"{name}{_as_what(part)} ...", file=sys.stderr, flush=True)
            part.start()
            started.append(part)
        if isinstance(kafka := found.get("kafka"), Kafka):
            asyncio.run(topics.initialise({"bootstrap_servers": kafka.bootstrap}, 1))
        told(which).write_text(json.dumps({"pid": os.getpid()}))
        for name, value in settings(found).items():
            print(f"export {name}={shlex.quote(value)}", flush=True)
        down = "./runtape rig down" if which == USUAL else f"./runtape rig down {which}"
        print(f"up until Ctrl-C, or {down} elsewhere", file=sys.stderr, flush=True)
        signal.pause()
    except store.Unobtainable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        for part in reversed(started):
            part.stop()
        told(which).unlink(missing_ok=True)  # `down` returns then, and the ports are free
    return 0


def down(which: str) -> int:
    """End the parts that `up` has started; all of them where none is named."""
    keepers = {each: pid for each in {which, KUBERNETES} if (pid := running(each)) is not None}
    if not keepers:
        print("the rig is not up")
        return 0
    for pid in keepers.values():
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    for each, pid in keepers.items():
        while running(each) is not None:
            if time.monotonic() > deadline:
                print(f"error: process {pid} has not ended within {STOP_S:g} s", file=sys.stderr)
                return 1
            time.sleep(0.1)
    print("the rig is down")
    return 0


def status(which: str) -> int:
    """Tell which parts answer, and which of them are given."""
    asked = parts(which)
    if running(KUBERNETES) is not None:
        asked |= parts(KUBERNETES)
    theirs = given.parts()
    if which == KUBERNETES:
        theirs = {name: part for name, part in theirs.items() if name == KUBERNETES}
    answers: dict[str, bool] = {}
    for name, part in (asked | theirs).items():
        answers[name] = part.answers()
        ours = f"on port {part.port}{_as_what(part)}"
        where = f"where {given.VARIABLES[name]} says" if name in theirs else ours
        print(f"{name:<10} {'answers' if answers[name] else 'does not answer'} {where}")
    return 0 if all(answers.values()) else 3


def main() -> int:
    """Run the command that was given."""
    if sys.argv[1:2] in (["bench"], ["streams"], ["pods"], ["scale"]):
        from tests.cluster import bench, streams  # the rest does without them
        from tests.kubernetes import bench as pods
        from tests.kubernetes import scale

        return {"bench": bench, "streams": streams, "pods": pods, "scale": scale}[sys.argv[1]].main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="./runtape rig", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("command", choices=("obtain", "up", "down", "status", "bench", "streams", "pods", "scale"))
    parser.add_argument("part", nargs="?", choices=(KUBERNETES,), help="instead of the others")
    arguments = parser.parse_args()
    return {"obtain": obtain, "up": up, "down": down, "status": status}[arguments.command](arguments.part or USUAL)


if __name__ == "__main__":
    sys.exit(main())
