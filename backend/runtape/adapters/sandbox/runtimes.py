"""The languages that can be run on this machine: described in `runtimes.toml`, found by looking for executables.

Only real executables count: version managers put shell scripts in PATH (shims) that cost 100 ms per start and look
outside the sandbox.  So names are resolved, scripts are passed over, and pyenv's own folder is looked through.
"""

import glob
import os
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from runtape.ports.pod_runtime import Runtime

from .keeper import wire

PROGRAM: Final = "/tmp/program"
"""Where a compiler leaves the one file that it makes, and where that is run: no uploaded file can lie there."""

_HERE: Final = Path(__file__).parent
_FIRST_FOLDERS: Final = ("/usr/bin", "/usr/local/bin")
_HIDDEN_IN_BOX: Final = ("/tmp/", "/box/", "/proc/", "/dev/", "/etc/", "/host/")
_READ_AT_START: Final = ("LD_", "MALLOC_", "GLIBC_")
_ASK_TIMEOUT_S: Final = 5.0
_ELF_MAGIC: Final = b"\x7fELF"


@dataclass(frozen=True, slots=True)
class InstalledRuntime:
    """A runtime with what it takes to start it."""

    runtime: Runtime
    binary: str
    prefix: str
    argv: tuple[str, ...]
    """With ``{memory_mb}`` and ``{layer}`` left to fill in; the program's arguments follow, if it `takes_arguments`."""
    takes_arguments: bool
    compile: tuple[str, ...]
    """What makes `PROGRAM` of the script; empty where the script itself is run."""
    compile_mb: int
    env: tuple[tuple[str, str], ...]
    shows: tuple[str, ...]
    """Folders that must be shown in a box beyond the system's own and the prefix."""
    reserve_mb: int
    script: str
    """Where its script lies in a box."""
    zygote: tuple[str, ...]
    """Command of an interpreter that boxes are forked from; empty where there is none."""
    parked: tuple[str, ...]
    """Command of an interpreter that is started in each box ahead of its program; empty where there is none."""
    read_at_start: tuple[str, ...]
    """What the names of variables begin with that take effect only when an interpreter starts."""

    @property
    def warm(self) -> bool:
        """Whether programs can find their interpreter started."""
        return bool(self.zygote or self.parked)

    @property
    def name(self) -> str:
        """The name of its warm interpreter."""
        return f"{self.runtime.lang} {self.runtime.version}"

    @property
    def shown_prefix(self) -> str | None:
        """The prefix, where it must be shown in a box because it lies outside the system's own folders."""
        return None if self.prefix == "/usr" or self.prefix.startswith("/usr/") else self.prefix

    @property
    def shown(self) -> tuple[str, ...]:
        """All folders that must be shown in a box beyond the system's own."""
        return self.shows if self.shown_prefix is None else (self.shown_prefix, *self.shows)


@dataclass(frozen=True, slots=True)
class MissingRuntime:
    """A language of which nothing was found that could be used."""

    lang: str
    finding: str
    fix: str


def starters() -> tuple[tuple[str, bytes], ...]:
    """Return (name, content) of the files that boxes show in `wire.STARTERS`."""
    folder = _HERE / "starters"
    paths = (path for path in sorted(folder.rglob("*")) if path.suffix in (".py", ".js"))
    return tuple((str(path.relative_to(folder)), path.read_bytes()) for path in paths)


def detect(search_path: Sequence[str] | None = None) -> tuple[list[InstalledRuntime], list[MissingRuntime]]:
    """Return what is installed, newest version of a language first, and the languages that are missing.

    Looks in the folders of `search_path` alone; by default in the system's, in PATH and where each language is usual.
    Reads folders and runs ``bash --version`` and the like; blocks for some 200 ms.
    """
    found: list[InstalledRuntime] = []
    missing: list[MissingRuntime] = []
    for description in _descriptions():
        folders = _usual_folders(description) if search_path is None else search_path
        by_version: dict[str, InstalledRuntime] = {}
        unusable = None
        for binary, version in _candidates(description, folders):
            if version in by_version:
                continue
            if (runtime := _installed(description, binary, version)) is not None:
                by_version[version] = runtime
            else:
                unusable = unusable or binary
        if not by_version:
            missing.append(_missing(description, unusable))
        newest_first = sorted(by_version, key=_numbers, reverse=True)
        found.extend(by_version[version] for version in newest_first)
    return found, missing


def in_image(lang: str, version: str, binary: str) -> InstalledRuntime:
    """Return the runtime whose executable is `binary` in a container's image, whatever is on this machine.

    Raises: KeyError, when no such language is described.
    """
    described = {each["lang"]: each for each in _descriptions()}
    found = _described(described[lang], binary, version, lambda _: True)
    return replace(found, runtime=replace(found.runtime, packages=False))  # nobody lays any into an image


def images() -> list[tuple[str, str, str]]:
    """Return (language, version, executable) of every image for pods that the product has a recipe for."""
    return [
        (each["lang"], version, binary)
        for each in _descriptions()
        for version, binary in each.get("images", {}).items()
    ]


