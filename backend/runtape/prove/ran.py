"""A program that was run, as it is seen from outside."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runtape.domain.limits import Limits
from runtape.domain.outcome import Outcome, Usage
from runtape.ports.pod_runtime import PodKey

MARK = b"prove: "
"""Begins the lines by which `inside.py` reports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a program printed, how it ended, and what it reported of itself."""

    stdout: bytes
    stderr: bytes
    outcome: Outcome | None
    """None when it was overdue, and for a control outside of boxes."""
    usage: Usage
    limits: Limits
    wall_s: float
    overdue: bool = False
    """Whether it had not ended when it was due, and was killed."""
    ended_s: float = 0.0
    """When its end was told, on the boot clock."""
    artifacts: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    """The files that it left and that were kept, by their paths."""
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])
    """How many were not kept, by the reason."""
    namespace: int = 0
    """Number of its pid namespace, as it saw it itself; 0 when it could not tell."""
    key: PodKey | None = None
    """None for a control outside of boxes."""
    manifest: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the cluster has written down of its pod; empty where there is none."""

    @property
    def reports(self) -> list[dict[str, object]]:
        """The reports among its output, in order."""
        found: list[dict[str, object]] = []
        for line in self.stdout.split(b"\n"):
            _, mark, text = line.partition(MARK)
            if mark:
                try:
                    found.append(json.loads(text))
                except ValueError:  # cut off by a limit
                    continue
        return found

    @property
    def leaks(self) -> list[str]:
        """What it reports to have got."""
        return [str(report["leak"]) for report in self.reports if "leak" in report]

    @property
    def reached(self) -> list[str]:
        """What it reports that the kernel itself answers to."""
        return [str(report["reached"]) for report in self.reports if "reached" in report]

    @property
    def guarded(self) -> list[str]:
        """What it reports to have reached in the cluster, and to have been refused by."""
        return [str(report["guarded"]) for report in self.reports if "guarded" in report]

    @property
    def tried(self) -> int:
        """How many attempts it reports to have made by its end; 0 when it did not come to its end."""
        return sum(int(str(report["done"])) for report in self.reports if "done" in report)


def namespace_of(line: bytes) -> int:
    """Return the pid namespace that the first report of a program names; 0 when it names none."""
    try:
        return int(json.loads(line.partition(MARK)[2])["namespace"])
    except (ValueError, KeyError, TypeError):
        return 0
