"""Runs uv: resolves requirements and installs what it finds into a folder.

Theory of operation.  Only wheels are taken (``--only-binary :all:``), and a wheel is unpacked, so nothing of a package
runs here: no ``setup.py``, no build back end, no ``.pth``.  uv is started by `resolver_boot.py` in a session of its own
with an environment that has nothing but the index's settings.  It is killed when it takes too long, writes or holds too
much, or nobody waits for it any more, and by the kernel when the service dies.

What it may write is known exactly by the kernel's account of it (``wchar`` in /proc/PID/io), which is looked at every
`_LOOK_S`; a single file cannot grow beyond the size of a set at all.  Wheels stay in a cache that all resolves share.

Its words go to the tape of whoever asked.  uv masks credentials itself; what it might miss is masked here, and so are
our own paths.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import uv

from runtape.domain.outcome import Outcome, OutcomeKind

_BOOT: Final = Path(__file__).with_name("resolver_boot.py")
_INDEX_VARIABLES: Final = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_NO_INDEX",
)
_NAMED_INDEX: Final = "UV_INDEX_"
_PASSED: Final = (
    *("UV_INDEX_STRATEGY", "UV_EXCLUDE_NEWER", "UV_INSECURE_HOST", "UV_NATIVE_TLS", "UV_SYSTEM_CERTS", "UV_OFFLINE"),
    *("UV_HTTP_TIMEOUT", "UV_HTTP_RETRIES", "UV_REQUEST_TIMEOUT", "SSL_CERT_FILE", "SSL_CERT_DIR", "NETRC"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
)
_AT_ONCE: Final = 4
_BETWEEN_TRIMS: Final = 10
"""Resolves after which the wheels are measured again, which means to look at each file."""
_LOOK_S: Final = 0.05
_WORDS_BYTES: Final = 64 << 10
_MEMORY_BYTES: Final = 2 << 30
_COPIES: Final = 2
"""Copies of a set that uv may write: in its cache, and where no links can be made one more in the layer."""
_OTHER_WRITES_BYTES: Final = 64 << 20
"""Metadata of packages that were looked at and not taken."""
_CREDENTIALS: Final = re.compile(r"(?<=://)[^/\s@]*@")
_UNREACHABLE: Final = re.compile(r"failed to fetch|request failed|error sending request|dns error", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageOptions:
    """How packages are had."""

    index_url: str | None = None
    """With credentials where it needs them; None for what uv's own variables of the service's environment say."""
    max_bytes: int = 1 << 30
    """Installed size of one set."""
    cache_bytes: int = 4 << 30
    """Size of the sets that are kept, and of the wheels, each."""
    reuse_s: float = 86_400.0
    """Age at which a set is resolved anew."""
    resolve_timeout_s: float = 120.0


class Unresolved(Exception):
    """Requirements cannot be had: an outcome, and the resolver's words."""

    def __init__(self, outcome: Outcome, words: bytes = b"") -> None:
        super().__init__(outcome.message)
        self.outcome = outcome
        self.words = words


def uv_binary() -> str | None:
    """Return the path of uv, None when it is not installed beside this package."""
    try:
        return uv.find_uv_bin()
    except FileNotFoundError:
        return None


