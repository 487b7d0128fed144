"""deploy/Dockerfile and what it puts into the images, against the repository and the code."""

import http.server
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtape.api.health import READY
from runtape.runtime.settings import Settings
from tests.deploy.composition import DOCKERFILE, PROJECT, environment, instructions, lineage, resolved, services
from tests.rig import debian, redis
from tests.rig.part import free_port

TARGETS = ("service", "k8s_worker")
LOCK = "requirements-cluster.lock"
BUILT = sorted(name for name, service in services().items() if service["image"].startswith("runtape/"))


def copied_from_here() -> list[tuple[list[str], str]]:
    """Return the paths of each COPY out of the repository, with where they go."""
    found = []
    for _, name, words in instructions():
        options, paths = [each for each in words if each[:2] == "--"], [each for each in words if each[:2] != "--"]
        if name == "COPY" and not any(option.startswith("--from=") for option in options):
            found.append((paths[:-1], paths[-1]))
    return found


def test_every_path_that_is_copied_exists_and_reaches_the_build() -> None:
    paths = {path for sources, _ in copied_from_here() for path in sources}
    assert paths == {"backend/runtape", "deploy/ready", "deploy/runtape", LOCK}
    assert all((PROJECT / path).exists() for path in paths)
    rules = (PROJECT / ".dockerignore").read_text().splitlines()
    assert {rule[1:] for rule in rules if rule.startswith("!")} == paths


def test_what_is_installed_comes_from_the_lock_by_hash() -> None:
    commands = [" ".join(words) for _, name, words in instructions() if name == "RUN"]
    (install,) = [command for command in commands if " pip " in command]
    assert {"--require-hashes", "--only-binary", f"/tmp/{LOCK}"} <= set(install.split())
    assert not [command for command in commands if re.search(r"curl|wget|git ", command)]
    assert re.search(r"^aiokafka==.+\\\n    --hash=sha256:", (PROJECT / LOCK).read_text(), re.MULTILINE)


def test_the_base_is_one_pinned_python_and_the_paths_are_its_own() -> None:
    bases = [words[0] for _, name, words in instructions() if name == "FROM"]
    stages = {stage for stage, _, _ in instructions()}
    (python,) = [base for base in bases if base not in stages]
    version = re.fullmatch(r"python:(3\.11)\.\d+-slim-[a-z]+", python)
    assert version
    assert set(re.findall(r"python3\.\d+", DOCKERFILE.read_text())) == {f"python{version[1]}"}


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_is_no_roots_and_tells_its_health(target: str) -> None:
    steps = lineage(target)
    last = dict(steps)
    assert last["USER"] == ["10001:10001"]
    assert f"useradd --uid {last['USER'][0].partition(':')[0]}" in " ".join(
        word for _, words in steps for word in words
    )
    assert last["ENTRYPOINT"] == ["runtape"]
    assert last["HEALTHCHECK"][-3:] == ["CMD", "ready", str(Settings.model_fields["worker"].default.port)]
    assert "RUNTAPE_DATA=/data" in last["ENV"]


def test_services_are_built_from_stages_that_exist() -> None:
    for name in BUILT:
        build = services()[name].get("build")
        target = services()[name]["image"].removeprefix("runtape/").partition(":")[0]
        assert target in TARGETS
        assert build in (None, {"context": ".", "dockerfile": str(DOCKERFILE.relative_to(PROJECT)), "target": target})
    assert services()["k8s_worker"]["image"].startswith("runtape/k8s_worker:")


@pytest.mark.parametrize("name", [each for each in BUILT if each != "kafka-init"])
def test_its_health_is_asked_for_where_it_is_told(name: str) -> None:
    target = services()[name]["image"].removeprefix("runtape/").partition(":")[0]
    command = services()[name].get("healthcheck", {}).get("test", dict(lineage(target))["HEALTHCHECK"][-3:])
    assert command[:2] == ["CMD", "ready"]
    words = services()[name]["command"]
    port = (
        words[words.index("--port") + 1] if words[0] == "up" else environment(name).get("RUNTAPE_WORKER__PORT", "8401")
    )
    assert command[2] == port


def test_the_workers_image_has_every_language() -> None:
    described = tomllib.loads((PROJECT / "backend/runtape/adapters/sandbox/runtimes.toml").read_text())
    commands = [words for stage, name, words in instructions() if (stage, name) == ("k8s_worker", "RUN")]
    (installed,) = [set(words) for words in commands if "install" in words]
    wanted = {each["lang"]: set(each["package"].split()) for each in described["runtime"]}
    assert wanted.pop("python") == {"python3"}  # the image's own
    assert {lang: packages - installed for lang, packages in wanted.items() if packages - installed} == {}


@pytest.fixture
def answering() -> Iterator[Callable[[int], int]]:
    """Returns the port of a server that answers with a status where a process tells whether it is ready."""
    servers: list[http.server.HTTPServer] = []

    def begin(status: int) -> int:
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status if self.path == READY else 404)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server.server_port

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


def ready(port: int) -> int:
    command = [sys.executable, "-IS", str(PROJECT / "deploy" / "ready"), str(port)]
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode


def test_ready_is_what_the_process_says(answering: Callable[[int], int]) -> None:
    assert [ready(answering(200)), ready(answering(503)), ready(free_port())] == [0, 1, 1]


@pytest.mark.parametrize("name", ["ready", "runtape"])
def test_a_script_of_the_images_is_started_by_their_python(name: str) -> None:
    first, *_ = (PROJECT / "deploy" / name).read_text().splitlines()
    assert re.fullmatch(r"#!/opt/runtape/bin/python -\w+", first)
    assert (["/opt/runtape/bin/"], 1) in [([to], sources.count(f"deploy/{name}")) for sources, to in copied_from_here()]


@pytest.mark.needs("redis-unpacked", "own")
def test_redis_wants_its_password_and_keeps_nothing(tmp_path: Path) -> None:
    service = services()["redis"]
    shell, option, script, name = [resolved(word) for word in service["entrypoint"]]
    env = debian.environment(redis.programs())
    programs = redis.programs() / "usr" / "bin"
    env = {**env, **environment("redis"), "PATH": f"{programs}:{env.get('PATH', '/usr/bin:/bin')}"}
    port = free_port()
    server = subprocess.Popen(
        [shell, option, script.replace("/tmp/", f"{tmp_path}/"), name, *service["command"], "--port", str(port)],
        env=env,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )

    def ask(*words: str, **more: str) -> str:
        command = ["redis-cli", "-p", str(port), *words]
        return subprocess.run(command, env={**env, **more}, capture_output=True, text=True, check=False).stdout

    try:
        (test,) = service["healthcheck"]["test"][1:]
        check = resolved(test).replace("redis-cli", f"redis-cli -p {port}")
        while subprocess.run(["sh", "-c", check], env=env, stderr=subprocess.DEVNULL, check=False).returncode:
            assert server.poll() is None
        password = {"REDISCLI_AUTH": environment("redis")["REDIS_PASSWORD"]}
        assert "NOAUTH" in ask("ping")
        assert ask("config", "get", "maxmemory-policy", **password).split()[1] == "noeviction"
        assert ask("config", "get", "appendonly", **password).split()[1] == "no"
        assert ask("config", "get", "save", **password).split() == ["save"]
        assert (tmp_path / "redis.conf").stat().st_mode & 0o777 == 0o600
        assert password["REDISCLI_AUTH"] not in Path(f"/proc/{server.pid}/cmdline").read_text()
    finally:
        server.terminate()
        server.wait()
