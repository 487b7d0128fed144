"""The same battery as an ordinary user, without any privilege and with no way to get one."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = [pytest.mark.needs("patience", "root", "sandbox"), pytest.mark.timeout(120)]

UID = 12345
DROP = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--bounding-set=-all", "--no-new-privs"]
HERE = Path(__file__).parent


def interpreter() -> str | None:
    """Return a Python of our version that an ordinary user may run, and run again: ours can lie in somebody's home."""
    again = "import os, sys; open(os.path.realpath(sys.executable)).close()"
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/{name}", f"/usr/local/bin/{name}"):
        if Path(candidate).exists():
            tried = subprocess.run([*DROP, candidate, "-c", again], capture_output=True)
            if tried.returncode == 0:
                return candidate
    return None


@pytest.mark.parametrize(
    ("battery", "selected"),
    [
        ("test_isolation.py", "not execd"),
        ("test_artifacts.py", "forked"),
        ("test_outcomes.py", "forked"),
        ("test_death.py", "forked"),
        ("test_packages.py", "forked and (listed or proc or in_use or bytecode)"),
        ("test_languages.py", "memory or broken"),  # what hangs on limits of address space in place of a cgroup
        ("test_parked.py", "limits or death or fit"),
    ],
)
def test_battery_holds_without_privileges(battery: str, selected: str) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv on PATH")
    python = interpreter()
    if python is None:
        pytest.skip("no Python of this version that an ordinary user may run")
    base = Path("/tmp") / f"runtape-unprivileged-{os.getpid()}-{battery}"
    root = HERE.parent.parent
    paths = [root / "backend", root, sysconfig.get_path("purelib")]
    env = {
        "HOME": "/nonexistent",
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
    }
    command = [
        *DROP,
        python,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        f"--basetemp={base}",
        "-k",
        selected,
    ]
    try:
        ran = subprocess.run([*command, str(HERE / battery)], env=env, cwd=root, capture_output=True, text=True)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout
