"""Telling a tracer what was done."""

from typing import Protocol

from runtape.domain.saga import Saga


class StepSpans(Protocol):
    """Spans of the steps of sagas, in the traces of the requests that they come from."""

    @property
    def recording(self) -> bool:
        """Whether anybody listens; when nobody does, nothing is told."""
        ...

    def tell(self, saga: Saga) -> None:
        """Tell every step of a finished saga, with the times that stand in its document."""
        ...


class NoSpans:
    """`StepSpans` that nobody listens to."""

    recording = False

    def tell(self, saga: Saga) -> None:
        """Tell nobody."""
