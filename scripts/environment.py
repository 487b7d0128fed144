"""Makes `.venv` what a lock file says: `environment.py requirements[-cluster|-dev].lock`.

The launcher calls this when `.venv` is not there, is incomplete or is out of date; it needs the standard library
alone.  Theory of operation:

* One at a time: an exclusive `flock` on `.venv.lock`, which the kernel gives back whatever happens to its holder.
  Who waited looks again, and mostly finds nothing left to do.
* The stamps in `.venv` (`runtape.root`: the folder it was made for; a copy of each lock file that is installed) are
  written last and taken away first.  Without `runtape.root` a first install was broken off: `.venv` is made anew.
* What the locks list is installed with `--require-hashes`; the project itself is linked by a `.pth` file.
* All of it is compiled to bytecode: where Python may not write it, each start would compile it again.
* uv is used when it is on PATH, else pip.  Their output goes to `.venv/install.log` and is shown when they fail.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
BASE, CLUSTER, DEV = "requirements.lock", "requirements-cluster.lock", "requirements-dev.lock"
PACKAGES_OF = {CLUSTER: "with the cluster's packages ", DEV: "with the tests' packages "}
STAMP = "runtape.root"
LOG_LINES = 15


class Failed(Exception):
    """The environment could not be made; the message says what failed and what may help."""


def main(arguments: Sequence[str]) -> int:
    """Bring `.venv` up to the lock file that is named."""
    if len(arguments) != 1 or arguments[0] not in (BASE, CLUSTER, DEV):
        print(f"usage: environment.py {BASE} | {CLUSTER} | {DEV}", file=sys.stderr)
        return 2
    try:
        with _alone():
            _make(list(dict.fromkeys((BASE, arguments[0]))))
    except Failed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: cannot make {VENV}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nruntape: interrupted; the next start begins again", file=sys.stderr)
        return 130
    return 0


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Hold the lock; a second start says that it waits and then goes on with what the first one made."""
    with (ROOT / ".venv.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("runtape: another start is making .venv; waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(wanted: Sequence[str]) -> None:
    whole = _made_for() == str(ROOT) and PYTHON.exists()
    missing = [name for name in wanted if not (whole and _holds(name))]
    if not missing:
        return
    installer = "uv" if shutil.which("uv") else "pip"
    doing = "bringing .venv up to date" if whole else "first use: making .venv"
    what = PACKAGES_OF.get(missing[-1], "")
    started_s = time.monotonic()
    time_needed = "" if installer == "uv" else ", about half a minute"
    print(f"runtape: {doing} {what}with {installer}{time_needed} ...", end="", file=sys.stderr, flush=True)
    try:
        if not whole:
            _create(installer)
        for name in missing:
            _install(installer, name, with_project=name == BASE)
        _compile_project()
        _build_programs()
    except BaseException:
        print(file=sys.stderr)
        raise
    print(f" done in {time.monotonic() - started_s:.0f} s", file=sys.stderr)


def _made_for() -> str:
    try:
        return (VENV / STAMP).read_text().rstrip("\n")
    except OSError:
        return ""


def _holds(name: str) -> bool:
    try:
        return (VENV / name).read_bytes() == (ROOT / name).read_bytes()
    except OSError:
        return False


def _create(installer: str) -> None:
    if VENV.is_symlink():
        raise Failed(f"{VENV} is a symbolic link; remove it, this folder needs an environment of its own")
    if VENV.exists():
        shutil.rmtree(VENV)
    VENV.mkdir()
    if installer == "uv":
        _call("uv", "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(VENV))
    else:
        _call(sys.executable, "-m", "venv", str(VENV))


def _install(installer: str, name: str, *, with_project: bool) -> None:
    """Install what a lock file lists, and leave its stamp."""
    (VENV / name).unlink(missing_ok=True)
    if installer == "uv":
        pip = ["uv", "pip", "install", "--quiet", "--python", str(PYTHON), "--compile-bytecode"]
    else:
        if not list(VENV.glob("lib/python*/site-packages/pip")):
            _call(str(PYTHON), "-m", "ensurepip")  # made by uv, which needs no pip in it
        pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    _call(*pip, "--require-hashes", "-r", str(ROOT / name))
    if with_project:
        _link_project()
    _write(VENV / name, (ROOT / name).read_bytes())
    _write(VENV / STAMP, f"{ROOT}\n".encode())


def _link_project() -> None:
    """Let the environment's Python import the project from this folder; nothing is built, so nothing unpinned runs."""
    (packages,) = VENV.glob("lib/python*/site-packages")
    _write(packages / "runtape.pth", f"{ROOT / 'backend'}\n".encode())


def _compile_project() -> None:
    """Write the project's bytecode; where that cannot be, its starts are slower and nothing else."""
    with contextlib.suppress(Failed):
        _call(str(PYTHON), "-m", "compileall", "-q", str(ROOT / "backend"))


def _build_programs() -> None:
    """Compile the sandbox's C programs, so that the first run need not; without a compiler it does without them."""
    with contextlib.suppress(Failed):
        _call(str(PYTHON), "-P", "-m", "runtape.adapters.sandbox.native")


def _write(path: Path, data: bytes) -> None:
    """Write a stamp whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(data)
    new.replace(path)


def _call(*command: str) -> None:
    """Run a step with its output in the log.  Raises: Failed, with the output's end."""
    log = VENV / "install.log"
    # A user's own defaults must not lead the packages elsewhere.
    env = {name: value for name, value in os.environ.items() if name not in ("PIP_USER", "PIP_TARGET", "PIP_PREFIX")}
    with log.open("ab") as output:
        start = output.tell()
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        code = subprocess.run(command, stdout=output, stderr=output, env=env, cwd=ROOT, check=False).returncode
    if code:
        lines = log.read_bytes()[start:].decode("utf-8", "replace").splitlines()[-LOG_LINES:]
        said = "\n  ".join(lines)
        raise Failed(f"{command[0]} ended with {code}; is a package index within reach?\n  {said}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
