"""The machine's clock and ids."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from runtape.adapters.embedded.clock import SystemClock, Uuid7Ids


def test_now_is_in_utc_and_monotonic_time_does_not_go_back() -> None:
    clock = SystemClock()
    before = clock.monotonic_s()
    assert clock.now().utcoffset() == timedelta(0)
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=5)
    assert clock.monotonic_s() >= before


def test_ids_sort_as_text_in_the_order_they_were_made() -> None:
    ids = Uuid7Ids()
    made = [ids.new_id() for _ in range(20_000)]
    assert made == sorted(set(made))
    assert UUID(made[0]).version == 7


def test_secrets_are_of_256_bits_and_unlike() -> None:
    ids = Uuid7Ids()
    made = {ids.new_secret() for _ in range(1000)}
    assert len(made) == 1000
    assert {len(secret) for secret in made} == {43}
