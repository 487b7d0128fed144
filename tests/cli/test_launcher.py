"""The launcher, in a copy of the project; `uv` is a stand-in, so that no package index is needed."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
# Makes a "virtual environment" whose python tells how it was called, and keeps a record of what it was asked for.
UV = r"""#!/bin/sh
printf '%s\n' "$*" >>"$UV_CALLS"
case $1 in
    venv)
        for last in "$@"; do :; done
        mkdir -p "$last/bin" "$last/lib/python3.11/site-packages"
        printf '#!/bin/sh\necho "$PWD:" "$@"\n' >"$last/bin/python"
        chmod +x "$last/bin/python"
        ;;
    pip) [ -z "${UV_FAILS:-}" ] || { echo "no such package" >&2; exit 3; } ;;
esac
"""
CALLED = "/: -P -m runtape.cli --version\n"


class Copy:
    """A copy of what the launcher needs, with a PATH of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root.parent / "bin"
        self.calls_file = root.parent / "calls"
        root.mkdir()
        self.bin.mkdir()
        for name in ("runtape", "pyproject.toml"):
            shutil.copy2(PROJECT / name, root / name)
        for lock in PROJECT.glob("requirements*.lock"):
            shutil.copy2(lock, root / lock.name)
        shutil.copytree(PROJECT / "scripts", root / "scripts")
        self.program("uv", UV)
        for name in ("sh", "cmp", "readlink", "dirname", "mkdir", "chmod"):
            self.program(name, f'#!/bin/sh\nexec {shutil.which(name)} "$@"\n')
        self.program("python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n')

    def program(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def env(self, **more: str) -> dict[str, str]:
        return {"PATH": str(self.bin), "UV_CALLS": str(self.calls_file), "HOME": str(self.root.parent), **more}

    def start(
        self, *arguments: str, launcher: str | None = None, cwd: str = "/", **env: str
    ) -> "subprocess.CompletedProcess[str]":
        command = [str(launcher or self.root / "runtape"), *arguments]
        return subprocess.run(
            command, env=self.env(**env), cwd=cwd, capture_output=True, text=True, timeout=30, check=False
        )

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path / "runtape with spaces")


def test_first_use_makes_the_environment_in_one_line_and_the_second_is_silent(copy: Copy) -> None:
    first = copy.start("--version")
    assert (first.returncode, first.stdout) == (0, CALLED)
    assert first.stderr.startswith("runtape: first use: making .venv with uv ...")
    assert first.stderr.count("\n") == 1
    made, locked = copy.calls
    assert made.startswith("venv")
    assert "--require-hashes" in locked
    assert locked.endswith("requirements.lock")
    link = copy.root / ".venv" / "lib" / "python3.11" / "site-packages" / "runtape.pth"
    assert link.read_text() == f"{copy.root / 'backend'}\n"
    second = copy.start("--version")
    assert (second.returncode, second.stderr) == (0, "")
    assert len(copy.calls) == 2


def test_works_through_a_link_and_from_any_folder(copy: Copy, tmp_path: Path) -> None:
    copy.start("--version")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "second").symlink_to("../first")
    (tmp_path / "first").symlink_to(copy.root / "runtape")
    for launcher, cwd in [(str(tmp_path / "links" / "second"), "/"), ("./runtape", str(copy.root))]:
        done = copy.start("--version", launcher=launcher, cwd=cwd)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{cwd}: -P -m runtape.cli --version\n"


