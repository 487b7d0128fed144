"""deploy/kubernetes against the code: what the manifests name is there, and is called so."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import runtape
from certs import objects
from certs.objects import MANIFESTS, PROGRAMS, SERVICE
from runtape.adapters.kubernetes.manifests import EXECUTION, RUNNER_MB, UID
from runtape.adapters.sandbox import runtimes
from runtape.api.health import LIVE, READY
from runtape.cli.main import app
from runtape.domain.limits import MAXIMUM, Limits
from runtape.runtime.pods import KubernetesSettings
from runtape.runtime.roles import Role
from runtape.runtime.settings import ENV_PREFIX, Settings, describe
from tests.cli.test_worker import CARRIED_ALONG
from tests.deploy.composition import PROJECT

BASE = objects.read(MANIFESTS / "base")
EXAMPLE = objects.read(MANIFESTS / "example")
GVISOR = objects.read(MANIFESTS / "gvisor")
WORKERS = {role: role.replace("_", "-") for role in sorted(set(Role) - CARRIED_ALONG)}
UNITS = {"Mi": 1 << 20, "Gi": 1 << 30, "m": 0.001}


def one(kind: str, name: str, among: list[dict[str, Any]] = EXAMPLE) -> dict[str, Any]:
    (found,) = [each for each in among if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def templates() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each workload's name and the spec of its pods."""
    for each in objects.of_kinds(EXAMPLE, ["Deployment", "DaemonSet", "Job"]):
        yield each["metadata"]["name"], each["spec"]["template"]["spec"]


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, pod in templates():
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            yield name, container


def environment() -> dict[str, str]:
    """Return what every process of the service gets."""
    secrets = [
        line.split("=", 1) for line in secrets_file().read_text().splitlines() if line and not line.startswith("#")
    ]
    given = [one("ConfigMap", name)["data"] for name in ("runtape-settings", "runtape-parts")]
    return {**given[0], **given[1], **dict(secrets)}


def secrets_file() -> Path:
    return MANIFESTS / "example" / "secrets.env.example"


def amount(text: str) -> float:
    found = re.fullmatch(r"(\d+)(\D*)", text)
    assert found
    return int(found[1]) * UNITS.get(found[2], 1)


def test_every_file_is_taken_in_and_every_object_is_there_once() -> None:
    listed = {
        (folder / name).resolve()
        for folder in (MANIFESTS / "base", MANIFESTS / "example", MANIFESTS / "gvisor")
        for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    }
    there = {path for path in MANIFESTS.rglob("*.yaml") if path.name != "kustomization.yaml"}
    assert {path for path in listed if path.is_file()} == there
    keys = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in EXAMPLE + GVISOR]
    assert len(keys) == len(set(keys))
    assert all(objects.path_of(each) for each in EXAMPLE + GVISOR)


def test_readers_of_yaml_without_anchors_see_the_same() -> None:
    for path in MANIFESTS.rglob("*.yaml"):
        assert not re.search(r"(^|\s)[&*]\w|<<:", path.read_text()), path


def test_both_namespaces_refuse_what_is_not_restricted() -> None:
    for name in (SERVICE, PROGRAMS):
        labels = one("Namespace", name)["metadata"]["labels"]
        assert {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "warn", "audit")} == {"restricted"}


def test_every_role_that_is_a_process_has_a_deployment_and_so_has_the_api() -> None:
    deployments = {each["metadata"]["name"]: each for each in objects.of_kinds(EXAMPLE, ["Deployment"])}
    assert deployments.keys() == {"api", *WORKERS.values()}
    for role, name in WORKERS.items():
        assert one("Deployment", name)["spec"]["template"]["spec"]["containers"][0]["args"] == ["worker", role]


@pytest.mark.parametrize("name", ["api", *WORKERS.values()])
def test_its_command_line_can_be_parsed_and_its_health_is_asked_for_where_it_is_told(name: str) -> None:
    (container,) = one("Deployment", name)["spec"]["template"]["spec"]["containers"]
    command, bound, _ = app.parse_args(container["args"], exit_on_error=False, print_error=False)
    assert command.__name__ == ("up" if name == "api" else "worker")
    port = bound.arguments["port"] if name == "api" else Settings.model_fields["worker"].default.port
    assert [each["containerPort"] for each in container["ports"]] == [port]
    asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {kind: each["path"] for kind, each in asked.items()} == {
        "startup": LIVE,
        "liveness": LIVE,
        "readiness": READY,
    }
    assert {each["port"] for each in asked.values()} == {container["ports"][0]["name"]}


def test_the_api_is_found_by_its_service() -> None:
    service, deployment = one("Service", "api"), one("Deployment", "api")
    pod = deployment["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert service["spec"]["ports"][0]["targetPort"] == pod["spec"]["containers"][0]["ports"][0]["name"]
    (rule,) = one("NetworkPolicy", "the-api-is-reached")["spec"]["ingress"]
    assert [each["port"] for each in rule["ports"]] == [service["spec"]["ports"][0]["port"]]


def test_the_topics_are_made_by_a_command_that_exists() -> None:
    ((_, container),) = [each for each in containers() if each[0] == "topics"]
    told = re.fullmatch(r"runtape (.+) \|\| test \$\? -eq 3", container["command"][2])
    assert told
    command, _, _ = app.parse_args(told[1].split(), exit_on_error=False, print_error=False)
    assert (command.__module__, command.__name__) == ("runtape.cli.topics", "init")


def test_every_process_is_given_the_same_settings() -> None:
    for name, container in containers():
        if name != "images":
            told = [next(iter(each.values()))["name"] for each in container["envFrom"]]
            assert told == ["runtape-settings", "runtape-parts", "runtape-secrets"]
            assert "env" not in container


def test_every_variable_is_a_setting_and_a_process_accepts_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    rows = {ENV_PREFIX + row.name.replace(".", "__").upper(): row for row in describe()}
    given = environment()
    assert given.keys() <= rows.keys()
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = Settings.read()
    assert settings.profile == "cluster"
    assert settings.worker.host == "0.0.0.0"
    assert settings.worker.pods == "kubernetes"
    assert settings.kubernetes.namespace == PROGRAMS
    assert one("PriorityClass", settings.kubernetes.priority_class or "")
    for name in ("runtape-settings", "runtape-parts"):
        assert not [each for each in one("ConfigMap", name)["data"] if rows[each].secret]


def test_no_secret_is_a_file_here() -> None:
    assert not objects.of_kinds(EXAMPLE + GVISOR, ["Secret"])
    ignored = (PROJECT / ".gitignore").read_text().splitlines()
    assert "/deploy/kubernetes/**/secrets.env" in ignored
    assert secrets_file().read_text().count("CHANGE-ME") == 4


def test_there_is_room_for_what_is_admitted() -> None:
    running = int(environment()["RUNTAPE_ADMISSION__RUNNING"])
    hard = one("ResourceQuota", "programs")["spec"]["hard"]
    memory_bytes = (Limits().memory_mb + RUNNER_MB) << 20
    assert running < amount(hard["pods"])
    assert amount(hard["pods"]) * memory_bytes <= amount(hard["limits.memory"])
    assert amount(hard["pods"]) * (64 << 20) <= amount(hard["limits.ephemeral-storage"])
    (limit,) = one("LimitRange", "programs")["spec"]["limits"]
    assert amount(limit["max"]["memory"]) == (MAXIMUM.memory_mb + RUNNER_MB) << 20


def test_programs_give_way_to_the_service_and_end_nobody() -> None:
    value = {each["metadata"]["name"]: each["value"] for each in objects.of_kinds(EXAMPLE, ["PriorityClass"])}
    assert value["runtape-program"] < value["runtape-service"]
    assert one("PriorityClass", "runtape-program")["preemptionPolicy"] == "Never"
    assert {pod["priorityClassName"] for _, pod in templates()} <= value.keys()


def test_programs_reach_nothing_and_are_reached_by_nothing() -> None:
    assert one("NetworkPolicy", "deny-all")["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert one("NetworkPolicy", "deny-all")["metadata"]["namespace"] == PROGRAMS


def test_the_pods_that_no_drain_evicts_are_those_of_programs() -> None:
    budget = one("PodDisruptionBudget", "runs")
    assert budget["metadata"]["namespace"] == PROGRAMS
    assert budget["spec"]["selector"] == {"matchExpressions": [{"key": EXECUTION, "operator": "Exists"}]}
    assert budget["spec"]["minAvailable"] > amount(one("ResourceQuota", "programs")["spec"]["hard"]["pods"])


def test_who_asks_the_cluster_for_nothing_has_no_token() -> None:
    for namespace in (SERVICE, PROGRAMS):
        (default,) = [
            each
            for each in objects.of_kinds(EXAMPLE, ["ServiceAccount"])
            if (each["metadata"]["namespace"], each["metadata"]["name"]) == (namespace, "default")
        ]
        assert default["automountServiceAccountToken"] is False
    accounts = {each["metadata"]["name"] for each in objects.of_kinds(EXAMPLE, ["ServiceAccount"])} - {"default"}
    assert accounts == {"api", "k8s-worker", "pod-monitor"}
    for name, pod in templates():
        if name in accounts:
            assert pod["serviceAccountName"] == name
        else:
            assert pod["automountServiceAccountToken"] is False


def test_rights_name_what_they_are_for() -> None:
    for each in objects.of_kinds(EXAMPLE, ["Role", "ClusterRole"]):
        for rule in each["rules"]:
            words = {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            assert "*" not in words
            assert not words & {"secrets", "pods/exec", "impersonate", "escalate", "bind", "deletecollection"}


def test_everything_runs_as_an_ordinary_user_without_any_right() -> None:
    for name, pod in templates():
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == (
            UID if name == "images" else 10001
        )
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert {next(iter(each.keys() - {"name"})) for each in pod.get("volumes", ())} <= {"emptyDir"}
    for _, container in containers():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"] and "cpu" in container["resources"]["requests"]


def test_workers_survive_the_loss_of_a_node() -> None:
    for each in objects.of_kinds(EXAMPLE, ["Deployment"]):
        name, spec = each["metadata"]["name"], each["spec"]
        assert spec["replicas"] >= 2
        labels = spec["template"]["metadata"]["labels"]
        selectors = [
            one("PodDisruptionBudget", name)["spec"]["selector"],
            *(spread["labelSelector"] for spread in spec["template"]["spec"]["topologySpreadConstraints"]),
            spec["selector"],
        ]
        assert selectors == [{"matchLabels": {"app.kubernetes.io/name": name}}] * 4
        assert labels["app.kubernetes.io/name"] == name


def test_programs_have_the_time_that_the_worker_gives_them() -> None:
    drain_s = float(environment()["RUNTAPE_WORKER__DRAIN_S"])
    pod = one("Deployment", "k8s-worker")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > drain_s + 10


def test_images_are_pinned_and_those_of_the_product_are_of_this_version() -> None:
    named = {container["image"] for _, container in containers()}
    for image in named:
        assert re.fullmatch(r"runtape/\w+:[\d.]+", image)
    assert f"runtape/service:{runtape.__version__}" in named
    told = yaml.safe_load((MANIFESTS / "example" / "kustomization.yaml").read_text())["images"]
    assert {each["name"] for each in told} == {image.partition(":")[0] for image in named}


def test_the_images_that_nodes_hold_are_those_that_workers_offer() -> None:
    held = {container["image"] for name, container in containers() if name == "images"}
    assert held == {f"{KubernetesSettings().image_prefix}{lang}:{version}" for lang, version, _ in runtimes.images()}