class Resolver:
    """Installs requirements; keeps wheels in `wheels`, a folder of its own."""

    def __init__(self, options: PackageOptions, wheels: Path) -> None:
        self._options = options
        self._wheels = wheels
        self._index = _index(options.index_url, os.environ)
        self._secrets = _secrets(self._index)
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._beginning = asyncio.Lock()
        self._running = 0
        self._begun = 0

    def identity(self) -> bytes:
        """Return what tells this index from others, without its secrets."""
        return hashlib.sha256(repr(sorted(self._index.items())).encode()).digest()

    async def install(self, python: str, requirements: Sequence[str], target: Path) -> None:
        """Install `requirements` for the interpreter `python` into the empty folder `target`.

        Raises: Unresolved; OSError.  Cancelling ends the resolver, and returns when it is dead.
        """
        async with self._at_once:
            async with self._beginning:
                if self._running == 0 and self._begun % _BETWEEN_TRIMS == 0:
                    await asyncio.to_thread(self._trim)
                self._begun += 1
                self._running += 1
            try:
                await self._run(python, requirements, target)
            finally:
                self._running -= 1

    def _trim(self) -> None:
        """Remove all wheels when they have grown beyond their bound; no resolver may run.  Blocks."""
        if _size_bytes(self._wheels) > self._options.cache_bytes:
            shutil.rmtree(self._wheels, ignore_errors=True)

    async def _run(self, python: str, requirements: Sequence[str], target: Path) -> None:
        binary = uv_binary()
        if binary is None:
            message = "uv is not installed beside the service; install its dependencies anew"
            raise Unresolved(Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason="resolver_missing", message=message))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(_BOOT), str(os.getpid()), str(self._options.max_bytes), binary),
            *("pip", "install", "--quiet", "--color", "never", "--no-progress", "--no-config"),
            *("--only-binary", ":all:"),
            *("--cache-dir", str(self._wheels), "--python", python, "--target", str(target), "--", *requirements),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment(),
            cwd="/",
            start_new_session=True,
        )
        assert process.stderr is not None
        excesses: list[Outcome] = []
        watching = asyncio.create_task(self._watch(process.pid, excesses))
        words = b""
        try:
            async with asyncio.timeout(self._options.resolve_timeout_s):
                words = await _read(process.stderr)
                await process.wait()
        except TimeoutError:
            message = f"the requirements were not there after {self._options.resolve_timeout_s:g} s"
            excesses.append(Outcome(kind=OutcomeKind.WALL_LIMIT, reason="resolve_timeout", message=message))
        finally:
            watching.cancel()
            _kill(process)
            await process.wait()
        words = self.masked(words)
        if excesses:
            raise Unresolved(excesses[0], words)
        if process.returncode == -signal.SIGXFSZ:
            raise Unresolved(self.too_large(), words)
        if process.returncode != 0:
            raise Unresolved(_failed(process.returncode or 0, words), words)

    def too_large(self) -> Outcome:
        """Return the outcome of a set that is larger than sets may be."""
        message = f"the packages have more than {self._options.max_bytes >> 20} MiB (setting packages.max_bytes)"
        return Outcome(kind=OutcomeKind.OUTPUT_LIMIT, reason="packages_too_large", message=message)

    async def _watch(self, pid: int, excesses: list[Outcome]) -> None:
        """Kill the resolver when it writes or holds more than it may, and say so in `excesses`."""
        most_bytes = _COPIES * self._options.max_bytes + _OTHER_WRITES_BYTES
        while not excesses:
            await asyncio.sleep(_LOOK_S)
            try:
                written_bytes, held_bytes = _usage(pid)
            except (OSError, ValueError):
                return  # it is gone
            if written_bytes > most_bytes:
                excesses.append(self.too_large())
            elif held_bytes > _MEMORY_BYTES:
                message = f"the resolver needed more than {_MEMORY_BYTES >> 30} GiB of memory"
                excesses.append(Outcome(kind=OutcomeKind.MEMORY_LIMIT, reason="resolver_memory", message=message))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)

    def _environment(self) -> dict[str, str]:
        passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
        return {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TMPDIR": str(self._wheels.parent), **passed, **self._index}

    def masked(self, words: bytes) -> bytes:
        """Return `words` without credentials of the index and without paths of ours."""
        text = _CREDENTIALS.sub("****@", words.decode(errors="replace"))
        for secret in self._secrets:
            text = text.replace(secret, "****")
        return text.replace(str(self._wheels.parent), "packages").encode()


def _index(index_url: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that tell uv where packages come from: not arguments, which all users of a host can see."""
    if index_url is not None:
        return {"UV_DEFAULT_INDEX": index_url}
    return {
        name: value
        for name, value in environment.items()
        if name in _INDEX_VARIABLES or (name.startswith(_NAMED_INDEX) and name != "UV_INDEX_STRATEGY")
    }


def _secrets(index: Mapping[str, str]) -> list[str]:
    """Return what must not be shown of an index, longest first: passwords, and names that stand for one."""
    found: set[str] = set()
    for name, value in index.items():
        if name.endswith("_PASSWORD"):
            found.add(value)
        for word in value.split():
            _, _, address = word.rpartition("=") if "=" in word.partition("://")[0] else ("", "", word)
            parts = urlsplit(address)
            found.add(parts.password or parts.username or "")
    return sorted({*found, *map(unquote, found)} - {""}, key=len, reverse=True)


async def _read(stream: asyncio.StreamReader) -> bytes:
    """Return what is said until the end of file; of a long speech the beginning."""
    kept = bytearray()
    while piece := await stream.read(1 << 16):
        kept += piece[: _WORDS_BYTES - len(kept)]
    return bytes(kept)


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _usage(pid: int) -> tuple[int, int]:
    """Return the bytes that a process has written and those of memory that it holds.  Raises: OSError, ValueError."""
    with open(f"/proc/{pid}/io") as file:
        written = next(int(line.split()[1]) for line in file if line.startswith("wchar:"))
    with open(f"/proc/{pid}/statm") as file:
        return written, int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _failed(code: int, words: bytes) -> Outcome:
    if code < 0:
        message = f"the resolver was killed by signal {-code}"
        return Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason="resolver_killed", message=message)
    if _UNREACHABLE.search(words.decode(errors="replace")):
        reason, message = "index_unreachable", "the package index did not answer"
    else:
        reason, message = "unresolved", "the requirements cannot be had; stderr says why"
    return Outcome(kind=OutcomeKind.EXITED, exit_code=code, reason=reason, message=message)


def _size_bytes(folder: Path) -> int:
    """Return what the files below `folder` take on disk, each once however many names it has."""
    sizes: dict[int, int] = {}
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                state = os.lstat(os.path.join(path, name))
                sizes[state.st_ino] = state.st_blocks * 512
    return sum(sizes.values())
