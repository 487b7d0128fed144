"""The Kubernetes of the rig runs pods, bears the death of each of its components, and leaves nothing behind."""

import asyncio
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kubernetes_asyncio import client

from tests.kubernetes.pods import (
    LOOK_AGAIN_S,
    SOON_S,
    a_namespace,
    a_pod,
    connected,
    ended,
    eventually,
    log_of,
    run_in,
    started,
)
from tests.rig.given import GivenKubernetes
from tests.rig.kubernetes.cluster import Kubernetes
from tests.rig.kubernetes.images import NODE, PYTHON
from tests.rig.kubernetes.machine import Machine, hierarchies

PROJECT = Path(__file__).parents[2]

TELLS_ITS_RIGHTS = """
import json, os
status = dict(line.strip().split(":", 1) for line in open("/proc/self/status"))
rights = {name: status[name].strip() for name in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp")}
print(json.dumps({"user": os.getuid(), "pid": os.getpid(), "token": os.path.exists("/var/run/secrets")} | rights))
open("/tmp/file", "w").write("may be written")
try:
    open("/file", "w")
except OSError as error:
    print(error.strerror)
"""
HAS_NO_RIGHTS = (
    b'{"user": 65534, "pid": 1, "token": false, "CapEff": "0000000000000000", "CapBnd": "0000000000000000", '
    b'"NoNewPrivs": "1", "Seccomp": "2"}\nRead-only file system\n'
)
WAITS = """
import os, time
print("begun", flush=True)
while not os.path.exists("/tmp/go"):
    time.sleep(0.02)
print("ended")
"""
LET_GO = ["python", "-c", "open('/tmp/go', 'w'); print('let go')"]
BEGINS_A_MACHINE = """
import signal, sys
from pathlib import Path
from tests.rig.kubernetes.machine import Machine

machine = Machine(Path(sys.argv[1]))
machine.start()
print(machine.pid, flush=True)
signal.pause()
"""

pytestmark = [
    pytest.mark.needs("kubernetes"),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


@pytest.mark.parametrize(
    ("image", "command", "printed"),
    [
        (PYTHON.reference, ["python", "-c", TELLS_ITS_RIGHTS], HAS_NO_RIGHTS),
        (NODE.reference, ["node", "--print", "6 * 7"], b"42\n"),
    ],
    ids=["python", "node"],
)
async def test_a_restricted_pod_runs_to_its_end_and_its_log_is_read(
    api: client.CoreV1Api, namespace: str, image: str, command: list[str], printed: bytes
) -> None:
    await api.create_namespaced_pod(namespace, a_pod(image, command))
    await ended(api, namespace)
    assert await log_of(api, namespace) == printed


@pytest.mark.needs("own")
@pytest.mark.parametrize("name", ["etcd", "containerd", "api_server", "controllers", "scheduler", "kubelet"])
async def test_a_pod_outlives_the_death_of_a_component_and_the_next_one_runs(
    api: client.CoreV1Api, namespace: str, kubernetes: Kubernetes | GivenKubernetes, name: str
) -> None:
    component = getattr(kubernetes, name)
    await started(api, namespace, a_pod(PYTHON.reference, ["python", "-c", WAITS]))
    dead = component.pid
    component.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(dead, 0)
    assert component.start().pid != dead

    assert await eventually(lambda: run_in(kubernetes.kubeconfig, namespace, LET_GO)) == "let go\n"
    pod = await ended(api, namespace)
    assert pod.status.container_statuses[0].restart_count == 0
    assert await log_of(api, namespace) == b"begun\nended\n"
    another = await a_namespace(api, kubernetes.scope)
    await api.create_namespaced_pod(another, a_pod(PYTHON.reference, ["python", "-c", "print('ran')"]))
    await ended(api, another)
    assert await log_of(api, another) == b"ran\n"


@pytest.mark.needs("own")
async def test_a_component_that_stands_still_goes_on(
    api: client.CoreV1Api, namespace: str, kubernetes: Kubernetes | GivenKubernetes
) -> None:
    assert isinstance(kubernetes, Kubernetes)
    kubernetes.kubelet.pause()
    assert not kubernetes.kubelet.answers()
    await api.create_namespaced_pod(namespace, a_pod(PYTHON.reference, ["python", "-c", "print('ran')"]))
    kubernetes.kubelet.resume()
    await ended(api, namespace)


@pytest.mark.needs("own")
async def test_nothing_is_left_of_a_cluster_that_was_stopped_while_a_pod_ran(tmp_path: Path) -> None:
    before = surroundings()
    cluster = Kubernetes(tmp_path / "kubernetes").start()
    try:
        async with connected(cluster.kubeconfig) as connection:
            api = client.CoreV1Api(connection)
            namespace = await a_namespace(api, cluster.scope)
            await started(api, namespace, a_pod(PYTHON.reference, ["python", "-c", WAITS]))
        first = cluster.pid
        kinds = {name: os.readlink(f"/proc/{first}/ns/{name}") for name in ("pid", "net", "mnt")}
        assert len(of_namespaces(kinds)) > len(cluster.components) + len(["its first process", "pause", "python"])
        assert groups(first), "the pods have control groups"
    finally:
        cluster.stop()
    async with asyncio.timeout(SOON_S):  # the kernel ends them one after the other
        while of_namespaces(kinds):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_AGAIN_S)
    assert groups(first) == []
    assert surroundings() == before
    shutil.rmtree(cluster.folder)


@pytest.mark.needs("own")
def test_a_machine_ends_with_who_started_it_and_the_next_one_removes_its_groups(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BEGINS_A_MACHINE, tmp_path / "machine"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=PROJECT, env={**os.environ, "PYTHONPATH": "."}) as owner:
        assert owner.stdout is not None
        first = int(owner.stdout.readline())
        left = os.pidfd_open(first)
        owner.kill()
    try:
        assert select.select([left], [], [], 10)[0], "its first process goes on"
    finally:
        os.close(left)
    assert groups(first), "nobody was there to remove them"
    Machine(tmp_path / "next").start().stop()
    assert groups(first) == []


def surroundings() -> dict[str, object]:
    """What a node would change of the machine that it has, and nobody else changes meanwhile."""
    links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout
    mounts = Path("/proc/self/mounts").read_text()
    folders = (
        *("/etc/cni", "/run/containerd", "/run/netns", "/run/settings", "/usr/libexec/kubernetes"),
        *("/var/lib/cni", "/var/lib/kubelet", "/var/log/containers", "/var/log/pods"),
    )
    settings = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops", "net/ipv4/ip_forward")
    return {
        "mounts": [line for line in mounts.splitlines() if "kube" in line or "containerd" in line],
        "links": [line for line in links.splitlines() if line.startswith(("cni", "veth"))],
        "folders": [name for name in folders if os.path.exists(name)],
        "settings": {name: Path("/proc/sys", name).read_text() for name in settings},
    }


def of_namespaces(kinds: dict[str, str]) -> list[int]:
    """The processes in any of the namespaces."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            if any(os.readlink(f"/proc/{process}/ns/{name}") == inode for name, inode in kinds.items()):
                found.append(int(process))
        except OSError:
            continue  # it has ended meanwhile
    return found


def groups(first: int) -> list[Path]:
    """The control groups of the machine with that first process."""
    return [path for root in hierarchies() for path in root.glob(f"runtape-rig-{first}/**/")]
