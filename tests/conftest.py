"""Which parts of a host the tests need, and what happens when one is not there.

A test says `@pytest.mark.needs("node")`; without that part it is skipped, and the end of the run lists what was
skipped and why, by part.  `RUNTAPE_REQUIRE=node,sandbox` names parts that may not be skipped: such a skip fails.
``other`` stands for skips that name no part.
"""

import functools
import os
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Generator
from dataclasses import dataclass

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

pytest_plugins = ["tests.cluster.plugin", "tests.kubernetes.plugin"]

# A shell starts what it runs in the background with SIGINT ignored, and that is inherited: what the tests send SIGINT
# would not notice it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

OTHER = "other"
CLUSTER = "tests/cluster/"
SANDBOXES = "sandboxes"
KUBERNETES = "tests/kubernetes/"
PODS_OF_PROVE = "tests/prove/test_pods.py"
LONGEST = (
    "test_unprivileged",
    "test_crash_points",
    "test_languages",
    "test_soak",
    "test_packages",
    "test_frontend",
    "test_figures",
    "test_kill",
    "test_stopped",
    "test_clock",
    "test_disk",
    "test_outcomes",
    "test_battery",
    "test_death",
    "test_bench",
)
"""Names of the files whose tests take longest together."""


@dataclass(frozen=True, slots=True)
class Part:
    """Something outside the project that some tests need; `probe` returns why it is missing, or None."""

    meaning: str
    probe: Callable[[], str | None]


LANGUAGES = ("python", "bash", "node", "ruby", "perl", "php", "lua", "r", "sqlite", "go", "c", "c++", "java", "rust")


@functools.cache
def _missing_languages() -> dict[str, str]:
    from runtape.adapters.sandbox.runtimes import detect

    return {each.lang: f"{each.finding}; {each.fix}" for each in detect()[1]}


def _language(lang: str) -> Callable[[], str | None]:
    return lambda: _missing_languages().get(lang)


def _root() -> str | None:
    return None if os.geteuid() == 0 else f"runs as user {os.geteuid()}"


def _userns() -> str | None:
    """Ask the kernel itself: several settings can forbid it, under different names."""
    ask = "import ctypes, sys; sys.exit(ctypes.CDLL(None, use_errno=True).unshare(0x10000000) and 1)"
    if subprocess.run([sys.executable, "-c", ask], check=False).returncode == 0:
        return None
    return "the kernel refuses unshare(CLONE_NEWUSER)"


def _sandbox() -> str | None:
    try:
        from runtape.adapters.sandbox import inspect_host
    except ImportError as error:
        return f"the sandbox adapter cannot be imported ({error})"
    missing = [f"{check.name}: {check.finding}" for check in inspect_host() if str(check.state) == "missing"]
    return "; ".join(missing) or None


def _matplotlib() -> str | None:
    from tests.sandbox.interpreters import why_not_installable

    return why_not_installable("matplotlib")


def _server() -> str | None:
    try:
        import runtape.runtime.process  # noqa: F401  # the import is the probe
    except ImportError as error:
        return f"the server cannot be imported ({error})"
    return _sandbox()


def _patience() -> str | None:
    return None if "patience" in _required() else "they take some minutes more; RUNTAPE_REQUIRE=patience runs them"


def _alone() -> str | None:
    if "alone" in _required():
        return None
    return (
        "they count the seconds until a cluster is well again; RUNTAPE_REQUIRE=alone ./runtape test -n 0 tests/cluster"
    )


def _mounts() -> str | None:
    """Try it: a container's root may not mount, whatever its user id says."""
    if os.geteuid() != 0:
        return f"runs as user {os.geteuid()}, who may not mount"
    ask = "mount -t tmpfs -o size=4k tmpfs /mnt"
    if subprocess.run(["unshare", "--mount", "sh", "-c", ask], check=False, stderr=subprocess.DEVNULL).returncode == 0:
        return None
    return "root may not mount a tmpfs here"


def _faketime() -> str | None:
    from tests.process.wall_clock import LIBRARY

    return None if LIBRARY is not None else "no libfaketimeMT.so.1; apt install faketime"


def _gvisor() -> str | None:
    return None if shutil.which("runsc") else "no runsc on PATH; apt install runsc"


