"""A pod that differs from what we would make is refused, wherever it differs."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from runtape.adapters.kubernetes import manifests
from runtape.adapters.kubernetes.hardening import difference
from runtape.adapters.kubernetes.manifests import (
    FIRST_UID,
    MANAGED_BY,
    MUST_STAY,
    NAME,
    RUNNER_MB,
    SAFE_TO_EVICT,
    UIDS,
    PodSettings,
)
from runtape.adapters.kubernetes.network import PROBE
from runtape.adapters.kubernetes.pools import Pool, PoolSize
from runtape.adapters.kubernetes.warm import Claim
from runtape.domain.ids import ExecutionId
from runtape.domain.limits import Limits
from runtape.ports.pod_runtime import PodKey

SETTINGS = PodSettings(namespace="programs", runtime_class="gvisor", cpu="1000m", user_namespaces=True)
CLAIM = Claim(key=PodKey(ExecutionId("e"), 1), owner="worker", token="00", wall_s=10.0)
POOL = Pool(name="bash-5.2", settings=SETTINGS, image="bash:5.2", limits=Limits(), size=PoolSize(), spec="")
Tamper = Callable[[dict[str, Any]], Any]


def demanded() -> dict[str, Any]:
    return POOL.manifest("warm-1", 130)


def live() -> dict[str, Any]:
    """Return the pod as the API server has it once it is claimed.

    With its defaults and its node's place, without what is false, amounts in its own writing.
    """
    pod = copy.deepcopy(demanded())
    pod["metadata"]["labels"] |= {
        **CLAIM.labels,
        "topology.kubernetes.io/region": "north",
        "topology.kubernetes.io/zone": "north-1",
    }
    spec = pod["spec"]
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        del spec[name]
    spec |= {
        "nodeName": "node",
        "schedulerName": "default-scheduler",
        "serviceAccount": "default",
        "serviceAccountName": "default",
        "preemptionPolicy": "PreemptLowerPriority",
        "priority": 0,
        "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 300}],
    }
    del spec["containers"][0]["stdinOnce"]
    for amounts in spec["containers"][0]["resources"].values():
        amounts |= {"cpu": "1", "memory": str((256 + RUNNER_MB) << 20)}
    spec["volumes"][0]["emptyDir"]["sizeLimit"] = "65536Ki"
    return pod


def program(pod: dict[str, Any]) -> dict[str, Any]:
    return pod["spec"]["containers"][0]


TAMPERED: dict[str, Tamper] = {
    "another image": lambda pod: program(pod).update(image="bash:evil"),
    "another command": lambda pod: program(pod).update(command=["/bin/sh"]),
    "an argument": lambda pod: program(pod).update(args=["--debug"]),
    "a variable": lambda pod: program(pod).update(env=[{"name": "LD_PRELOAD", "value": "/tmp/x"}]),
    "a probe that runs a command": lambda pod: program(pod).update(livenessProbe={"exec": {"command": ["/bin/sh"]}}),
    "a hook": lambda pod: program(pod).update(lifecycle={"postStart": {"exec": {"command": ["/bin/sh"]}}}),
    "a privileged container": lambda pod: program(pod)["securityContext"].update(privileged=True),
    "escalation allowed": lambda pod: program(pod)["securityContext"].update(allowPrivilegeEscalation=True),
    "escalation not said": lambda pod: program(pod)["securityContext"].pop("allowPrivilegeEscalation"),
    "a writable root": lambda pod: program(pod)["securityContext"].pop("readOnlyRootFilesystem"),
    "capabilities": lambda pod: program(pod)["securityContext"]["capabilities"].update(add=["NET_RAW"]),
    "capabilities kept": lambda pod: program(pod)["securityContext"].pop("capabilities"),
    "no seccomp in the container": lambda pod: program(pod)["securityContext"].update(
        seccompProfile={"type": "Unconfined"}
    ),
    "an open proc": lambda pod: program(pod)["securityContext"].update(procMount="Unmasked"),
    "no seccomp": lambda pod: pod["spec"]["securityContext"].pop("seccompProfile"),
    "root": lambda pod: pod["spec"]["securityContext"].update(runAsUser=0, runAsNonRoot=False),
    "another pod's uid": lambda pod: pod["spec"]["securityContext"].update(runAsUser=1000),
    "a group of files": lambda pod: pod["spec"]["securityContext"].update(fsGroup=0),
    "a system setting": lambda pod: pod["spec"]["securityContext"].update(
        sysctls=[{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]
    ),
    "no runtime class": lambda pod: pod["spec"].pop("runtimeClassName"),
    "another runtime class": lambda pod: pod["spec"].update(runtimeClassName="runc"),
    "the host's network": lambda pod: pod["spec"].update(hostNetwork=True),
    "the host's processes": lambda pod: pod["spec"].update(hostPID=True),
    "the host's IPC": lambda pod: pod["spec"].update(hostIPC=True),
    "the host's users": lambda pod: pod["spec"].pop("hostUsers"),
    "processes shared": lambda pod: pod["spec"].update(shareProcessNamespace=True),
    "another host's name": lambda pod: pod["spec"].update(hostAliases=[{"ip": "10.0.0.1", "hostnames": ["db"]}]),
    "another resolver": lambda pod: pod["spec"].update(dnsPolicy="ClusterFirst"),
    "a token": lambda pod: pod["spec"].update(automountServiceAccountToken=True),
    "a token by default": lambda pod: pod["spec"].pop("automountServiceAccountToken"),
    "another account": lambda pod: pod["spec"].update(serviceAccountName="admin"),
    "links to services": lambda pod: pod["spec"].pop("enableServiceLinks"),
    "another container": lambda pod: pod["spec"]["containers"].append({"name": "sidecar", "image": "x"}),
    "a container before": lambda pod: pod["spec"].update(initContainers=[{"name": "first", "image": "x"}]),
    "a container for debugging": lambda pod: pod["spec"].update(ephemeralContainers=[{"name": "debug", "image": "x"}]),
    "a volume of the host": lambda pod: pod["spec"]["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
    "another volume": lambda pod: pod["spec"]["volumes"][0].update(emptyDir={}),
    "a larger volume": lambda pod: pod["spec"]["volumes"][0]["emptyDir"].update(sizeLimit="64Gi"),
    "another mount": lambda pod: program(pod)["volumeMounts"].append({"name": "tmp", "mountPath": "/etc"}),
    "more memory": lambda pod: program(pod)["resources"]["limits"].update(memory="1Gi"),
    "no limit of memory": lambda pod: program(pod)["resources"]["limits"].pop("memory"),
    "more processors": lambda pod: program(pod)["resources"]["limits"].update(cpu="10"),
    "a device": lambda pod: program(pod)["resources"]["limits"].update({"nvidia.com/gpu": "1"}),
    "a restart": lambda pod: pod["spec"].update(restartPolicy="Always"),
    "a longer life": lambda pod: pod["spec"].update(activeDeadlineSeconds=86_400),
    "no end": lambda pod: pod["spec"].pop("activeDeadlineSeconds"),
    "unseen by network policies": lambda pod: pod["metadata"]["labels"].pop(NAME),
    "another manager": lambda pod: pod["metadata"]["labels"].update({MANAGED_BY: "other"}),
    "the network policy of a probe": lambda pod: pod["metadata"]["labels"].update({PROBE: "control"}),
    "a label of somebody's": lambda pod: pod["metadata"]["labels"].update(app="web"),
    "a label without a value": lambda pod: pod["metadata"]["labels"].update({"example.com/reachable": ""}),
    "another pool": lambda pod: pod["metadata"]["labels"].update({manifests.POOL: "python-3.14"}),
    "another spec": lambda pod: pod["metadata"]["labels"].pop(manifests.SPEC),
    "no labels": lambda pod: pod["metadata"].pop("labels"),
}


def test_what_the_api_server_fills_in_is_no_difference() -> None:
    assert difference(live(), demanded()) is None


def test_whether_a_pod_may_be_evicted_is_no_difference() -> None:
    assert demanded()["metadata"]["annotations"] == {SAFE_TO_EVICT: "true"}
    pod = live()
    pod["metadata"]["annotations"] = MUST_STAY
    assert difference(pod, demanded()) is None


@pytest.mark.parametrize("name", TAMPERED)
def test_a_pod_that_was_tampered_with_is_refused(name: str) -> None:
    pod = live()
    TAMPERED[name](pod)
    assert difference(pod, demanded()), pod


def test_nothing_that_is_demanded_may_lack_or_be_another() -> None:
    """Each leaf of the manifest, one at a time: so a field that the manifest gets later is looked at too."""
    leaves = 0

    def walk(at: Any) -> None:
        nonlocal leaves
        for key in list(at) if isinstance(at, dict) else range(len(at)):
            if isinstance(at[key], dict | list) and at[key]:
                walk(at[key])
                continue
            kept, at[key] = at[key], ["another"]
            leaves += 1
            assert difference(pod, demanded()), key
            at[key] = kept

    pod = copy.deepcopy(demanded())
    walk(pod["spec"])
    assert difference(pod, demanded()) is None
    assert leaves > 40


def test_each_pod_has_a_uid_of_its_own_which_is_always_the_same() -> None:
    pool = Pool(name="p", settings=PodSettings(namespace="n"), image="i", limits=Limits(), size=PoolSize(), spec="")
    contexts = [pool.manifest(f"warm-{number}")["spec"]["securityContext"] for number in range(200)]
    uids = {context["runAsUser"] for context in contexts}
    assert len(uids) > 195
    assert all(FIRST_UID <= uid < FIRST_UID + UIDS for uid in uids)
    assert all(context["runAsGroup"] == context["runAsUser"] for context in contexts)
    assert pool.manifest("warm-7")["spec"] == pool.manifest("warm-7")["spec"]
    assert live()["spec"]["securityContext"]["runAsUser"] < 65_536, "a user namespace has no more"
