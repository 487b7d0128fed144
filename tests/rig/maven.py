"""Java programs from Maven's repository, and the Java to run them with."""

import hashlib
import shutil
import subprocess
from pathlib import Path

from tests.rig.store import Unobtainable

HERE = Path(__file__).parent


def copy(arguments: list[str], into: Path) -> None:
    """Let Maven copy what `arguments` name into the folder.  Raises: Unobtainable."""
    if shutil.which("mvn") is None:
        raise Unobtainable("needs Maven; install maven (on Debian: apt install maven)")
    done = subprocess.run(
        ["mvn", "-q", "-B", *arguments, f"-DoutputDirectory={into}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Unobtainable(f"mvn {' '.join(arguments)}: {done.stdout.strip()[-500:]}")


def check(folder: Path, name: str) -> None:
    """Compare every file of the folder with the committed list ``NAME.sha256``.  Raises: Unobtainable."""
    listed = (HERE / f"{name}.sha256").read_text()
    found = checksums(folder)
    if found != listed:
        different = set(listed.splitlines()) ^ set(found.splitlines())
        raise Unobtainable(f"{name} is not what is listed: {', '.join(sorted(line[66:] for line in different))}")


def checksums(folder: Path) -> str:
    """Return a line for each file of the folder, as sha256sum(1) writes them, by name."""
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.iterdir())]
    return "".join(lines)


def java(least: int) -> str:
    """Return a Java of at least that version.  Raises: Unobtainable."""
    found = shutil.which("java")
    if found is None:
        raise Unobtainable(f"needs Java {least} or newer; on Debian: apt install default-jre-headless")
    told = subprocess.run([found, "-version"], capture_output=True, text=True, check=True).stderr
    version = int(told.split('"')[1].split(".")[0])
    if version < least:
        raise Unobtainable(f"needs Java {least} or newer; {found} is {version}")
    return found
