"""The manifests of deploy/kubernetes before a real API: it would take each, and each account may do its work alone."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kubernetes_asyncio import client

from certs import objects
from certs.objects import MANIFESTS, PROGRAMS, SERVICE, Refused
from runtape.adapters.kubernetes import manifests, network
from runtape.adapters.kubernetes.api import PodApi
from runtape.adapters.kubernetes.leases import Leases, Partitions
from runtape.adapters.kubernetes.manifests import PodSettings
from runtape.adapters.kubernetes.network import Verdict
from runtape.adapters.kubernetes.runtime import Image, KubernetesPods
from runtape.adapters.sandbox.runtimes import in_image
from runtape.domain.ids import ExecutionId
from runtape.domain.limits import Limits
from runtape.domain.outcome import Outcome, OutcomeKind
from runtape.domain.source import Source
from runtape.ports.pod_runtime import PodKey, PodSpec
from tests.kubernetes import image
from tests.kubernetes.pods import connected, eventually
from tests.rig.kubernetes.cluster import Kubernetes

pytestmark = [
    pytest.mark.needs("kubernetes", "own"),
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]
BASE = objects.read(MANIFESTS / "base")
ALL = [*objects.read(MANIFESTS / "example"), *objects.read(MANIFESTS / "gvisor")]
CARRIED_OUT = {"Deployment", "DaemonSet", "Job", "Service"}


@pytest.fixture
async def admin(kubernetes: Kubernetes) -> AsyncIterator[client.ApiClient]:
    """The API, as its administrator, with everything in place but what would be carried out."""
    async with connected(kubernetes.kubeconfig) as connection:
        for thing in BASE:
            if thing["kind"] not in CARRIED_OUT:
                await objects.apply(connection, thing)
        yield connection


def named(thing: dict[str, Any]) -> str:
    return f"{thing['kind']}/{thing['metadata']['name']}"


async def test_the_api_would_take_every_object_as_it_is_written(admin: client.ApiClient) -> None:
    for thing in ALL:
        told = await objects.apply(admin, thing, dry_run=True)
        assert named(told) == named(thing)
        assert told["apiVersion"] == thing["apiVersion"]


async def test_a_field_that_the_api_does_not_know_is_refused(admin: client.ApiClient) -> None:
    thing = next(each for each in ALL if each["kind"] == "Deployment")
    misspelt = {**thing, "spec": {**thing["spec"], "replica": 2}}
    with pytest.raises(Refused, match="replica"):
        await objects.apply(admin, misspelt, dry_run=True)


@pytest.mark.parametrize("kind", ["Deployment", "DaemonSet", "Job"])
async def test_pods_of_the_service_are_what_its_namespace_allows(admin: client.ApiClient, kind: str) -> None:
    core: Any = client.CoreV1Api(admin)
    await eventually(lambda: core.read_namespaced_service_account("default", SERVICE))
    for thing in objects.of_kinds(BASE, [kind]):
        template = thing["spec"]["template"]
        pod = {"metadata": {"name": "pod", **template["metadata"]}, "spec": template["spec"]}
        made = await core.create_namespaced_pod(SERVICE, pod, dry_run="All")
        assert made.spec.priority is not None and made.spec.priority > 0
        loose = {**pod, "spec": {**pod["spec"], "hostNetwork": True}}
        with pytest.raises(client.ApiException) as refused:
            await core.create_namespaced_pod(SERVICE, loose, dry_run="All")
        assert refused.value.status == 403 and "restricted" in str(refused.value.body)


POD = manifests.pod("none", PodSettings(namespace=PROGRAMS), "none", Limits(), {}, "")
PODS = f"/api/v1/namespaces/{PROGRAMS}/pods"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{PROGRAMS}/leases"
MAY = {
    "k8s-worker": {"pods": "create delete get list patch watch", "pods/attach": "create get"},
    "pod-monitor": {"pods": "delete get list patch watch", "leases": "create delete list update"},
    "api": {"limitranges": "get list", "resourcequotas": "get list", "nodes": "list"},
    "default": {},
}
"""All that each account may do in the namespace of programs, beyond what everybody may."""
ACCOUNTS = sorted(MAY)
MAY_NOT = [
    ("GET", f"/api/v1/namespaces/{PROGRAMS}/secrets"),
    ("GET", f"/api/v1/namespaces/{SERVICE}/secrets/runtape-secrets"),
    ("GET", f"/api/v1/namespaces/{PROGRAMS}/configmaps"),
    ("GET", f"{PODS}/none/log"),
    ("GET", f"{PODS}/none/exec?command=id&stdout=true"),
    ("POST", f"{PODS}/none/exec?command=id&stdout=true"),
    ("GET", f"{PODS}/none/portforward"),
    ("POST", f"{PODS}/none/eviction"),
    ("PATCH", f"{PODS}/none/ephemeralcontainers"),
    ("GET", "/api/v1/pods"),
    ("GET", "/api/v1/secrets"),
    ("GET", "/api/v1/namespaces"),
    ("GET", "/api/v1/nodes/node1/proxy/pods"),
    ("DELETE", "/api/v1/nodes/node1"),
    *((method, f"/api/v1/namespaces/{name}/pods") for name in ("default", SERVICE) for method in ("GET", "POST")),
    ("DELETE", PODS),
    ("POST", f"/api/v1/namespaces/{PROGRAMS}/serviceaccounts/default/token"),
    ("POST", f"/api/v1/namespaces/{SERVICE}/serviceaccounts/k8s-worker/token"),
    ("POST", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{PROGRAMS}/rolebindings"),
    ("DELETE", f"/apis/networking.k8s.io/v1/namespaces/{PROGRAMS}/networkpolicies/deny-all"),
    ("DELETE", f"/api/v1/namespaces/{PROGRAMS}/resourcequotas/programs"),
]
ALONE = {
    ("POST", f"{PODS}?dryRun=All"): "k8s-worker",
    ("GET", f"{PODS}/none/attach"): "k8s-worker",
    ("GET", LEASES): "pod-monitor",
    ("GET", "/api/v1/nodes"): "api",
    ("GET", f"/api/v1/namespaces/{PROGRAMS}/resourcequotas"): "api",
}
"""What one account alone may do."""


@pytest.fixture
async def accounts(admin: client.ApiClient) -> AsyncIterator[dict[str, client.ApiClient]]:
    """The API, as each account of the service."""
    connections = {name: client.ApiClient(await as_account(admin, name)) for name in ACCOUNTS}
    yield connections
    await asyncio.gather(*(each.close() for each in connections.values()))


async def as_account(admin: client.ApiClient, name: str) -> client.Configuration:
    path = f"/api/v1/namespaces/{SERVICE}/serviceaccounts/{name}/token"
    answer = await objects.asked(admin, "POST", path, {"spec": {"expirationSeconds": 600}})
    configuration = client.Configuration()
    configuration.host = admin.configuration.host
    configuration.ssl_ca_cert = admin.configuration.ssl_ca_cert
    configuration.api_key["BearerToken"] = f"Bearer {answer['status']['token']}"
    return configuration


async def status_of(api: client.ApiClient, method: str, path: str) -> int:
    """Return the status of the answer: 403 where it is forbidden, whatever would come of it otherwise."""
    call: Any = api.call_api(
        path,
        method,
        header_params={"Content-Type": "application/merge-patch+json" if method == "PATCH" else "application/json"},
        body=POD if method == "POST" else {} if method == "PATCH" else None,
        auth_settings=["BearerToken"],
        _preload_content=False,
        _request_timeout=30,
    )
    async with await call as answer:
        await answer.read()
        return answer.status


@pytest.mark.parametrize("name", ACCOUNTS)
async def test_an_account_has_the_rights_that_it_needs_and_no_other(
    accounts: dict[str, client.ApiClient], name: str
) -> None:
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview"}
    path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    told = await objects.asked(accounts[name], "POST", path, {**review, "spec": {"namespace": PROGRAMS}})
    assert not told["status"]["incomplete"]
    rights: dict[str, set[str]] = {}
    for rule in told["status"]["resourceRules"]:
        for resource in rule["resources"]:
            assert not rule.get("resourceNames")
            if not {"authorization.k8s.io", "authentication.k8s.io", "certificates.k8s.io"} & set(rule["apiGroups"]):
                rights.setdefault(resource, set()).update(rule["verbs"])
    assert {resource: " ".join(sorted(verbs)) for resource, verbs in rights.items()} == MAY[name]


@pytest.mark.parametrize("name", ACCOUNTS)
async def test_an_account_is_refused_what_is_not_its_work(accounts: dict[str, client.ApiClient], name: str) -> None:
    others = [call for call, owner in ALONE.items() if owner != name]
    answers = {call: await status_of(accounts[name], *call) for call in [*MAY_NOT, *others]}
    assert {call: status for call, status in answers.items() if status != 403} == {}
    own = {call: await status_of(accounts[name], *call) for call, owner in ALONE.items() if owner == name}
    assert [call for call, status in own.items() if status in (401, 403)] == []


async def test_the_workers_account_runs_a_program_within_quota_limits_and_policy(
    admin: client.ApiClient, kubernetes: Kubernetes
) -> None:
    kubernetes.containerd.take(image.archive(image.BASH))
    bash = Image(image.BASH.reference, in_image("bash", "5.2", "/usr/bin/bash"))
    settings = PodSettings(namespace=PROGRAMS, pull_policy="Never", cpu="250m", priority_class="runtape-program")
    source = Source(script="echo hello", stdin=b"")
    spec = PodSpec(execution_id=ExecutionId("e1"), lang="bash", lang_version="5.2", source=source, limits=Limits())
    key = PodKey(spec.execution_id, 1)
    async with (
        asyncio.timeout(60),
        KubernetesPods(await as_account(admin, "k8s-worker"), settings, [bash], "w") as pods,
    ):
        await pods.start(spec, 1, datetime.now(UTC) + timedelta(seconds=60))
        assert b"".join([record.data async for batch in pods.records(key) for record in batch]) == b"hello\n"
        ended = await anext(aiter(pods.watch()))
        await pods.remove(key)
    assert ended.outcome == Outcome(kind=OutcomeKind.EXITED, exit_code=0)


async def test_the_workers_account_finds_out_whether_policies_are_enforced(
    admin: client.ApiClient, kubernetes: Kubernetes
) -> None:
    kubernetes.containerd.take(image.archive(image.BASH))
    settings = PodSettings(namespace=PROGRAMS, pull_policy="Never", priority_class="runtape-program")
    api = PodApi(await as_account(admin, "k8s-worker"), PROGRAMS)
    try:
        found = await network.look(api, settings, image.BASH.reference)
    finally:
        await api.close()
    assert found.verdict is Verdict.NOT_ENFORCED, found.reason


async def test_the_monitors_account_takes_a_partition_and_gives_it_up(admin: client.ApiClient) -> None:
    leases = Leases(await as_account(admin, "pod-monitor"), PROGRAMS)
    taken = asyncio.Event()

    async def work(_: int) -> None:
        taken.set()
        await asyncio.Event().wait()

    working = asyncio.ensure_future(Partitions(leases, "proof", 1, "me").run(work))
    try:
        async with asyncio.timeout(60):
            await taken.wait()
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    (partition,) = [each for each in await leases.list("proof") if each["metadata"]["name"] == "proof-0"]
    await leases.close()
    assert not partition["spec"].get("holderIdentity")


async def test_no_pod_of_a_program_takes_a_priority_above_that_of_programs(admin: client.ApiClient) -> None:
    core: Any = client.CoreV1Api(admin)
    for name in ("runtape-service", "system-node-critical"):
        settings = PodSettings(namespace=PROGRAMS, priority_class=name)
        pod = manifests.pod("none", settings, "none", Limits(), {}, "")
        with pytest.raises(client.ApiException, match="no-higher-priority"):
            await core.create_namespaced_pod(PROGRAMS, pod, dry_run="All")


async def test_a_pod_that_asks_for_less_than_it_may_use_is_refused(admin: client.ApiClient) -> None:
    core: Any = client.CoreV1Api(admin)
    pod = manifests.pod("none", PodSettings(namespace=PROGRAMS), "none", Limits(), {}, "")
    room = pod["spec"]["containers"][0]["resources"]
    room["requests"] = {**room["requests"], "memory": "1Mi"}
    with pytest.raises(client.ApiException, match="memory max limit to request ratio"):
        await core.create_namespaced_pod(PROGRAMS, pod, dry_run="All")
