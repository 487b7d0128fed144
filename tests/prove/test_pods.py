"""The whole battery in pods of a real cluster, and that it finds what is planted there."""

import json
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from kubernetes_asyncio import client

from runtape.adapters.kubernetes.api import Forbidden, PodApi
from runtape.adapters.kubernetes.inspection import Inspection
from runtape.cli.main import main as command
from runtape.prove import pods
from runtape.prove.errors import ProveError
from runtape.prove.main import prove
from runtape.prove.target import Target
from runtape.prove.verdict import CaseResult, Report, Verdict
from runtape.runtime.pods import ImageSettings, KubernetesSettings
from runtape.runtime.settings import Settings
from tests.cli.commands import COMMAND, environment
from tests.kubernetes import image
from tests.kubernetes.pods import a_namespace, connected
from tests.rig.kubernetes.cluster import Kubernetes

pytestmark = [
    pytest.mark.needs("kubernetes", "own"),
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

PYTHON = "python:3.11"
DENY_ALL: Any = {
    "metadata": {"name": "deny-all"},
    "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
}
OPEN_HERE = {"A49", "A53"} | (set() if Path("/sys/fs/cgroup/cgroup.controllers").exists() else {"A03d"})
"""What is known to fail here: the rig's network plugin enforces no policy, and groups of version 1 count no TCP."""

Change = Callable[[dict[str, Any]], object]
"""What is done to a pod's spec."""


@pytest.fixture(scope="module")
def python(kubernetes: Kubernetes) -> ImageSettings:
    """The image, in the cluster."""
    recipe, binary = image.BINARIES[PYTHON]
    kubernetes.containerd.take(image.archive(recipe))
    return ImageSettings(reference=recipe.reference, binary=binary)


@pytest.fixture
async def connection(kubernetes: Kubernetes) -> AsyncIterator[client.ApiClient]:
    async with connected(kubernetes.kubeconfig) as connection:
        yield connection


@pytest.fixture
async def given(connection: client.ApiClient, kubernetes: Kubernetes, python: ImageSettings) -> KubernetesSettings:
    """Settings of pods in a namespace of the test's own, with a policy that denies everything."""
    namespace = await a_namespace(client.CoreV1Api(connection), kubernetes.scope)
    await client.NetworkingV1Api(connection).create_namespaced_network_policy(namespace, DENY_ALL)
    return KubernetesSettings(
        kubeconfig=kubernetes.kubeconfig,
        namespace=namespace,
        images={PYTHON: python},
        pull_policy="Never",
        cpu="200m",
    )


async def battery(given: KubernetesSettings, only: str = "") -> Report:
    return await prove(Target.KUBERNETES, Settings(kubernetes=given), only.split(), lambda *_: None)


def failed(report: Report) -> dict[str, CaseResult]:
    return {case.id: case for case in report.cases if case.verdict is Verdict.FAILED}


@pytest.mark.needs("patience")
@pytest.mark.timeout(420)
def test_battery_fails_only_where_it_is_known_to(given: KubernetesSettings, tmp_path: Path) -> None:
    values = given.model_dump(mode="json")
    images = json.dumps(values.pop("images"))
    names = ("kubeconfig", "namespace", "pull_policy", "cpu")
    done = subprocess.run(
        [*COMMAND, "prove", "--target", "kubernetes", "--json", "--data", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        env=environment(
            TMPDIR=str(tmp_path),
            RUNTAPE_KUBERNETES__IMAGES=images,
            **{f"RUNTAPE_KUBERNETES__{name.upper()}": str(values[name]) for name in names},
        ),
        timeout=400,
        check=False,
    )
    report = json.loads(done.stdout)
    rows = {case["id"]: case for case in report["cases"]}
    print(*(case for case in rows.values() if case["verdict"] == "failed"), sep="\n")  # what pytest shows of it
    assert {name for name, case in rows.items() if case["verdict"] == "failed"} == OPEN_HERE
    assert done.returncode == 1
    assert (report["held"], report["target"]) == (False, "kubernetes")
    assert sum(report["counts"].values()) == len(rows) > 80
    assert report["counts"]["does not apply"] == 3
    assert all(case["because"] for case in rows.values() if case["verdict"] not in ("held", "failed"))
    assert rows["A49d"]["verdict"] == "held only as far as the cluster"
    assert not [flaw for case in rows.values() for flaw in case["flaws"]["control"]]
    assert report["host"]["network_policy"] == "not enforced"
    assert report["host"]["containers_on_nodes"] == "looked for"
    assert report["host"]["kubernetes"].startswith("v1.")
    assert list(tmp_path.iterdir()) == []


def mount_the_token(spec: dict[str, Any]) -> None:
    spec["automountServiceAccountToken"] = True


def write_to_the_root(spec: dict[str, Any]) -> None:
    spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"] = False
    spec["securityContext"] |= {"runAsNonRoot": False, "runAsUser": 0}


def grant_capabilities(spec: dict[str, Any]) -> None:
    spec["containers"][0]["securityContext"]["capabilities"] = {"add": ["NET_RAW"]}


def show_the_node(spec: dict[str, Any]) -> None:
    spec["volumes"].append({"name": "node", "hostPath": {"path": "/etc"}})
    spec["containers"][0]["volumeMounts"].append({"name": "node", "mountPath": "/node"})


def forget_the_limit(spec: dict[str, Any]) -> None:
    spec["containers"][0]["resources"] = {}


@pytest.mark.parametrize(
    ("weaken", "caught", "still_held"),
    [
        (mount_the_token, {"A47", "A21b", "A31b"}, "A28"),
        (write_to_the_root, {"A31", "A42", "A31b"}, "A28"),
        (grant_capabilities, {"A31", "A31b"}, "A42"),
        (show_the_node, {"A21b", "A31b"}, "A42"),
        (forget_the_limit, {"A03", "A31b"}, "A42"),
    ],
    ids=["token", "root", "capabilities", "node", "limits"],
)
async def test_dropped_layer_is_caught(
    weaken: Change,
    caught: set[str],
    still_held: str,
    connection: client.ApiClient,
    given: KubernetesSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lenient: Any = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}}
    await client.CoreV1Api(connection).patch_namespace(given.namespace, lenient)
    create = PodApi.create

    async def create_weaker(self: PodApi, manifest: Mapping[str, Any]) -> dict[str, Any]:
        changed = json.loads(json.dumps(manifest))
        weaken(changed["spec"])
        return await create(self, changed)

    monkeypatch.setattr(PodApi, "create", create_weaker)
    report = await battery(given, " ".join(caught) + f" {still_held}")
    assert {*failed(report)} == caught
    assert all(case.because for case in report.cases if case.verdict is Verdict.FAILED)


async def test_pods_that_are_left_are_seen(
    given: KubernetesSettings, connection: client.ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pods, "_GRACE_S", 1.0)

    async def keep(self: PodApi, name: str, grace_s: int = 0) -> None:
        pass

    monkeypatch.setattr(PodApi, "delete", keep)
    found = failed(await battery(given, "A28"))
    left = [
        pod.metadata.name for pod in (await client.CoreV1Api(connection).list_namespaced_pod(given.namespace)).items
    ]
    assert {*found} == {"C01", "A28", "C02"}
    assert all(any(name in flaw.what for flaw in found["C02"].flaws) for name in left)
    assert {part for case in found.values() for part in (flaw.part for flaw in case.flaws)} == {"cleaned_up"}


async def test_a_container_that_outlives_its_pod_is_seen(
    given: KubernetesSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pods, "_CONTAINER_GRACE_S", 0.0)

    async def always(self: object, node: str) -> list[str]:
        return sorted(names)

    names: set[str] = set()
    manifest_of = pods.PodTraces.manifest_of

    async def remember(self: pods.PodTraces, key: Any) -> Mapping[str, Any]:
        found = await manifest_of(self, key)
        names.add(found["metadata"]["name"])
        return found

    monkeypatch.setattr(pods.PodTraces, "manifest_of", remember)
    monkeypatch.setattr(Inspection, "running_on", always)
    report = await battery(given, "A28")
    assert {*failed(report)} == {"C02"}
    assert "a container of" in failed(report)["C02"].flaws[0].what


async def test_whoever_may_not_look_at_nodes_is_told_so(
    given: KubernetesSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(self: object, *_: str) -> Any:
        raise Forbidden

    for name in ("running_on", "node", "service_address", "policies"):
        monkeypatch.setattr(Inspection, name, refused)
    report = await battery(given, "A28")
    assert report.held
    assert report.host["containers_on_nodes"].startswith("not looked for")
    assert report.host["kernel"].startswith("unknown")


@pytest.mark.needs("patience")
async def test_a_cluster_without_python_proves_nothing(given: KubernetesSettings, python: ImageSettings) -> None:
    none = given.model_copy(update={"images": {"bash:5.2": python}})
    with pytest.raises(ProveError, match=r"kubernetes\.images has none; add an image"):
        await battery(none)


def test_no_namespace_is_told_in_one_line(
    given: KubernetesSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RUNTAPE_KUBERNETES__KUBECONFIG", str(given.kubeconfig))
    monkeypatch.setenv("RUNTAPE_KUBERNETES__NAMESPACE", "nobody-has-made-it")
    monkeypatch.setattr("runtape.runtime.logging.configure_logging", lambda level: None)
    assert command(["prove", "--target", "kubernetes", "--data", str(tmp_path), "--only", "A28"]) == 1
    told = capfd.readouterr()
    assert told.err.startswith("error: code cannot be run here: ")
    assert "nobody-has-made-it" in told.err
    assert told.err.count("\n") == 1
