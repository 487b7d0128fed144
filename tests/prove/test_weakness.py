"""A planted weakness is caught, by the cases that are about it and by no other."""

import json
from pathlib import Path

import pytest

from runtape.cli.main import main
from tests.prove import weakened
from tests.prove.weakened import Weakness, weaken

pytestmark = pytest.mark.needs("sandbox")


@pytest.fixture(autouse=True)
def own_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the logging of this process alone, which the command would bind to a stream of one test."""
    monkeypatch.setattr("runtape.runtime.logging.configure_logging", lambda level: None)


def verdicts(capfd: pytest.CaptureFixture[str], only: str, data: Path) -> tuple[int, dict[str, dict[str, object]]]:
    """Run the cases `only`; return the exit code and each case's row."""
    named = [part for case in only.split() for part in ("--only", case)]
    code = main(["prove", "--json", "--data", str(data), *named])
    return code, {case["id"]: case for case in json.loads(capfd.readouterr().out)["cases"]}


def test_strong_sandbox_holds(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, rows = verdicts(capfd, "A28 A42", tmp_path / "none")
    assert {row["id"] for row in rows.values() if row["verdict"] == "failed"} == set()
    assert len(rows) == 2 + 2
    assert code == 0
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("weakness", "layer", "caught", "still_held"),
    [
        (weakened.NO_FILTER, "seccomp filter", "A24 A25 A28 A29 A30b A33", "A01 A22"),
        (weakened.NO_NETWORK_NAMESPACE, "network namespace", "A34 A53", "A28"),
        (weakened.WRITABLE_MOUNTS, "read-only root in a mount namespace", "A42", "A28"),
        (weakened.NO_CAPABILITY_DROPPED, "capabilities and no_new_privs", "A31", "A37"),
        (weakened.DESCRIPTORS_INHERITED, "closed descriptors and a clean environment", "A26", "A31"),
        (weakened.NOBODY_WATCHES, "memory limit", "A03", "A11"),
        (weakened.LINKS_FOLLOWED, "supervisor", "A39", "A39b A36"),
        (weakened.TREE_NOT_KILLED, "process namespace and its teardown", "A12", "A09"),
    ],
    ids=["filter", "network", "mounts", "capabilities", "descriptors", "watch", "links", "teardown"],
)
@pytest.mark.needs("patience")
def test_dropped_layer_is_caught(
    weakness: Weakness,
    layer: str,
    caught: str,
    still_held: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    weaken(weakness, monkeypatch, tmp_path)
    code, rows = verdicts(capfd, f"{caught} {still_held}", tmp_path / "none")
    failed = {name: row for name, row in rows.items() if row["verdict"] == "failed"}
    assert {*failed} == {*caught.split()}
    assert {row["layer"] for row in failed.values()} == {layer}
    assert all(row["fix"] for row in failed.values())
    assert code == 1


def test_host_without_isolation_proves_nothing(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weaken(weakened.REFUSED, monkeypatch, tmp_path)
    assert main(["prove", "--data", str(tmp_path / "none")]) == 1
    printed = capfd.readouterr()
    assert printed.err == "error: code cannot be run here: walls are sold out; to fix it: come back tomorrow\n"
    assert printed.out == ""
