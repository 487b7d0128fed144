"""`runtape doctor`: what this host offers, what is missing, and the fix for each."""

import json
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Protocol

from cyclopts import Parameter

from runtape.cli.exit_codes import FAILURE
from runtape.cli.server import default_data
from runtape.cli.terminal import print_text

ENOUGH_DISK_BYTES = 1 << 30
DEFAULT_PORT = 8400


class Finding(Protocol):
    """What the sandbox's own inspection says about one of the things that it needs."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def finding(self) -> str: ...
    @property
    def fix(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report: `state` is ok, degraded (it works, with less) or missing (no code can be run)."""

    name: str
    state: str
    finding: str
    fix: str | None = None


def doctor(
    *,
    data: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=(), show_default=False)] = False,
) -> int:
    """Tell what this host offers, what is missing and the fix; exit with 0 when code can be run.

    Args:
        data: The folder of the server on this machine; also RUNTAPE_DATA.
        as_json: Print one JSON object: {"can_run": bool, "checks": [{name, state, finding, fix}]}.
    """
    folder = (data or default_data()).expanduser().absolute()
    checks = [_interpreter(), *_sandbox(), _packages(folder), _folder(folder), _disk(folder), _port(DEFAULT_PORT)]
    can_run = all(check.state != "missing" for check in checks)
    if as_json:
        print_text(json.dumps({"can_run": can_run, "checks": [asdict(check) for check in checks]}))
    else:
        _print(checks)
        print_text("code can be run here" if can_run else "code cannot be run here")
    return 0 if can_run else FAILURE


def _sandbox() -> list[Check]:
    from runtape.adapters.sandbox import inspect_host

    found: Sequence[Finding] = inspect_host()
    return [Check(each.name, str(each.state), each.finding, each.fix or None) for each in found]


def _packages(folder: Path) -> Check:
    from runtape.adapters.sandbox import uv_binary
    from runtape.runtime.settings import InvalidSettings, Settings

    try:
        settings = Settings.read(data=folder).packages
    except InvalidSettings as error:
        return Check("packages", "degraded", str(error), "correct the setting")
    if not settings.enabled:
        return Check("packages", "degraded", "switched off by the setting packages.enabled", None)
    uv = uv_binary()
    if uv is None:
        return Check("packages", "degraded", "uv is not installed beside runtape", "remove .venv and start again")
    return Check("packages", "ok", f"runs may ask for packages of the index, which {uv} installs")


def _interpreter() -> Check:
    return Check("interpreter", "ok", f"{platform.python_version()} at {sys.executable}")


def _folder(folder: Path) -> Check:
    """Try a file in the data folder, or in the nearest folder above it that exists."""
    place = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return Check("data folder", "missing", f"{folder}: {error.strerror}", "choose another with --data")
    return Check("data folder", "ok", f"{folder}" + ("" if place == folder else " (made on first use)"))


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(_existing(folder)).free
    finding = f"{free / (1 << 30):.1f} GiB free"
    if free < ENOUGH_DISK_BYTES:
        return Check("disk", "degraded", finding, f"free some space on the disk of {folder}")
    return Check("disk", "ok", finding)


def _port(port: int) -> Check:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return Check("port", "degraded", f"{port}: {error.strerror}", "choose another with `runtape up --port`")
    return Check("port", "ok", f"{port} is free")


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def _print(checks: Sequence[Check]) -> None:
    """Print a line for each check, and its fix below it; state in colour on a terminal."""
    colours = {"ok": "32", "degraded": "33", "missing": "31"}
    coloured = os.isatty(1) and not os.environ.get("NO_COLOR")
    width = max(len(check.name) for check in checks)
    for check in checks:
        state = f"{check.state:<8}"
        if coloured:
            state = f"\x1b[{colours.get(check.state, '0')}m{state}\x1b[0m"
        print_text(f"{state}  {check.name:<{width}}  {check.finding}")
        if check.fix:
            print_text(f"{'':10}{'':{width}}  fix: {check.fix}")
