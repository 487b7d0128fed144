"""What the host offers is found out without a box being asked for."""

from pathlib import Path

from runtape.adapters.sandbox import State, inspect_host
from runtape.adapters.sandbox.runtimes import detect


def test_scripts_in_the_path_are_no_runtimes(tmp_path: Path) -> None:
    for name in ("python3.99", "node"):
        (tmp_path / name).write_text("#!/bin/sh\necho v99\n")
        (tmp_path / name).chmod(0o755)
    found, _ = detect([str(tmp_path)])
    assert not any(each.runtime.version.endswith("99") for each in found)


def test_host_is_described() -> None:
    checks = inspect_host()
    assert {check.name for check in checks} >= {"host", "isolation", "memory limit", "python", "bash", "node"}
    assert all(check.finding for check in checks)
    assert all(check.fix for check in checks if check.state is not State.OK)
