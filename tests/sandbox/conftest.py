from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from runtape.adapters.sandbox import LocalSandbox


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalSandbox]:
    """One sandbox for a module's tests, which run in the module's event loop."""
    async with LocalSandbox(Path(tmp_path_factory.mktemp("sandbox"))) as opened:
        yield opened


@pytest.fixture
async def own_sandbox(tmp_path: Path) -> AsyncIterator[LocalSandbox]:
    """A sandbox that a test may break."""
    async with LocalSandbox(tmp_path) as opened:
        yield opened
