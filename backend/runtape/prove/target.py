"""Where the battery runs, and what is looked at there from outside."""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol

from runtape.ports.pod_runtime import PodKey
from runtape.prove.ran import Ran


class Target(StrEnum):
    """What keeps the programs in."""

    SANDBOX = "sandbox"
    """The local sandbox of this installation."""
    KUBERNETES = "kubernetes"
    """Pods of the cluster that the settings name."""


class Traces(Protocol):
    """Looks for what runs leave behind, and knows the place where they run."""

    mark: str
    """The name of the files that programs leave wherever they can."""
    slack_s: float
    """How much later than on a quiet machine programs may be there and their end be told."""

    def before(self) -> Any:
        """Return how things are now, for `left`."""
        ...

    async def sees(self, key: PodKey, namespace: int) -> Sequence[str]:
        """Return what is not seen of a program that runs, so that nothing of the kind would be seen as left."""
        ...

    async def left(self, before: Any, rans: Iterable[Ran]) -> Sequence[str]:
        """Return what is still there of programs that have ended."""
        ...

    async def left_after_closing(self) -> Sequence[str]:
        """Return what is still there of all programs after the place was closed."""
        ...

    async def manifest_of(self, key: PodKey) -> Mapping[str, Any]:
        """Return what is written down of a program's pod and not yet removed; empty where there is no such thing."""
        ...

    async def addresses(self) -> Mapping[str, str]:
        """Return addresses that only the place knows, by the names that programs' arguments have for them."""
        ...

    async def host(self, contained: Mapping[str, bool]) -> dict[str, str]:
        """Return what a reader of the report should know of the place; `contained` tells of each case that has run."""
        ...
