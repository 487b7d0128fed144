"""How much is tried where more always finds more: a third, unless the tests may take the minutes that CI has."""

import os

PATIENT = "patience" in os.environ.get("RUNTAPE_REQUIRE", "").split(",")


def examples(count: int) -> int:
    """Return how many examples Hypothesis is to draw, `count` with patience."""
    return count if PATIENT else -(-count // 3)
