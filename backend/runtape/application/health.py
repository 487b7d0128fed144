"""Whether a run could be accepted and carried out now, and by which process."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping

Probe = Callable[[], Awaitable[object]]
PROBE_TIMEOUT_S = 2.0


class Health:
    """Asks the parts that a run needs."""

    def __init__(self, probes: Mapping[str, Probe], started_s: float, instance: str) -> None:
        self._probes = dict(probes)
        self.instance = instance
        """The secret of this process, which only those may read who may have the owner's key."""
        self.started_s = started_s
        """When the process began, on the monotonic clock."""
        self.accepting = False
        """Whether start-up is complete and shutdown has not begun."""
        self.outlasted: frozenset[str] = frozenset()
        """The parts without which runs are accepted all the same, to wait for them."""

    def outlast(self, part: str, probe: Probe | None = None) -> None:
        """Tell of a part, with `probe` of one more, that runs are accepted without it."""
        if probe is not None:
            self._probes[part] = probe
        self.outlasted |= {part}

    def prove(self, challenge: str) -> str:
        """Return HMAC-SHA256 of `challenge` under the secret of this process, in hex.

        It shows to whoever knows the secret, and chose the challenge, that this process answers and no other.
        """
        return hmac.digest(self.instance.encode(), challenge.encode(), "sha256").hex()

    async def parts(self) -> dict[str, str]:
        """Return ``ok`` or what is wrong, for each part; all are asked at once, for 2 s at most."""
        answers = await asyncio.gather(*(self._ask(probe) for probe in self._probes.values()))
        parts = dict(zip(self._probes, answers, strict=True))
        parts["service"] = "ok" if self.accepting else "starting or shutting down"
        return parts

    async def _ask(self, probe: Probe) -> str:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await probe()
        except TimeoutError:
            return f"no answer within {PROBE_TIMEOUT_S:g} s"
        except Exception as error:  # whatever a part fails with, this is where it is told
            return str(error) or type(error).__name__
        return "ok"
