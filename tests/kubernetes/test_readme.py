"""The commands of deploy/kubernetes/README.md as they stand there, before a real API.

No registry is there, so no process of the service begins: its pods are made, and wait for their images.
"""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kubernetes_asyncio import client

from certs import objects
from certs.objects import MANIFESTS, PROGRAMS, SERVICE, Refused
from tests.deploy.composition import PROJECT
from tests.kubernetes.pods import connected, eventually
from tests.rig.kubernetes.cluster import Kubernetes

pytestmark = [pytest.mark.needs("kubernetes", "own"), pytest.mark.timeout(240)]
README = MANIFESTS / "README.md"
COMMAND_S = 120.0
EXAMPLE = objects.read(MANIFESTS / "example")
TOLD = re.compile(r"(\S+/\S+) (?:created|configured|unchanged)(?: \(server dry run\))?")
"""What kubectl says of an object that it applies."""
MADE_BY_THE_CLUSTER = "Warning: resource serviceaccounts/default is missing the"
"""It may be there before it is applied."""
NAMED = "/srv/runtape"
"""The checkout whose output the page shows."""


@dataclass(frozen=True, slots=True)
class Shell:
    """A user's, in a copy of the part of a checkout that the page is about."""

    folder: Path
    environment: dict[str, str]

    def run(self, command: str) -> tuple[str, str]:
        """Return what the command says, in its output and beside it.  Raises: AssertionError, when it fails."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout, done.stderr


@pytest.fixture
async def shell(kubernetes: Kubernetes, tmp_path: Path) -> AsyncIterator[Shell]:
    """A user who is the cluster's administrator; nothing of the service is in it before or afterwards."""
    site, home = tmp_path / "site", tmp_path / "home"
    for name in ("deploy/kubernetes", "certs"):
        shutil.copytree(PROJECT / name, site / name, ignore=shutil.ignore_patterns("made", "mine", "__pycache__"))
    (home / ".kube").mkdir(parents=True)
    shutil.copy(kubernetes.kubeconfig, home / ".kube/config")
    path = [str(kubernetes.kubectl.parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    async with connected(kubernetes.kubeconfig) as connection:
        await without(connection)
        try:
            yield Shell(site, {"HOME": str(home), "PATH": ":".join(path)})
        finally:
            await without(connection)


async def without(connection: client.ApiClient) -> None:
    """Delete the namespaces of the service and what is in none, which other tests make as well, and await its end."""

    async def gone(thing: dict[str, Any]) -> bool:
        try:
            await objects.asked(connection, "DELETE", objects.path_of(thing))
        except Refused as error:
            return " 404 " in str(error)
        return False

    for thing in EXAMPLE:
        if "namespace" not in thing["metadata"]:
            await eventually(lambda thing=thing: gone(thing))


def section(heading: str) -> list[str]:
    """Return the lines of code below a heading of the page."""
    text = README.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [line.removeprefix("    ") for line in text.splitlines() if line.startswith("    ")]


def of_kubectl(thing: dict[str, Any]) -> str:
    """Return what kubectl calls the object."""
    group, _, _ = thing["apiVersion"].rpartition("/")
    return f"{thing['kind'].lower()}{group and '.'}{group}/{thing['metadata']['name']}"


def workload(pod: str) -> str:
    """Return which workload a pod is of, by its name."""
    return next(name for name in pods_of_the_service() if pod.startswith(f"{name}-"))


def pods_of_the_service() -> Counter[str]:
    """Return how many pods each workload is to have on one node."""
    found = objects.of_kinds(EXAMPLE, ["Deployment", "DaemonSet", "Job"])
    return Counter({each["metadata"]["name"]: each["spec"].get("replicas", 1) for each in found})


async def test_an_installation_is_made_and_goes_by_the_commands_of_the_page(
    api: client.CoreV1Api, shell: Shell
) -> None:
    *making, dry_run, applying, looking, away = section("From nothing")
    for command in making:
        await asyncio.to_thread(shell.run, command)
    secret: Any = await api.read_namespaced_secret("runtape-secrets", SERVICE)
    assert "RUNTAPE_MONGO__URL" in secret.data
    for command in (dry_run, applying):
        out, beside = await asyncio.to_thread(shell.run, command)
        assert sorted(TOLD.findall(out)) == sorted(map(of_kubectl, EXAMPLE))
        # Among others it would be told of pods that their namespace refuses.
        assert [line for line in beside.splitlines() if not line.startswith(MADE_BY_THE_CLUSTER)] == []
        assert ("dry run" in out) == (command is dry_run)

    async def there() -> bool:
        out, _ = await asyncio.to_thread(shell.run, looking)
        return Counter(workload(line.split()[0]) for line in out.splitlines()[1:]) == pods_of_the_service()

    await eventually(there)
    await asyncio.to_thread(shell.run, "kubectl diff -k deploy/kubernetes/mine")  # which fails where something differs
    await asyncio.to_thread(shell.run, away)
    remaining = "kubectl get -k deploy/kubernetes/mine --ignore-not-found"
    assert await asyncio.to_thread(shell.run, remaining) == ("", "")


async def test_accounts_for_workers_elsewhere_are_made_as_the_page_shows_it(shell: Shell) -> None:
    first, *shown = section("Workers outside of the cluster")
    shown = [line for line in shown if not line.startswith("RUNTAPE_")]
    assert first.startswith("$ ")
    told, _ = await asyncio.to_thread(shell.run, first.removeprefix("$ "))
    assert without_times(told.replace(str(shell.folder), NAMED)) == without_times("\n".join(shown))
    worker = "kubectl --kubeconfig certs/made/kubernetes/k8s-worker/kubeconfig"
    assert (await asyncio.to_thread(shell.run, f"{worker} get pods"))[
        1
    ] == f"No resources found in {PROGRAMS} namespace.\n"
    with pytest.raises(AssertionError, match="Forbidden"):
        await asyncio.to_thread(shell.run, f"{worker} get secrets")


async def test_certificates_are_made_by_the_command_of_the_page(shell: Shell) -> None:
    [command] = section("Certificates")
    await asyncio.to_thread(shell.run, command)
    assert (shell.folder / "certs/made/ca.pem").exists()


def without_times(text: str) -> list[str]:
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", "then", text).splitlines()
