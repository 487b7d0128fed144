import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from runtape.adapters.sandbox import LocalSandbox
from tests.sandbox.runs import way_of

# How boxes come to their program: forked from a warm interpreter, exec'd, and without the C programs at all.
WAYS = {"forked": {}, "execd": {"warm": False}, "in_python": {"native": False}}


@pytest.fixture(scope="module")
def way() -> str:
    """The way of a module's tests; one that has to hold in every way parametrises this."""
    return "forked"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox(way: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalSandbox]:
    """One sandbox for a module's tests, which run in the module's event loop."""
    async with LocalSandbox(Path(tmp_path_factory.mktemp("sandbox")), **WAYS[way]) as opened:
        await is_made(opened, way)
        yield opened


@pytest_asyncio.fixture
async def own_sandbox(way: str, tmp_path: Path) -> AsyncIterator[LocalSandbox]:
    """A sandbox that a test may break."""
    async with LocalSandbox(tmp_path, **WAYS[way]) as opened:
        await is_made(opened, way)
        yield opened


async def is_made(sandbox: LocalSandbox, way: str) -> None:
    """Return when programs come to their boxes in the way that is wanted; fail when they do in another."""
    async with asyncio.timeout(20):
        while way != (seen := await way_of(sandbox)):
            assert seen == "execd", "a cold zygote is the only reason to wait"
            await asyncio.sleep(0.02)