def _obtained(what: Callable[[], object]) -> str | None:
    from tests.rig.store import Unobtainable

    try:
        what()
    except Unobtainable as error:
        return str(error)
    return None


def _own() -> str | None:
    from tests.rig.given import NOT_KILLED, VARIABLES, addresses

    names = ", ".join(VARIABLES[name] for name in addresses())
    return f"{NOT_KILLED} ({names})" if names else None


def _server_of(name: str, *unpacked: Callable[[], object]) -> str | None:
    from tests.rig import contained
    from tests.rig.choice import Source, source

    match source(name):
        case Source.GIVEN:
            return None
        case Source.DOCKER:
            return _obtained(lambda: contained.pull(contained.image(name)))
        case Source.UNPACKED:
            return next(filter(None, map(_obtained, unpacked)), None)


def _redis() -> str | None:
    from tests.rig import redis

    return _server_of("redis", redis.programs)


def _redis_unpacked() -> str | None:
    from tests.rig import redis

    return _obtained(redis.programs)


def _kafka() -> str | None:
    from tests.rig import kafka

    return _server_of("kafka", kafka.jars)


def _kafka_unpacked() -> str | None:
    from tests.rig import kafka

    return _obtained(kafka.jars)


def _mongo() -> str | None:
    from tests.rig import mongo

    return _server_of("mongo", mongo.engine, mongo.c_library)


def _registry() -> str | None:
    from tests.rig import registry

    return _server_of("registry", registry.application, registry.java)


def _nginx() -> str | None:
    from tests.rig import nginx

    return _obtained(nginx.programs)


def _docker() -> str | None:
    from tests.rig import contained, docker, images, redis

    theirs = _obtained(images.programs) or _obtained(redis.programs)
    if contained.missing() is None:
        return theirs or _obtained(lambda: contained.pull(contained.image("redis")))
    return theirs or _mounts() or _obtained(docker.programs)


def _kubernetes() -> str | None:
    """Never build it: that takes minutes."""
    from tests.rig.given import addresses
    from tests.rig.kubernetes import machine, programs

    if "kubernetes" in addresses():
        return None
    if "PYTEST_XDIST_WORKER" in os.environ and "kubernetes" not in _required():
        return "its node needs this machine's processors; RUNTAPE_REQUIRE=kubernetes ./runtape test -n 0 -m kubernetes"
    if programs.missing():
        return "it has not been built; ./runtape rig obtain kubernetes does that, in some minutes"
    return machine.why_impossible()


PARTS = {
    **{lang: Part(f"{lang}, as the sandbox finds it", _language(lang)) for lang in LANGUAGES},
    "root": Part("the tests run as root", _root),
    "userns": Part("unprivileged user namespaces", _userns),
    "sandbox": Part("code can be run in the local sandbox", _sandbox),
    "server": Part("the embedded server with its sandbox", _server),
    "mounts": Part("file systems can be mounted", _mounts),
    "faketime": Part("libfaketime, to set a process's clock", _faketime),
    "gvisor": Part("gVisor's runsc", _gvisor),
    "matplotlib": Part("an interpreter with matplotlib from the index", _matplotlib),
    "kafka": Part("Apache Kafka, given, in Docker or from Maven's repository", _kafka),
    "kafka-unpacked": Part("Apache Kafka from Maven's repository, with settings of a test's own", _kafka_unpacked),
    "mongo": Part("MongoDB, given, in Docker or its engine from the npm registry", _mongo),
    "redis": Part("Redis, given, in Docker or from Debian's packages", _redis),
    "redis-unpacked": Part("Redis from Debian's packages, with settings of a test's own", _redis_unpacked),
    "registry": Part("a schema registry, given, in Docker or from Maven's repository", _registry),
    "nginx": Part("nginx, from Debian's packages", _nginx),
    "docker": Part("Docker, here or a private one from Debian's packages", _docker),
    "kubernetes": Part("Kubernetes, given or built beforehand", _kubernetes),
    "own": Part("servers of the tests' own, where they need some", _own),
    "alone": Part("a machine for themselves", _alone),
    "patience": Part("some more minutes, which CI has", _patience),
    OTHER: Part("skips that name no part", lambda: None),
}

