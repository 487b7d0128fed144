"""`runtape worker`, and what a command of a cluster says where the cluster's packages are not installed."""

import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from runtape.cli.worker import WorkerRole
from runtape.runtime import cluster_packages
from runtape.runtime.roles import Role
from tests.cli.commands import environment, runtape

PROJECT = Path(__file__).parents[2]
CARRIED_ALONG = {Role.EVENT_STORE, Role.REPLAY}
"""Done by other processes of a cluster: whoever publishes an event records it, and the saga_orchestrator replays."""
NEEDS = (
    "error: the profile cluster needs aiokafka, confluent-kafka, fastavro, pymongo, redis, kubernetes-asyncio, pyyaml; "
    "install runtape[cluster], or in a checkout set RUNTAPE_PROFILE=cluster in the environment and use ./runtape\n"
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which a Python that has no packages of its own finds all but a cluster's."""
    site = tmp_path_factory.mktemp("site")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.name not in cluster_packages.PACKAGES:
            (site / entry.name).symlink_to(entry)
    return environment(PYTHONPATH=f"{PROJECT / 'backend'}:{site}:{PROJECT}", RUNTAPE_PROFILE="cluster")


def test_every_role_that_is_a_process_can_be_started() -> None:
    assert set(get_args(WorkerRole)) == {str(role) for role in Role} - CARRIED_ALONG
    assert {path.parent.name for path in PROJECT.glob("workers/*/__main__.py")} == set(get_args(WorkerRole))


def test_the_extra_is_the_sum_of_the_others_and_every_package_is_asked_for() -> None:
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (everything,) = extras.pop("cluster")
    del extras["certs"]  # whoever makes certificates runs no process of the cluster
    assert everything == f"runtape[{','.join(extras)}]"
    wanted = {each.partition("[")[0].partition(">")[0] for packages in extras.values() for each in packages}
    assert wanted == set(cluster_packages.PACKAGES.values())


@pytest.mark.parametrize("role", get_args(WorkerRole))
def test_a_worker_names_all_settings_that_it_lacks(role: str) -> None:
    missing = "RUNTAPE_KAFKA__BOOTSTRAP, RUNTAPE_REGISTRY__URL, RUNTAPE_MONGO__URL, RUNTAPE_REDIS__URL"
    done = runtape("worker", role)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"error: a setting is not valid: the profile cluster needs {missing}\n"


def test_a_role_that_does_not_exist_is_told_with_those_that_do() -> None:
    done = runtape("worker", "k8s_walker")
    assert done.returncode == 2
    assert all(role in done.stderr.decode() for role in get_args(WorkerRole))


@pytest.mark.parametrize(
    "arguments",
    [
        ("runtape.cli", "up"),
        ("runtape.cli", "worker", "result_processor"),
        ("runtape.cli", "topics", "init"),
        ("runtape.cli", "topics", "check"),
        *((f"workers.{role}",) for role in get_args(WorkerRole)),
    ],
    ids=" ".join,
)
def test_packages_that_are_not_installed_are_told_in_one_line(
    plain: dict[str, str], arguments: tuple[str, ...]
) -> None:
    settings = {
        "RUNTAPE_KAFKA__BOOTSTRAP": "x:1",
        "RUNTAPE_REGISTRY__URL": "http://x",
        "RUNTAPE_MONGO__URL": "mongodb://x",
        "RUNTAPE_REDIS__URL": "redis://x",
    }
    done = subprocess.run(
        [sys._base_executable, "-S", "-P", "-m", *arguments],  # type: ignore[attr-defined]
        env={**plain, **settings},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", NEEDS)
