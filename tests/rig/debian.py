"""Programs from Debian's packages, unpacked into a folder: nothing is installed, and no service is started."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.rig.store import Unobtainable

LIBRARIES = "usr/lib/x86_64-linux-gnu"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


def unpack(packages: Sequence[str], into: Path, suite: str | None = None, *, whole: bool = False) -> None:
    """Unpack `packages`, of another `suite` than the host's if it is given; apt checks them against signed lists.

    Where they are to be `whole`, all that they depend on in the suite comes with them.
    Raises: Unobtainable.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise Unobtainable(f"{', '.join(packages)} can be had by apt-get alone, which this machine lacks")
    work = into / ".apt"
    download = work / "packages"
    download.mkdir(parents=True)
    options = ["-o", "APT::Sandbox::User=root"]
    if suite is not None:
        options += _of_suite(suite, work)
        _apt([*options, "update"], work)
    if whole:
        assert suite is not None, "what the host has installed already would not come"
        settings = ["-o", f"Dir::Cache::archives={download}", "--no-install-recommends", "--download-only", "--yes"]
        (download / "partial").mkdir()
        _apt([*options, *settings, "install", *packages], work)
    else:
        _apt([*options, "download", *packages], download)
    for package in sorted(download.glob("*.deb")):
        subprocess.run(["dpkg", "-x", package, into], check=True)
    shutil.rmtree(work)


def environment(root: Path) -> dict[str, str]:
    """Return the environment in which a program of the folder finds its libraries."""
    return {**os.environ, "LD_LIBRARY_PATH": str(root / LIBRARIES)}


def _of_suite(suite: str, work: Path) -> list[str]:
    """Return the options that make apt see `suite` alone, from where the host has its own packages."""
    targets = _apt(["indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"], work)
    mirrors = [uri for origin, _, uri in (line.partition(" ") for line in targets.splitlines()) if origin == "Debian"]
    if not mirrors:
        raise Unobtainable("this machine's apt knows no mirror of Debian; try apt-get update")
    sources, status = work / "sources.list", work / "status"
    sources.write_text(f"deb [signed-by={KEYS}] {mirrors[0]} {suite} main\n")
    status.touch()
    for folder in ("lists/partial", "cache/archives/partial"):
        (work / folder).mkdir(parents=True)
    settings = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": work / "lists",
        "Dir::State::status": status,
        "Dir::Cache": work / "cache",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _apt(arguments: Sequence[str], folder: Path) -> str:
    done = subprocess.run(["apt-get", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unobtainable(f"apt-get {arguments[-1]}: {done.stderr.strip()[-500:]}; try apt-get update")
    return done.stdout
