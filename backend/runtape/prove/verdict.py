"""What came of a case, and of the whole battery."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from runtape.prove.target import Target


class Verdict(StrEnum):
    """How a case ended; only `FAILED` asks for a change."""

    HELD = "held"
    KERNEL = "held only as far as the kernel"
    """Nothing got through, but what keeps it off is a check inside the kernel that all programs share."""
    CLUSTER = "held only as far as the cluster"
    """Nothing got through, but what keeps it off is a part of the cluster that programs can reach."""
    FAILED = "failed"
    NOT_HERE = "does not apply"
    """The target has nothing that it could attack, or promises nothing of the kind."""


class Part(StrEnum):
    """What a verdict is made of."""

    CONTAINED = "contained"
    ATTRIBUTED = "attributed"
    CLEANED_UP = "cleaned_up"
    NEIGHBOURS = "neighbours_unharmed"
    CONTROL = "control"
    """The probe has shown that it sees the leak."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something that did not hold."""

    part: Part
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """One case with its verdict; `flaws` is empty unless it has failed."""

    id: str
    title: str
    family: str
    tries: str
    holds: str
    layer: str
    verdict: Verdict
    flaws: Sequence[Flaw]
    because: str
    """Why it is held only so far, or does not apply; what to change, when it has failed."""
    outcome: str
    """The kind of the program's outcome; empty when it had none."""
    took_s: float

    def as_json(self) -> dict[str, Any]:
        """Return the case as the report has it, with what did not hold under each part's name."""
        return {
            "id": self.id,
            "title": self.title,
            "family": self.family,
            "tries": self.tries,
            "holds": self.holds,
            "layer": self.layer,
            "verdict": self.verdict.value,
            "flaws": {part.value: [flaw.what for flaw in self.flaws if flaw.part is part] for part in Part},
            "because": "" if self.verdict is Verdict.FAILED else self.because,
            "fix": self.because if self.verdict is Verdict.FAILED else "",
            "outcome": self.outcome,
            "took_s": self.took_s,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The battery's results, in the order in which it ran."""

    target: Target
    host: dict[str, str]
    cases: Sequence[CaseResult]
    took_s: float

    @property
    def counts(self) -> dict[Verdict, int]:
        """How many cases ended with each verdict."""
        counted = Counter(case.verdict for case in self.cases)
        return {verdict: counted[verdict] for verdict in Verdict}

    @property
    def held(self) -> bool:
        """Whether no case has failed."""
        return not self.counts[Verdict.FAILED]

    def as_json(self) -> dict[str, Any]:
        """Return the report as one JSON object."""
        return {
            "held": self.held,
            "target": self.target.value,
            "host": self.host,
            "counts": {verdict.value: count for verdict, count in self.counts.items()},
            "cases": [case.as_json() for case in self.cases],
            "took_s": self.took_s,
        }
