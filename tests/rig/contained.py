"""Kafka, the registry, MongoDB and Redis as Docker's containers, of the images that docker-compose.yml names.

A container serves at the number that is published on the loopback, so that what a broker or a member of a replica set
says of itself is true on both sides.  What it has written is in it: a kill and a start find it again, and the end
removes both.  Each container bears the name of the process that it is for; where that has died without having removed
it, whoever next makes a container does.
"""

import atexit
import contextlib
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pymongo import MongoClient
from pymongo.errors import OperationFailure

from tests.deploy.composition import services
from tests.rig.kafka import CLUSTER_ID, Kafka
from tests.rig.mongo import Mongo
from tests.rig.part import LOOK_AGAIN_S, STOP_S, Part
from tests.rig.redis import Redis
from tests.rig.registry import Registry
from tests.rig.store import Unobtainable

SWITCH = "RUNTAPE_RIG_DOCKER"
"""The variable that is 0 where Docker is not to be used, although it is there."""

READY_S = 60.0
"""Within so long an image's own scripts and the server in it have begun."""

PULL_S = 900.0
COMMAND_S = 60.0
INFO_S = 10.0
OWNER = "runtape.rig.owner"
MADE_AS = "runtape.rig.made-as"
NAMESPACE = Path("/proc/self/ns/pid")
REPLICA_SET = "rs0"
CONTROLLER_PORT, MANAGEMENT_PORT = 9093, 9000
"""Of Kafka and of the registry, within their containers alone."""


class Refused(Exception):
    """Docker has not done what it was told; the message is its own."""


def docker(*words: str, timeout_s: float = COMMAND_S) -> str:
    """Return what the command prints.  Raises: Refused."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise Refused(f"docker {words[0]}: {done.stderr.strip()[-500:]}")
    return done.stdout.strip()


def missing() -> str | None:
    """Return why there is no Docker to use, None where there is one whose ports are this machine's."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    return _missing(os.environ.get("DOCKER_HOST", ""), os.environ.get("PATH", ""))


