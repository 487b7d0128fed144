"""What is known of the pods: listed, then watched, and listed anew whenever the watch may have missed something."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Final

import structlog

from runtape.adapters.kubernetes.api import Gone, PodApi
from runtape.ports.errors import InfrastructureError, Transient

log = structlog.get_logger(__name__)

RELIST_S: Final = 300.0
"""All pods are listed again that often, whatever the watch says."""
_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0


class Pods:
    """The pods that a selector finds, as they were last seen; `on_change` is told of each change, None: it is gone."""

    def __init__(self, api: PodApi, selector: str, on_change: Callable[[str, dict[str, Any] | None], None]) -> None:
        self._api = api
        self._selector = selector
        self._on_change = on_change
        self._known: dict[str, dict[str, Any]] = {}
        self._listed = asyncio.Event()
        self._up_to_date = False
        self._away_s = 0.0
        self._away_since_s: float | None = time.monotonic()

    @property
    def up_to_date(self) -> bool:
        """Whether they were listed, and are being watched since."""
        return self._up_to_date

    @property
    def away_s(self) -> float:
        """For how long, in all and up to now, the API has not answered.

        A watch that is cut and answered again at once adds next to nothing; being refused adds nothing.
        """
        return self._away_s + (0.0 if self._away_since_s is None else time.monotonic() - self._away_since_s)

    async def listed(self) -> None:
        """Return once they were listed."""
        await self._listed.wait()

    def __getitem__(self, name: str) -> dict[str, Any] | None:
        return self._known.get(name)

    async def run(self) -> None:
        """Keep up with the cluster; runs until cancelled."""
        pause_s = _PAUSE_S
        while True:
            began_s, asked_s = time.monotonic(), 0.0
            try:
                await self._watch(await self._list(), began_s + RELIST_S)
            except Gone as error:
                log.info("pods.listed_anew", reason=str(error))
            except InfrastructureError as error:  # also a refusal: rights come back as well, and nobody else watches
                self._up_to_date = False
                self._take_time(away=isinstance(error, Transient))
                asked_s = (isinstance(error, Transient) and error.retry_after_s) or 0.0
                log.warning("pods.not_watched", error=str(error))
            if time.monotonic() - began_s > _LONGEST_PAUSE_S:
                pause_s = _PAUSE_S
            await asyncio.sleep(max(pause_s, asked_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _take_time(self, *, away: bool) -> None:
        if away and self._away_since_s is None:
            self._away_since_s = time.monotonic()
        elif not away:
            self._away_s, self._away_since_s = self.away_s, None

    async def _list(self) -> str:
        listed = await self._api.list(self._selector)
        found = {pod["metadata"]["name"]: pod for pod in listed.pods}
        for name in [*self._known]:
            if name not in found:
                self._forget(name)
        for name, pod in found.items():
            self._learn(name, pod)
        self._listed.set()
        self._up_to_date = True
        self._take_time(away=False)
        return listed.version

    async def _watch(self, version: str, until_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until_s - time.monotonic())):
                while True:
                    began_s = time.monotonic()
                    async for kind, pod in self._api.watch(self._selector, version):
                        version = pod["metadata"]["resourceVersion"]
                        if kind == "DELETED":
                            self._forget(pod["metadata"]["name"])
                        elif kind != "BOOKMARK":
                            self._learn(pod["metadata"]["name"], pod)
                    if time.monotonic() - began_s < _PAUSE_S:
                        await asyncio.sleep(_PAUSE_S)

    def _learn(self, name: str, pod: dict[str, Any]) -> None:
        before = self._known.get(name)
        if before is None or before["metadata"]["resourceVersion"] != pod["metadata"]["resourceVersion"]:
            self._known[name] = pod
            self._on_change(name, pod)

    def _forget(self, name: str) -> None:
        if self._known.pop(name, None) is not None:
            self._on_change(name, None)