def test_changed_lock_is_installed_into_the_same_environment(copy: Copy) -> None:
    copy.start("--version")
    with (copy.root / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    done = copy.start("--version")
    assert "bringing .venv up to date" in done.stderr
    assert [call.split()[0] for call in copy.calls[2:]] == ["pip"]
    assert copy.start("--version").stderr == ""


def test_first_install_that_was_broken_off_is_redone(copy: Copy) -> None:
    failed = copy.start("--version", UV_FAILS="1")
    assert failed.returncode == 125
    assert "error: uv ended with 3; is a package index within reach?" in failed.stderr
    assert "no such package" in failed.stderr
    done = copy.start("--version")
    assert (done.returncode, done.stdout) == (0, CALLED)
    assert sum(call.startswith("venv") for call in copy.calls) == 2


def test_environment_that_was_moved_is_made_anew(copy: Copy, tmp_path: Path) -> None:
    copy.start("--version")
    copy.root = copy.root.rename(tmp_path / "elsewhere")
    assert "first use" in copy.start("--version").stderr
    assert sum(call.startswith("venv") for call in copy.calls) == 2


def test_two_first_starts_at_once_make_one_environment(copy: Copy) -> None:
    command = [str(copy.root / "runtape"), "--version"]
    both = [
        subprocess.Popen(command, env=copy.env(), cwd="/", text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=30)[0] for process in both] == [CALLED, CALLED]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(call.startswith("venv") for call in copy.calls) == 1


def test_tests_get_their_packages_once_and_their_arguments(copy: Copy) -> None:
    done = copy.start("test", "-q", "-k", "one or two")
    options = r"-n [2-9]\d* --maxprocesses 4 --dist loadfile --no-loadscope-reorder"
    assert re.fullmatch(rf"{re.escape(str(copy.root))}: -P -m pytest {options} -q -k one or two\n", done.stdout)
    assert "with the tests' packages" in done.stderr
    assert copy.calls[-1].endswith("requirements-dev.lock")
    assert copy.start("test").stderr == ""


@pytest.mark.parametrize(
    ("profile", "arguments"),
    [("cluster", ["up"]), ("", ["worker", "k8s_worker"]), ("", ["topics", "init"])],
)
def test_a_clusters_packages_are_installed_when_they_are_asked_for(
    copy: Copy, profile: str, arguments: list[str]
) -> None:
    copy.start("--version")
    assert not any("requirements-cluster" in call for call in copy.calls)
    done = copy.start(*arguments, RUNTAPE_PROFILE=profile)
    assert done.stdout == f"/: -P -m runtape.cli {' '.join(arguments)}\n"
    assert "bringing .venv up to date with the cluster's packages" in done.stderr
    assert copy.calls[-1].endswith("requirements-cluster.lock")
    for later in (copy.start(*arguments, RUNTAPE_PROFILE=profile), copy.start("--version")):
        assert (later.returncode, later.stderr) == (0, "")


def test_first_use_can_be_a_clusters(copy: Copy) -> None:
    done = copy.start("worker", "pod_monitor")
    assert "first use: making .venv with the cluster's packages with uv" in done.stderr
    assert [call.rpartition("/")[2] for call in copy.calls[1:]] == ["requirements.lock", "requirements-cluster.lock"]


def test_the_locks_agree_on_every_version() -> None:
    base, cluster, dev = (
        {line.split()[0] for line in (PROJECT / f"requirements{name}.lock").read_text().splitlines() if "==" in line}
        for name in ("", "-cluster", "-dev")
    )
    assert base < cluster < dev


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ("old 3.9.2", "error: runtape needs Python 3.11 or newer; found python3 (3.9.2); install python3.11"),
        ("", "found python3 (which does not start)"),
    ],
)
def test_python_that_will_not_do_is_named(copy: Copy, says: str, told: str) -> None:
    copy.program("python3", f"#!/bin/sh\necho '{says}'; [ -n '{says}' ]\n")
    done = copy.start("--version")
    assert done.returncode == 125
    assert told in done.stderr


def test_no_python_at_all_is_said(copy: Copy) -> None:
    (copy.bin / "python3").unlink()
    done = copy.start("--version")
    assert done.returncode == 125
    assert "found none" in done.stderr


def test_python_without_venv_needs_uv(copy: Copy) -> None:
    copy.program("python3", f"#!/bin/sh\n[ $1 = -c ] && echo 'bare {sys.executable}'\n")
    assert copy.start("--version").returncode == 0
    shutil.rmtree(copy.root / ".venv")
    (copy.bin / "uv").unlink()
    done = copy.start("--version")
    assert done.returncode == 125
    assert "without the modules venv and ensurepip" in done.stderr
    assert "apt install python3-venv" in done.stderr


def test_named_python_is_used(copy: Copy) -> None:
    (copy.bin / "python3").rename(copy.bin / "snake")
    assert copy.start("--version", RUNTAPE_PYTHON="snake").returncode == 0


def test_later_starts_cost_little(copy: Copy) -> None:
    copy.start("--version")
    (copy.root / ".venv" / "bin" / "python").write_text("#!/bin/sh\n")

    def took_s() -> float:
        started_s = time.perf_counter()
        assert copy.start("run", "x.py").returncode == 0
        return time.perf_counter() - started_s

    assert min(took_s() for _ in range(5)) < 0.3


def test_launcher_needs_nothing_but_a_posix_shell() -> None:
    for shell in ("dash", "bash", "busybox"):
        if path := shutil.which(shell):
            command = [path, *(["sh"] if shell == "busybox" else []), "-n", str(PROJECT / "runtape")]
            assert subprocess.run(command, check=False).returncode == 0
    assert os.access(PROJECT / "runtape", os.X_OK)
