"""docker-compose.yml against the Compose specification and against the code: it cannot be started here."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pymongo.asynchronous.uri_parser import parse_uri
from ruamel.yaml import YAML

import runtape
from runtape.adapters.sandbox.keeper import syscalls
from runtape.cli.main import app
from runtape.runtime.roles import Role
from runtape.runtime.settings import ENV_PREFIX, Settings, describe
from tests.cli.test_worker import CARRIED_ALONG
from tests.deploy.composition import COMPOSE_FILE, GIVEN, PROJECT, compose, environment, resolved, services, variables
from tests.rig import kafka, registry

WORKERS = sorted(set(Role) - CARRIED_ALONG)
PROCESSES = ["api", *WORKERS]
ONCE = ["kafka-init", "mongo-init"]
PARTS = ["kafka", "registry", "mongo", "redis"]
FRONTEND = "frontend"
PORTS = {"kafka": 9092, "registry": 8080, "mongo": 27017, "redis": 6379}
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|KEY|URL")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(ENV_PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


@pytest.fixture
def settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings as the process of a service reads them."""
    for name, value in environment(request.param).items():
        monkeypatch.setenv(name, value)
    return Settings.read()


def check(file: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_file_is_what_the_compose_specification_allows(tmp_path: Path) -> None:
    done = check(COMPOSE_FILE)
    assert done.returncode == 0, done.stdout
    misspelt = tmp_path / "docker-compose.yml"
    misspelt.write_text(COMPOSE_FILE.read_text().replace("stop_grace_period", "stop_grace"))
    assert "'stop_grace' was unexpected" in check(misspelt).stdout


def test_every_role_that_is_a_process_has_a_service_and_so_has_the_api() -> None:
    assert set(services()) == {FRONTEND, *PROCESSES, *ONCE, *PARTS}
    assert {name: services()[name]["command"] for name in WORKERS} == {role: ["worker", role] for role in WORKERS}
    assert services()["api"]["command"][0] == "up"


@pytest.mark.parametrize("name", PROCESSES)
def test_its_command_line_can_be_parsed(name: str) -> None:
    command, bound, _ = app.parse_args(services()[name]["command"], exit_on_error=False, print_error=False)
    assert command.__name__ == ("up" if name == "api" else "worker")
    if name == "api":
        assert bound.arguments == {"host": "0.0.0.0", "port": 8400}


def test_kafka_init_runs_a_command_that_exists_and_bears_that_a_topic_differs() -> None:
    shell, option, script = services()["kafka-init"]["entrypoint"]
    assert (shell, option) == ("sh", "-c")
    told = re.fullmatch(r"runtape (.+) \|\| test \$\? -eq 3", resolved(script))
    assert told
    command, _, _ = app.parse_args(told[1].split(), exit_on_error=False, print_error=False)
    assert (command.__module__, command.__name__) == ("runtape.cli.topics", "init")


@pytest.mark.parametrize("name", [*PROCESSES, "kafka-init"])
def test_every_variable_is_a_setting(name: str) -> None:
    known = {ENV_PREFIX + row.name.replace(".", "__").upper() for row in describe()}
    assert set(services()[name]["environment"]) <= known


@pytest.mark.parametrize("settings", PROCESSES, indirect=True)
def test_a_process_accepts_its_settings_and_finds_every_part(settings: Settings) -> None:
    assert settings.profile == "cluster"
    assert settings.kafka.bootstrap == f"kafka:{PORTS['kafka']}"
    assert settings.registry.url == f"http://registry:{PORTS['registry']}/apis/ccompat/v7"
    assert settings.redis.url is not None and settings.mongo.url is not None
    assert settings.redis.url.get_secret_value() == f"redis://:{GIVEN['REDIS_PASSWORD']}@redis:{PORTS['redis']}/0"


@pytest.mark.parametrize("settings", PROCESSES, indirect=True)
async def test_a_process_is_the_user_that_mongo_init_makes(settings: Settings) -> None:
    assert settings.mongo.url is not None
    url = await parse_uri(settings.mongo.url.get_secret_value())
    script = (PROJECT / "deploy" / "mongo-init.js").read_text()
    replica_set = url["options"]["replicaSet"]
    (host, port), *others = url["nodelist"]
    assert not others
    assert f'{{ _id: "{replica_set}", members: [{{ _id: 0, host: "{host}:{port}" }}] }}' in script
    assert f'admin.createUser({{ user: "{url["username"]}"' in script
    assert f'role: "readWrite", db: "{settings.mongo.database}"' in script
    assert "pwd: process.env.MONGO_PASSWORD" in script
    assert environment("mongo-init")["MONGO_PASSWORD"] == url["password"]
    assert environment("mongo-init")["MONGO_ROOT_PASSWORD"] == environment("mongo")["MONGO_INITDB_ROOT_PASSWORD"]
    command = services()["mongo"]["command"]
    assert command[command.index("--replSet") + 1] == replica_set
    assert f">{command[command.index('--keyFile') + 1]} &&" in services()["mongo"]["entrypoint"][2]


def test_what_is_admitted_is_the_same_everywhere() -> None:
    assert len({environment(name)["RUNTAPE_ADMISSION__RUNNING"] for name in PROCESSES}) == 1


def test_it_does_not_start_without_its_secrets_and_none_has_a_default() -> None:
    required: dict[str, str] = {}
    for name, service in services().items():
        for variable, value in service.get("environment", {}).items():
            found = list(variables(str(value)))
            required.update({each: rest for each, rule, rest in found if rule == "required"})
            if SECRET.search(variable) and variable != "RUNTAPE_REGISTRY__URL":
                assert found and all(rule == "required" for _, rule, _ in found), f"{name}: {variable}"
    assert set(required) == set(GIVEN)
    assert all(text == f"set {variable} in .env" for variable, text in required.items())


def test_no_secret_stands_in_a_command_line() -> None:
    for service in services().values():
        words = [
            *service.get("command", []),
            *service.get("entrypoint", []),
            *service.get("healthcheck", {}).get("test", []),
        ]
        assert not [word for word in words if list(variables(str(word)))]


def test_the_file_with_the_secrets_is_in_no_commit_and_no_image() -> None:
    assert "/.env" in (PROJECT / ".gitignore").read_text().splitlines()
    rules = [line for line in (PROJECT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rules[0] == "*"
    assert not [rule for rule in rules if rule.startswith("!") and ".env" in rule]


def test_every_image_is_pinned_and_the_products_are_of_this_version() -> None:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    assert version == runtape.__version__
    for name, service in services().items():
        repository, _, tag = service["image"].partition(":")
        if name in PROCESSES or name == "kafka-init":
            assert repository in ("runtape/service", "runtape/k8s_worker")
            assert tag == version
        else:
            assert re.fullmatch(r"\d+\.\d+\.\d+(-\w+)?(@sha256:[0-9a-f]{64})?", tag), service["image"]
            assert "build" not in service


def test_kafka_and_the_registry_are_those_that_the_tests_run() -> None:
    assert services()["kafka"]["image"] == f"apache/kafka:{kafka.VERSION}"
    assert services()["registry"]["image"] == f"apicurio/apicurio-registry:{registry.VERSION}"


def test_each_image_of_the_product_is_built_by_one_service_and_pulled_by_none() -> None:
    builders = [service["image"] for service in services().values() if "build" in service]
    users = {service["image"] for service in services().values() if service["image"].startswith("runtape/")}
    assert sorted(builders) == sorted(users)
    for service in services().values():
        if service["image"] in users:
            assert service["pull_policy"] == ("build" if "build" in service else "never")


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_starts_after_the_parts_and_after_what_is_made_once(name: str) -> None:
    waits = {other: on["condition"] for other, on in services()[name]["depends_on"].items()}
    done, healthy = "service_completed_successfully", "service_healthy"
    assert waits == {"kafka-init": done, "mongo-init": done, "registry": healthy, "redis": healthy}


def test_what_is_made_once_waits_for_its_part_and_is_not_begun_again() -> None:
    for name, part in [("kafka-init", "kafka"), ("mongo-init", "mongo")]:
        assert services()[name]["depends_on"] == {part: {"condition": "service_healthy"}}
        assert services()[name]["restart"] == "no"
    assert services()["registry"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    for name in [FRONTEND, *PROCESSES, *PARTS]:
        assert services()[name]["restart"] == "unless-stopped"


def test_only_the_front_end_is_published() -> None:
    published = {name: service["ports"] for name, service in services().items() if "ports" in service}
    assert {name: [resolved(port) for port in ports] for name, ports in published.items()} == {
        FRONTEND: ["0.0.0.0:443:8443", "0.0.0.0:80:8080"]
    }


def test_the_parts_are_in_a_network_without_a_way_out() -> None:
    networks = compose()["networks"]
    assert {name: network.get("internal", False) for name, network in networks.items()} == {
        "parts": True,
        "front": True,
        "outside": False,
    }
    joined = {
        network: {name for name, service in services().items() if network in service["networks"]}
        for network in networks
    }
    assert joined == {
        "parts": set(services()) - {FRONTEND},
        "front": {FRONTEND, "api"},
        "outside": {FRONTEND, "k8s_worker"},
    }


def test_everything_runs_without_capabilities_and_privileges() -> None:
    for name, service in services().items():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"][0] == "no-new-privileges:true"
        assert not {"privileged", "cap_add", "devices", "pid", "ipc", "userns_mode", "network_mode"} & service.keys()
        assert (len(service["security_opt"]) > 1) == (name == "k8s_worker")
        assert not [each for each in service.get("volumes", []) if "docker.sock" in str(each)]


def test_the_k8s_worker_is_granted_what_the_sandbox_needs_and_no_more() -> None:
    assert services()["k8s_worker"]["security_opt"][1:] == [
        "seccomp:deploy/k8s_worker.seccomp.json",
        "apparmor:unconfined",
        "systempaths=unconfined",
    ]
    profile = json.loads((PROJECT / "deploy" / "k8s_worker.seccomp.json").read_text())
    (refused,) = profile["syscalls"]
    # mount_setattr makes what is shown of the host read-only.
    assert set(refused["names"]) == syscalls.OF_NO_MONITOR["x86_64"].keys() - {"mount_setattr"}
    assert (profile["defaultAction"], refused["action"]) == ("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO")
    # No second word size, whose numbers would pass by the list.
    assert {each["architecture"]: each["subArchitectures"] for each in profile["archMap"]} == {
        "SCMP_ARCH_X86_64": [],
        "SCMP_ARCH_AARCH64": [],
    }


@pytest.mark.parametrize("settings", ["k8s_worker"], indirect=True)
def test_programs_have_the_time_that_the_worker_gives_them(settings: Settings) -> None:
    assert seconds(services()["k8s_worker"]["stop_grace_period"]) > settings.worker.drain_s + 10
    memory_mb = settings.admission.running * settings.limits.memory_mb
    assert services()["k8s_worker"]["deploy"]["resources"]["limits"]["memory"] == "4g"
    assert memory_mb + 1024 <= 4096


def test_every_service_has_limits_and_logs_that_end() -> None:
    for name, service in services().items():
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}
        if name != "mongo-init":
            assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}


def test_what_must_last_is_in_named_volumes_and_redis_keeps_nothing() -> None:
    kept = {
        volume.partition(":")[0]: name
        for name, service in services().items()
        for volume in service.get("volumes", [])
        if isinstance(volume, str) and not volume.startswith("./")
    }
    assert kept == {"kafka": "kafka", "mongo": "mongo", "mongo-config": "mongo", "k8s_worker": "k8s_worker"}
    assert compose()["volumes"].keys() == kept.keys()
    assert services()["k8s_worker"]["volumes"] == ["k8s_worker:/data"]
    assert services()["kafka"]["volumes"] == [f"kafka:{services()['kafka']['environment']['KAFKA_LOG_DIRS']}"]
    for volume in services()["mongo-init"]["volumes"]:
        assert (PROJECT / volume.partition(":")[0]).is_file()
    command = services()["redis"]["command"]
    assert dict(zip(command[::2], command[1::2], strict=True)).items() >= {"--save": "", "--appendonly": "no"}.items()


def test_kafka_has_as_many_copies_as_there_are_brokers() -> None:
    assert environment("kafka-init")["RUNTAPE_KAFKA__REPLICATION"] == "1"
    counts = {name: value for name, value in environment("kafka").items() if name.endswith(("FACTOR", "MIN_ISR"))}
    assert len(counts) == 6 and set(counts.values()) == {"1"}


def test_readers_of_yaml_1_1_see_the_same() -> None:
    """They take a bare no or off for false."""
    old = YAML(typ="safe", pure=True)
    old.version = (1, 1)  # type: ignore[assignment]
    assert old.load(COMPOSE_FILE.read_text()) == compose()


def seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)(s|m)", text)
    assert found
    return int(found[1]) * {"s": 1, "m": 60}[found[2]]
