"""The places where the battery's programs can run: this installation's sandbox, and the cluster of its settings."""

import os
import secrets
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from dishka import Provider, Scope, make_async_container
from pydantic import SecretStr

from runtape.ports.errors import InfrastructureError
from runtape.ports.pod_runtime import PodRuntime
from runtape.prove import package
from runtape.prove.errors import ProveError
from runtape.prove.runs import Runs
from runtape.prove.target import Target, Traces
from runtape.prove.traces import LocalTraces
from runtape.runtime.providers.application import ProcessIdentity
from runtape.runtime.providers.sandbox import LocalSandboxProvider
from runtape.runtime.service import SettingsProvider
from runtape.runtime.settings import Settings

_PODS_AT_ONCE = 8
"""Of all cases together: their programs are granted `kubernetes.cpu` each."""
_PORTS = {"mongodb": 27017, "redis": 6379, "rediss": 6379, "http": 80}


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere that programs can run, not yet opened."""

    target: Target
    traces: Traces
    providers: tuple[Provider, ...]
    at_once: int
    """How many programs may be there; 0: one case after another."""
    no_python: str
    """What is the matter, and to be done, when there is no Python."""

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Runs]:
        """Open it.  Raises: ProveError, with its own reason and fix, also when it fails meanwhile."""
        container = make_async_container(*self.providers)
        try:
            runs = Runs(await container.get(PodRuntime), self.traces, self.no_python)
            await runs.open()
            try:
                yield runs
            finally:
                await runs.close()
        except InfrastructureError as error:
            raise ProveError(f"code cannot be run here: {error}") from error
        finally:
            await container.close()


@asynccontextmanager
async def place_of(target: Target, settings: Settings, outside: Path) -> AsyncGenerator[Place]:
    """Prepare the place that `settings` describe; `outside` is a folder that no program sees.  Raises: ProveError."""
    if target is Target.SANDBOX:
        with tempfile.TemporaryDirectory(prefix="runtape-prove-") as data:
            yield _sandbox(settings, Path(data), outside)
        return
    async with _cluster(settings) as place:
        yield place


def _sandbox(settings: Settings, data: Path, outside: Path) -> Place:
    index = SecretStr(package.write_index(outside / "index"))
    packages = settings.packages.model_copy(update={"enabled": True, "index_url": index})
    used = settings.model_copy(update={"data": data, "packages": packages})
    providers = (LocalSandboxProvider(), SettingsProvider(used))
    return Place(Target.SANDBOX, LocalTraces(data), providers, 0, "the sandbox finds none; apt install python3")


@asynccontextmanager
async def _cluster(settings: Settings) -> AsyncGenerator[Place]:
    try:
        from runtape.adapters.kubernetes.connection import configuration
        from runtape.adapters.kubernetes.inspection import Inspection
        from runtape.prove.pods import PodTraces
        from runtape.runtime.providers.kubernetes import KubernetesProvider
    except ModuleNotFoundError as error:
        raise ProveError(f"pods need the packages of the profile cluster: there is no {error.name}") from error
    given = settings.kubernetes
    if wrong := next(given.problems(), None):
        raise ProveError(wrong)
    owner = f"prove-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        inspection = Inspection(await configuration(given.kubeconfig), given.namespace)
    except InfrastructureError as error:
        raise ProveError(f"code cannot be run here: {error}") from error
    identity = Provider(scope=Scope.APP)
    identity.provide(lambda: ProcessIdentity(owner), provides=ProcessIdentity)
    providers = (KubernetesProvider(looks_at_network=False), SettingsProvider(settings), identity)
    no_python = 'kubernetes.images has none; add an image for "python:3.13" or another version'
    traces = PodTraces(inspection, given, owner, _servers_of(settings))
    try:
        await inspection.version()  # makes no difference but that a cluster that is not there is told at once
        yield Place(Target.KUBERNETES, traces, providers, _PODS_AT_ONCE, no_python)
    except InfrastructureError as error:
        raise ProveError(f"code cannot be run here: {error}") from error
    finally:
        await inspection.close()


def _servers_of(settings: Settings) -> str:
    """Return the addresses of the service's own servers, each ``host port``, with commas."""
    found = (settings.kafka.bootstrap or "").replace(":", " ").split(",")
    urls = (
        settings.registry.url,
        *(each.get_secret_value() for each in (settings.mongo.url, settings.redis.url) if each is not None),
    )
    for url in filter(None, urls):
        parts = urlsplit(url)
        for address in parts.netloc.rpartition("@")[2].split(","):
            host, _, port = address.partition(":")
            found.append(f"{host} {port or _PORTS.get(parts.scheme, 443)}")
    return ",".join(each.strip() for each in found if each.strip())