@functools.cache
def _missing(_host: str, path: str) -> str | None:
    if shutil.which("docker", path=path) is None:
        return "no docker on PATH"
    if not NAMESPACE.exists():
        return "this system has no /proc, by which it is told whose containers are left over"
    try:
        endpoint = docker("context", "inspect", "--format", "{{.Endpoints.docker.Host}}", timeout_s=INFO_S)
        if not endpoint.startswith("unix:"):
            return f"Docker is elsewhere, at {endpoint}"
        kind = docker("version", "--format", "{{.Server.Os}}", timeout_s=INFO_S)
    except (Refused, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if kind == "linux" else f"Docker has containers of {kind} instead of linux"


def image(service: str) -> str:
    """Return the image that docker-compose.yml names for `service`."""
    return services()[service]["image"]


def pull(name: str) -> str:
    """Return the image `name`, and get it before, if it is not there.  Raises: Unobtainable."""
    try:
        docker("image", "inspect", name)
    except Refused:
        print(f"pulling {name} ...", file=sys.stderr, flush=True)
        try:
            docker("pull", "--quiet", name, timeout_s=PULL_S)
        except (Refused, subprocess.TimeoutExpired) as error:
            raise Unobtainable(f"{error}; {SWITCH}=0 does without Docker") from error
    return name


def _place() -> str:
    """Name what process ids are looked up in: other hosts and namespaces may use the same Docker."""
    return f"{platform.node()}/{NAMESPACE.stat().st_ino}"


def _process(pid: int | str) -> str | None:
    """Name a process for good by its id and when it began, None when there is none."""
    try:
        began = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
    return f"{pid}/{began}"


def owner() -> str:
    """Return this process as the containers name it that are for it."""
    return f"{_place()}/{_process(os.getpid())}"


def leftovers() -> list[str]:
    """Return the containers of processes of this host that have died."""
    told = docker("ps", "--all", "--filter", f"label={OWNER}", "--format", f'{{{{.ID}}}} {{{{.Label "{OWNER}"}}}}')
    found = []
    for line in told.splitlines():
        container, _, owner = line.partition(" ")
        place, pid, began = owner.rsplit("/", 2)
        if place == _place() and _process(pid) != f"{pid}/{began}":
            found.append(container)
    return found


def remove(containers: Sequence[str]) -> None:
    """Remove containers with what they have written; another process may do so too."""
    for container in containers:
        subprocess.run(["docker", "rm", "--force", "--volumes", container], capture_output=True, check=False)


@functools.cache
def _clean(_host: str) -> None:
    """Remove what others have left, and at the end of this process what it leaves itself."""
    remove(leftovers())
    atexit.register(_remove_ours, dict(os.environ))


def _remove_ours(env: Mapping[str, str]) -> None:
    # By then the Docker of `env` may be gone, and all its containers with it.
    list_them = ["docker", "ps", "--all", "--quiet", "--filter", f"label={OWNER}={owner()}"]
    found = subprocess.run(list_them, env=env, capture_output=True, text=True, check=False).stdout.split()
    if found:
        subprocess.run(["docker", "rm", "--force", "--volumes", *found], env=env, capture_output=True, check=False)


class Contained(Part):
    """A server in a container, which its end removes, unless it is `kept` by that name: it is found again then."""

    service: ClassVar[str]
    """Of docker-compose.yml."""

    def __init__(self, folder: Path, kept: str = "") -> None:
        super().__init__(folder)
        self._kept = kept
        self.container = ""
        """Its id, where there is one."""

    @property
    def name(self) -> str:
        return self.service

    @property
    def image(self) -> str:
        """What its container is made of, which is pulled if it is not there."""
        return image(self.service)

    @property
    def pid(self) -> int:
        """The first process of the container, as Docker's host numbers it."""
        return int(docker("inspect", "--format", "{{.State.Pid}}", self.container))

    @property
    def _running(self) -> bool:
        return docker("inspect", "--format", "{{.State.Running}}", self.container) == "true"

    @abstractmethod
    def variables(self) -> Mapping[str, object]:
        """Return the container's environment."""

    @abstractmethod
    def words(self) -> Sequence[str]:
        """Return the command in the container; nothing where the image's own will do."""

    def command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        """Return the command that makes the container.  Raises: Unobtainable, when its image cannot be pulled."""
        return ["docker", "create", *self._arguments()], os.environ

    def _arguments(self) -> list[str]:
        published = f"127.0.0.1:{self.port}:{self.port}"
        variables = [word for name, value in self.variables().items() for word in ("--env", f"{name}={value}")]
        return ["--publish", published, *variables, pull(self.image), *self.words()]

    def start(self) -> Self:
        """Start the server, in the container that it had before if there is one, and return once it answers.

        Raises: Unobtainable; AssertionError, with its log.
        """
        self.container = self.container or self._made()
        try:
            docker("start", self.container)
            self._until_it_answers()
        except Refused as error:
            self.stop()
            raise AssertionError(f"{self.name} did not start: {error}") from error
        except BaseException:
            self.stop()
            raise
        return self

    def _until_it_answers(self) -> None:
        deadline = time.monotonic() + READY_S
        # Asked again and again whether it runs, Docker's client would keep a processor from it.
        with subprocess.Popen(["docker", "wait", self.container], stdout=subprocess.DEVNULL) as its_end:
            try:
                while not self.answers():
                    if its_end.poll() is not None or time.monotonic() > deadline:
                        raise AssertionError(f"{self.name} did not start: {self._said()[-3000:]}")
                    time.sleep(LOOK_AGAIN_S)
            finally:
                its_end.kill()

    def stop(self) -> None:
        if self.container:
            docker("stop", "--time", str(int(STOP_S)), self.container)
            self._said()
            if not self._kept:
                remove([self.container])
                self.container = ""

    def kill(self) -> None:
        if self.container and self._running:
            docker("kill", self.container)
            self._said()

    def pause(self) -> None:
        docker("pause", self.container)

    def resume(self) -> None:
        docker("unpause", self.container)

    def _made(self) -> str:
        """Return a new container, or the one that was kept if it was made as one would be made now."""
        _clean(os.environ.get("DOCKER_HOST", ""))
        arguments = self._arguments()
        if not self._kept:
            return docker("create", "--label", f"{OWNER}={owner()}", *arguments)
        made_as = f"{MADE_AS}={hashlib.sha256(repr(arguments).encode()).hexdigest()[:16]}"
        named = f"name=^/?{self._kept}$"
        if found := docker("ps", "--all", "--quiet", "--filter", named, "--filter", f"label={made_as}"):
            return found
        remove([self._kept])
        return docker("create", "--name", self._kept, "--label", made_as, *arguments)

    def _said(self) -> str:
        """Return what the server has said, and have it in `log`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            subprocess.run(["docker", "logs", self.container], stdout=log, stderr=log, check=False)
        return self.log.read_text(errors="replace")


class ContainedKafka(Contained, Kafka):
    """One broker, whose only listener is at the published port."""

    service = "kafka"

    def variables(self) -> Mapping[str, object]:
        settings: dict[str, object] = {
            **Kafka._settings(self),
            "listeners": f"PLAINTEXT://:{self.port},CONTROLLER://127.0.0.1:{CONTROLLER_PORT}",
            "controller.quorum.voters": f"1@127.0.0.1:{CONTROLLER_PORT}",
            "log.dirs": "/var/lib/kafka/data",
        }
        # The image makes properties of variables by the same rule backwards.
        named = {f"KAFKA_{name.upper().replace('.', '_')}": value for name, value in settings.items()}
        return {"CLUSTER_ID": CLUSTER_ID, "KAFKA_HEAP_OPTS": "-Xms64m -Xmx256m", **named}

    def words(self) -> Sequence[str]:
        return ()


class ContainedRegistry(Contained, Registry):
    """One registry, whose schemas are in its container instead of in Kafka."""

    service = "registry"

    def variables(self) -> Mapping[str, object]:
        return {
            **self._settings(Path("/tmp/registry")),
            "QUARKUS_HTTP_HOST": "0.0.0.0",
            "QUARKUS_MANAGEMENT_PORT": MANAGEMENT_PORT,
            "JAVA_OPTS_APPEND": "-Xmx384m",
        }

    def words(self) -> Sequence[str]:
        return ()


class ContainedMongo(Contained, Mongo):
    """MongoDB itself as a replica set of one member."""

    service = "mongo"

    @property
    def url(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}/?directConnection=true"

    @property
    def direct_url(self) -> str:
        return self.url

    def variables(self) -> Mapping[str, object]:
        return {}

    def words(self) -> Sequence[str]:
        return "mongod", "--replSet", REPLICA_SET, "--bind_ip_all", "--port", str(self.port)

    def start(self) -> Self:
        """Return once it takes writes.  Raises: Unobtainable; PyMongoError; AssertionError, with its log."""
        super().start()
        try:
            self._until_it_is_primary()
        except BaseException:
            self.stop()
            raise
        return self

    def _until_it_is_primary(self) -> None:
        alone = {"_id": REPLICA_SET, "members": [{"_id": 0, "host": f"127.0.0.1:{self.port}"}]}
        deadline = time.monotonic() + READY_S
        client: MongoClient[dict[str, Any]]
        with MongoClient(self.url) as client:
            while not (hello := client.admin.command("hello"))["isWritablePrimary"]:
                if time.monotonic() > deadline:
                    raise AssertionError(f"mongo is no primary: {hello}; {self._said()[-3000:]}")
                if "setName" not in hello:
                    # It refuses while it looks for the set that it had before, and may have one then.
                    with contextlib.suppress(OperationFailure):
                        client.admin.command("replSetInitiate", alone)
                time.sleep(LOOK_AGAIN_S)


class ContainedRedis(Contained, Redis):
    """One Redis server."""

    service = "redis"

    def variables(self) -> Mapping[str, object]:
        return {}

    def words(self) -> Sequence[str]:
        # Who connects comes from the container's gateway, and it would take none from there without a password.
        settings = {**self._settings(), "bind": "0.0.0.0", "protected-mode": "no", "save": "", "appendonly": "no"}
        return ["redis-server", *(word for name, value in settings.items() for word in (f"--{name}", value))]