_SKIPPED_PART = pytest.StashKey[str]()
_SKIPS = pytest.StashKey["SkipSummary"]()
_SKIPPED_FOR = "skipped for the part"


@functools.cache
def _missing(part: str) -> str | None:
    return PARTS[part].probe()


def _required() -> frozenset[str]:
    return frozenset(name.strip() for name in os.environ.get("RUNTAPE_REQUIRE", "").split(",") if name.strip())


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "embedded: the test is about the embedded profile alone")
    config.addinivalue_line("markers", "kubernetes: the test is over Kubernetes, or about what is made for it")
    config.addinivalue_line("markers", f"needs(*parts): parts that the test needs ({', '.join(PARTS)})")
    config.stash[_SKIPS] = SkipSummary()
    config.pluginmanager.register(config.stash[_SKIPS])
    if unknown := _required() - PARTS.keys():
        raise pytest.UsageError(f"RUNTAPE_REQUIRE names {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the cluster and the longest files, whatever number of tests they have: none is left over then."""
    for item in items:
        if shared_cluster(item.nodeid) == KUBERNETES:
            item.add_marker("kubernetes")
    first = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: -1 if shared_cluster(item.nodeid) else first.get(item.path.stem, len(first)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    return FilesAndTheCluster(config, log)


class FilesAndTheCluster(LoadFileScheduling):
    """Gives the tests of a file to one worker, and all tests over one cluster to one: it is started once then."""

    def _split_scope(self, nodeid: str) -> str:
        return shared_cluster(nodeid) or super()._split_scope(nodeid)


def shared_cluster(nodeid: str) -> str | None:
    """Return what the tests share that run over the same cluster as a test does; None: it has none.

    That is the product's over simulated pods, the product's over local sandboxes, or Kubernetes.
    """
    if nodeid.startswith(CLUSTER) or "[cluster" in nodeid:
        return CLUSTER
    if f"[{SANDBOXES}" in nodeid:
        return SANDBOXES
    return KUBERNETES if nodeid.startswith((KUBERNETES, PODS_OF_PROVE)) or "[pods" in nodeid else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for part in mark.args:
            if part not in PARTS:
                pytest.fail(f'there is no part "{part}"; the parts are {", ".join(PARTS)}', pytrace=False)
            if reason := _missing(part):
                item.stash[_SKIPPED_PART] = part
                pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        part = item.stash.get(_SKIPPED_PART, OTHER)
        report.user_properties.append((_SKIPPED_FOR, part))
        _refuse_skip(report, part)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped:
        _refuse_skip(report, OTHER)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport, part: str) -> None:
    """Turn a skip into a failure when its part is required."""
    if part in _required():
        report.outcome = "failed"
        report.longrepr = f"RUNTAPE_REQUIRE names {part}, so this may not be skipped: {_reason(report)}"


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    where = report.longrepr
    return (where[2] if isinstance(where, (tuple, list)) else str(where)).removeprefix("Skipped: ")


class SkipSummary:
    """Collects the skips in the process that reports, wherever the tests ran."""

    def __init__(self) -> None:
        self.by_part: dict[str, list[tuple[str, str]]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        part = dict(report.user_properties).get(_SKIPPED_FOR)
        if report.skipped and isinstance(part, str):
            self.by_part[part].append((_reason(report), report.nodeid))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        entry = (_reason(report), report.nodeid)
        if report.skipped and entry not in self.by_part[OTHER]:  # every worker collects everything
            self.by_part[OTHER].append(entry)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    skips = {part: entries for part, entries in config.stash[_SKIPS].by_part.items() if entries}
    if not skips:
        return
    terminalreporter.section("skipped, by part")
    for part, entries in sorted(skips.items()):
        by_reason: dict[str, list[str]] = defaultdict(list)
        for reason, nodeid in entries:
            by_reason[reason].append(nodeid)
        for reason, nodeids in by_reason.items():
            terminalreporter.line(f"{part} ({PARTS[part].meaning}): {len(nodeids)} skipped, {reason}")
            files = sorted({nodeid.partition("::")[0] for nodeid in nodeids})
            terminalreporter.line(f"    in {', '.join(files)}")
