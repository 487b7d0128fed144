"""The packages of runs: finds the layer of a set, or has it made.

Theory of operation.  A set is what the requirements, the interpreter and the index are together.  A set that is there
and not too old costs a lookup.  Else it is made, once however many runs wait for it:

    empty folder ──resolver (uv, outside)──▸ installed ──survey──▸ regular ──compiling box──▸ whole ──▸ named by its set

Who waits can leave, by being killed or by the end of its lease; when nobody waits any more the making is cancelled.
A set that is too old is used on when the index cannot be reached for a new one.  What fails leaves nothing behind.
"""

import asyncio
import hashlib
import os
import platform
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from runtape.domain.outcome import Outcome, OutcomeKind

from .bytecode import BadFrame, BytecodeOutput, BytecodeWriter
from .keeper import wire
from .layers import BadLayer, Layer, Layers, Survey, survey
from .resolver import PackageOptions, Resolver, Unresolved
from .runtimes import InstalledRuntime, identity

log = structlog.get_logger(__name__)

Compile = Callable[[InstalledRuntime, str, bytes, BytecodeOutput, Callable[[bytes], None]], Awaitable[None]]
"""Compiles modules of a layer in a box, and hands what is printed to the last argument, in a thread.

The others are the runtime, the layer's folder in a box, the modules' paths each with a NUL behind, and where the output
waits.  Raises: InfrastructureError; what the last argument raises.
"""
_UNREACHABLE_PAUSE_S: Final = 300.0
"""How long an old set is good enough after the index was found unreachable."""


@dataclass(slots=True, eq=False)
class _Making:
    task: "asyncio.Task[Layer]"
    waiters: int = 0


class Packages:
    """The packages in one folder, which nobody else writes to."""

    def __init__(self, folder: Path, options: PackageOptions, compile_in_box: Compile) -> None:
        self._options = options
        self._layers = Layers(folder, options.cache_bytes)
        self._resolver = Resolver(options, folder / "wheels")
        self._compile_in_box = compile_in_box
        self._making: dict[str, _Making] = {}
        self._tasks: set[asyncio.Task[Layer]] = set()

    @property
    def shown(self) -> Path:
        """The folder to show in boxes."""
        return self._layers.shown

    def prepare(self) -> None:
        """Make the folders; blocks."""
        self._layers.prepare()

    def open(self) -> None:
        """Take up what is kept; blocks.  No program may run."""
        self._layers.open()

    async def close(self) -> None:
        """Cancel what is being made, and wait until no resolver lives; to be called when every program is dead."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._layers.close)

    def warm(self, runtime: InstalledRuntime, requirements: Sequence[str]) -> Layer | None:
        """Return the layer of a set, held, when it is there and young enough."""
        layer = self._layers.find(self._digest(runtime, requirements))
        if layer is None or time.time() - layer.resolved_at_s > self._options.reuse_s:
            return None
        return self._layers.hold(layer)

    async def obtain(self, runtime: InstalledRuntime, requirements: Sequence[str]) -> Layer:
        """Return the layer of a set, held, after making it.  Raises: Unresolved; OSError; InfrastructureError."""
        digest = self._digest(runtime, requirements)
        making = self._making.get(digest)
        if making is None:
            task = asyncio.get_running_loop().create_task(self._make(digest, runtime, requirements))
            making = self._making[digest] = _Making(task)
            self._tasks.add(task)
            task.add_done_callback(self._on_made)
        making.waiters += 1
        try:
            return self._layers.hold(await asyncio.shield(making.task))
        finally:
            making.waiters -= 1
            if not making.waiters:
                self._leave(digest, making)

    def release(self, layer: Layer) -> None:
        """Give back a layer."""
        self._layers.release(layer)

    def _on_made(self, task: "asyncio.Task[Layer]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # every waiter has it; there may be none left

    def _leave(self, digest: str, making: _Making) -> None:
        """End what nobody waits for; what it has made is held until then."""
        if self._making.get(digest) is making:
            del self._making[digest]
        if not making.task.done():
            making.task.cancel()
        elif not making.task.cancelled() and making.task.exception() is None:
            self._layers.release(making.task.result())

    def _digest(self, runtime: InstalledRuntime, requirements: Sequence[str]) -> str:
        interpreter = (runtime.binary, identity(runtime.binary), runtime.runtime.version, platform.machine())
        text = repr((interpreter, self._resolver.identity(), sorted(requirements)))
        return hashlib.sha256(text.encode()).hexdigest()

    async def _make(self, digest: str, runtime: InstalledRuntime, requirements: Sequence[str]) -> Layer:
        begun_s = time.monotonic()
        name, folder = self._layers.begin()
        try:
            await self._resolver.install(runtime.binary, requirements, folder)
            found = await asyncio.to_thread(survey, folder, self._options.max_bytes)
            bytecode_bytes = await self._compile(runtime, f"{wire.LAYERS}/{name}", folder, found)
            layer = await self._layers.keep(digest, name, found.size_bytes + bytecode_bytes)
        except BaseException as error:
            await asyncio.shield(asyncio.to_thread(self._layers.discard, name))
            former = self._layers.find(digest)
            if isinstance(error, Unresolved) and error.outcome.reason == "index_unreachable" and former is not None:
                log.warning("packages.index_unreachable", used="an older set")
                self._layers.put_off(former, time.time() - self._options.reuse_s + _UNREACHABLE_PAUSE_S)
                return self._layers.hold(former)
            if isinstance(error, BadLayer):
                raise self._refused(error) from error
            raise
        log.debug("packages.made", took_s=round(time.monotonic() - begun_s, 3), size_bytes=layer.size_bytes)
        return layer

    def _refused(self, error: BadLayer) -> Unresolved:
        if error.too_large:
            return Unresolved(self._resolver.too_large())
        message = f"a package cannot be used here: {error}"
        return Unresolved(Outcome(kind=OutcomeKind.EXITED, exit_code=1, reason="unresolved", message=message))

    async def _compile(self, runtime: InstalledRuntime, shown_as: str, folder: Path, found: Survey) -> int:
        """Add bytecode; return its size.  Without it a set is slower and no less good."""
        writer = BytecodeWriter(folder, found.modules, runtime.runtime.version)
        output = BytecodeOutput(self._options.max_bytes - found.size_bytes)
        modules = b"".join(os.fsencode(module) + b"\0" for module in found.modules)
        try:
            await self._compile_in_box(runtime, shown_as, modules, output, writer.feed)
        except (BadFrame, OSError) as error:
            log.warning("packages.not_compiled", reason=str(error))
        return writer.size_bytes
