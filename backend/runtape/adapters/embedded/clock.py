"""The machine's clock, and ids that sort by time."""

import secrets
import time
from datetime import UTC, datetime

import uuid_utils


class SystemClock:
    """`Clock` of this machine: CLOCK_REALTIME and CLOCK_MONOTONIC."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return time.monotonic()


class Uuid7Ids:
    """`Ids` as UUIDv7 (RFC 9562, section 5.7) in their canonical form, which sorts as text.

    Those of one process are strictly ordered: within a millisecond the generator counts on.
    """

    def new_id(self) -> str:
        return str(uuid_utils.uuid7())

    def new_traceparent(self) -> str:
        trace = uuid_utils.uuid7().hex
        return f"00-{trace}-{trace[16:]}-01"

    def new_secret(self) -> str:
        return secrets.token_urlsafe(32)
