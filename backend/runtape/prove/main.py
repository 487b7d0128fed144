"""Opens this installation's sandbox in a folder of its own, and runs the battery in it."""

import os
import platform
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from dishka import make_async_container
from pydantic import SecretStr

from runtape.ports.errors import InfrastructureError
from runtape.ports.pod_runtime import PodRuntime
from runtape.prove import package
from runtape.prove.battery import Battery, known_limit
from runtape.prove.case import Case, Check
from runtape.prove.cases import FAMILIES
from runtape.prove.errors import ProveError
from runtape.prove.lures import open_lures
from runtape.prove.runs import Runs
from runtape.prove.traces import Traces
from runtape.prove.verdict import CaseResult, Report
from runtape.runtime.providers.sandbox import LocalSandboxProvider
from runtape.runtime.service import SettingsProvider
from runtape.runtime.settings import Settings

Told = Callable[[CaseResult, int, int], None]
"""Called with each result, its number and how many there are."""


async def prove(settings: Settings, only: Sequence[str], told: Told) -> Report:
    """Run the battery, or the cases that `only` names by id or family, with the sandbox that `settings` describe.

    The data folder is not touched, so a server may be running on it.  Raises: ProveError.
    """
    chosen = choose(only)
    begun_s = time.monotonic()
    results: list[CaseResult] = []

    def tell(result: CaseResult) -> None:
        results.append(result)
        told(result, len(results), len(chosen) + 2)

    with (
        tempfile.TemporaryDirectory(prefix="runtape-prove-") as data,
        tempfile.TemporaryDirectory(prefix="runtape-prove-") as outside,
        open_lures(Path(outside)) as lures,
    ):
        traces = Traces(Path(data))
        index = SecretStr(package.write_index(Path(outside) / "index"))
        packages = settings.packages.model_copy(update={"enabled": True, "index_url": index})
        used = settings.model_copy(update={"data": Path(data), "packages": packages})
        async with _open_runs(used, traces.mark) as runs:
            battery = Battery(runs, lures, traces, settings.limits.limits())
            tell(await battery.judge_the_watch())
            for family, check in chosen:
                tell(await battery.judge(check, family) if isinstance(check, Case) else known_limit(check, family))
        tell(await battery.judge_the_end())
    host = {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "user": "root" if os.geteuid() == 0 else f"user {os.geteuid()}",
        "memory_limit": f"cgroup {traces.group_version}" if traces.group_version else "watchdog",
    }
    return Report(host=host, cases=results, took_s=round(time.monotonic() - begun_s, 1))


def choose(only: Sequence[str]) -> list[tuple[str, Check]]:
    """Return (family, case) of the cases that are meant, in the battery's order; all when `only` is empty.

    Raises: ProveError, naming what is unknown.
    """
    battery = [(family, check) for family, checks in FAMILIES.items() for check in checks]
    unknown = set(only) - {name for family, check in battery for name in (family, check.id)}
    if unknown:
        families = ", ".join(FAMILIES)
        raise ProveError(f'there is no case "{min(unknown)}"; the families are {families}, and A01 is an id')
    return [
        (family, check)
        for family, check in battery
        if (not only or family in only or check.id in only)
        and not (isinstance(check, Case) and check.machines and platform.machine() not in check.machines)
    ]


@asynccontextmanager
async def _open_runs(settings: Settings, mark: str) -> AsyncIterator[Runs]:
    """Open the sandbox.  Raises: ProveError, with the sandbox's own reason and fix, also when it fails meanwhile."""
    container = make_async_container(LocalSandboxProvider(), SettingsProvider(settings))
    try:
        runs = Runs(await container.get(PodRuntime), mark)
        await runs.open()
        try:
            yield runs
        finally:
            await runs.close()
    except InfrastructureError as error:
        raise ProveError(f"code cannot be run here: {error}") from error
    finally:
        await container.close()