def _descriptions() -> list[dict[str, Any]]:
    with open(_HERE / "runtimes.toml", "rb") as file:
        return tomllib.load(file)["runtime"]


def _numbers(version: str) -> list[float]:
    return [float(part) for part in version.split(".")]


def _missing(description: Mapping[str, Any], unusable: str | None) -> MissingRuntime:
    if unusable is not None and "prefix_fix" in description:
        finding = f"{unusable} lacks {description['prefix_has']} beside its bin folder"
        return MissingRuntime(description["lang"], finding, description["prefix_fix"].format(binary=unusable))
    return MissingRuntime(description["lang"], "not installed", f"apt install {description['package']}")


def _usual_folders(description: Mapping[str, Any]) -> list[str]:
    """Return where to look, in order, without repetition: the system first, whose interpreters start fastest."""
    path = (folder for folder in os.environ.get("PATH", "").split(":") if folder)
    patterns = (os.path.expanduser(pattern) for pattern in description.get("folders", ()))
    special = (folder for pattern in patterns for folder in sorted(glob.glob(pattern)))
    return list(dict.fromkeys([*_FIRST_FOLDERS, *path, *special]))


def _candidates(description: Mapping[str, Any], folders: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (real path, version) of every executable that fits the description; a path once."""
    pattern = re.compile(description["binary"])
    seen: set[str] = set()
    for folder in folders:
        try:
            names = sorted(name for name in os.listdir(folder) if pattern.fullmatch(name))
        except OSError:
            continue
        for name in names:
            binary = os.path.realpath(f"{folder}/{name}")
            if binary in seen or binary.startswith(_HIDDEN_IN_BOX) or not _is_executable(binary):
                continue
            seen.add(binary)
            match = pattern.fullmatch(name)
            version = match[1] if match and match.re.groups else _ask_version(binary, description)
            if version is not None:
                yield binary, version


def _is_executable(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == _ELF_MAGIC and os.access(path, os.X_OK)
    except OSError:
        return False


def _ask_version(binary: str, description: Mapping[str, Any]) -> str | None:
    try:
        if "version_file" in description:
            answer = (Path(binary).parent.parent / description["version_file"]).read_text()
        else:
            answer = subprocess.run(
                [binary, *description["version_args"]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_ASK_TIMEOUT_S,
                check=False,
            ).stdout
    except (OSError, UnicodeDecodeError, subprocess.TimeoutExpired):
        return None
    match = re.search(description["version_pattern"], answer)
    return match[1] if match else None


def _installed(description: Mapping[str, Any], binary: str, version: str) -> InstalledRuntime | None:
    prefix = os.path.dirname(os.path.dirname(binary))
    needed = description.get("prefix_has", "").format(version=version)
    if prefix != "/" and needed and not glob.glob(f"{glob.escape(prefix)}/{needed}"):
        return None
    return _described(description, binary, version, os.path.isdir)


def _described(
    description: Mapping[str, Any], binary: str, version: str, is_folder: Callable[[str], bool]
) -> InstalledRuntime:
    prefix = os.path.dirname(os.path.dirname(binary)).rstrip("/") or "/usr"  # /bin/bash without merged /usr: shown
    libraries = (f"{prefix}/{path.format(version=version)}" for path in description.get("libraries", ()))
    values = {
        "binary": binary,
        "prefix": prefix,
        "version": version,
        "starter": f"{wire.STARTERS}/{description.get('starter')}",
        "libraries": ":".join(path for path in libraries if is_folder(path)),
        "script": f"/box/{description['file_name']}",
        "program": PROGRAM,
        "memory_mb": "{memory_mb}",
        "layer": "{layer}",
        "starters": wire.STARTERS,
    }
    shows = (path.format_map(values) for path in description.get("shows", ()))
    zygote = description.get("zygote", ()) if _numbers(version) >= _numbers(description.get("zygote_from", "0")) else ()
    return InstalledRuntime(
        Runtime(
            description["lang"],
            version,
            description["file_name"],
            description["example"].lstrip("\n"),
            packages=_numbers(version) >= _numbers(description.get("packages_from", "inf")),
        ),
        binary,
        prefix,
        argv=tuple(part.format_map(values) for part in description["argv"]),
        takes_arguments=description.get("arguments", True),
        compile=tuple(part.format_map(values) for part in description.get("compile", ())),
        compile_mb=description.get("compile_mb", 0),
        env=tuple((name, value.format_map(values)) for name, value in description.get("env", {}).items()),
        shows=tuple(path for path in shows if is_folder(path)),
        reserve_mb=description["reserve_mb"],
        script=values["script"],
        zygote=tuple(part.format_map(values) for part in zygote),
        parked=tuple(part.format_map(values) for part in description.get("parked", ())),
        read_at_start=(*_READ_AT_START, *description.get("read_at_start", ())),
    )


def identity(binary: str) -> str:
    """Return what changes when an executable is upgraded in place; empty when it is gone, and so makes nothing."""
    try:
        state = os.stat(binary)
    except OSError:
        return ""
    return f"{state.st_size} {state.st_mtime_ns}"
