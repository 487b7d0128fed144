"""What every `TapeStore` and `BlobStore` does."""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from runtape.domain.artifact import Artifacts
from runtape.domain.execution import SourceRef
from runtape.domain.ids import ExecutionId
from runtape.domain.tape import RECORD_BYTES, Record, Stream
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import HEAD_BYTES, TapeSealed, TapeSummary
from tests.builders import EXECUTION, an_artifact, an_execution, ended, records, requested, started
from tests.contract.suites.stores import ARCHIVAL, Stores, StoresBasic, over, stored

KEY = PodKey(EXECUTION, 1)
ODD = [b"\0", b"\xff\xfe", "ä".encode()[:1], "ä".encode()[1:], b"id: 1\n\ndata: x\n\n", b"\r\n", b"a" * RECORD_BYTES]
"""Bytes that something on the way might take for its own."""


def both(*texts: bytes) -> list[Record]:
    """Return records that change between the streams."""
    return [replace(record, stream=list(Stream)[record.seq % 2]) for record in records(*texts)]


def joined(tape: Sequence[Record], stream: Stream) -> bytes:
    return b"".join(record.data for record in tape if record.stream is stream)


class TapeStoreContract(StoresBasic):
    async def test_records_are_read_as_they_were_appended_also_by_the_next_process(self) -> None:
        tape = both(*ODD)
        tape[-1] = replace(tape[-1], data=b"", truncated=True)
        async with self.open() as stores:
            stores.tape.open_tape(KEY)
            await stores.tape.append(KEY, tape[:3])
            await stores.tape.append(KEY, tape[3:])
            assert list(await stores.tape.read(KEY, 0, 1 << 20)) == tape
        async with self.open() as stores:
            assert list(await stores.tape.read(KEY, 0, 1 << 20)) == tape

    @pytest.mark.parametrize("opened", [True, False])
    async def test_reading_goes_on_after_a_record(self, stores: Stores, opened: bool) -> None:
        if opened:
            stores.tape.open_tape(KEY)
        tape = records("a", "b", "c")
        await stores.tape.append(KEY, tape)
        for after in range(5):
            assert list(await stores.tape.read(KEY, after, 1 << 20)) == tape[after:]

    async def test_a_page_has_at_least_one_record_and_ends_at_its_limit(self, stores: Stores) -> None:
        tape = records(b"x" * 100, b"y" * 100, b"z" * 100)
        await stores.tape.append(KEY, tape)
        assert list(await stores.tape.read(KEY, 0, 1)) == tape[:1]
        assert list(await stores.tape.read(KEY, 0, 150)) == tape[:2]

    async def test_appending_again_changes_nothing(self, stores: Stores) -> None:
        stores.tape.open_tape(KEY)
        tape = records("a", "b", "c")
        await stores.tape.append(KEY, tape[:2])
        await stores.tape.append(KEY, [replace(record, data=b"other") for record in tape[:2]] + tape[2:])
        assert list(await stores.tape.read(KEY, 0, 1 << 20)) == tape
        assert (await stores.tape.summary(KEY)).stdout_bytes == 3

    async def test_attempts_and_executions_have_tapes_of_their_own(self, stores: Stores) -> None:
        other = PodKey(ExecutionId("other"), 1)
        for key, text in ((KEY, "one"), (PodKey(EXECUTION, 2), "two"), (other, "three")):
            await stores.tape.append(key, records(text))
        assert [record.data for record in await stores.tape.read(PodKey(EXECUTION, 2), 0, 100)] == [b"two"]
        assert [record.data for record in await stores.tape.read(other, 0, 100)] == [b"three"]

    async def test_a_summary_tells_exactly_what_is_there_open_closed_and_afterwards(self) -> None:
        tape = both(*ODD, b"b" * RECORD_BYTES, b"c" * 9)
        expected = TapeSummary(
            last_seq=len(tape),
            stdout_bytes=len(joined(tape, Stream.STDOUT)),
            stderr_bytes=len(joined(tape, Stream.STDERR)),
            stdout_sha256=hashlib.sha256(joined(tape, Stream.STDOUT)).hexdigest(),
            stderr_sha256=hashlib.sha256(joined(tape, Stream.STDERR)).hexdigest(),
            stdout_head=joined(tape, Stream.STDOUT)[:HEAD_BYTES],
            stderr_head=joined(tape, Stream.STDERR)[:HEAD_BYTES],
            truncated=False,
        )
        async with self.open() as stores:
            stores.tape.open_tape(KEY)
            for record in tape:
                await stores.tape.append(KEY, [record])
            assert await stores.tape.summary(KEY) == expected
            await stores.tape.close_tape(KEY)
            assert await stores.tape.summary(KEY) == expected
        async with self.open() as stores:
            assert await stores.tape.summary(KEY) == expected

    async def test_an_empty_tape_has_a_summary(self, stores: Stores) -> None:
        summary = await stores.tape.summary(KEY)
        assert (summary.last_seq, summary.stdout_bytes, summary.truncated) == (0, 0, False)
        assert summary.stdout_sha256 == summary.stderr_sha256 == hashlib.sha256().hexdigest()

    async def test_truncation_is_told(self, stores: Stores) -> None:
        await stores.tape.append(KEY, [*records("a"), Record(2, Stream.STDERR, 5, b"", truncated=True)])
        assert (await stores.tape.summary(KEY)).truncated

    async def test_any_part_of_a_stream_can_be_read(self, stores: Stores) -> None:
        tape = both(b"01234", b"a", b"56", b"b", b"789")
        await stores.tape.append(KEY, tape)
        whole = joined(tape, Stream.STDERR)
        assert whole == b"0123456789"
        for start in range(11):
            for end in range(start, 13):
                parts = [part async for part in stores.tape.read_stream(KEY, Stream.STDERR, start, end)]
                assert b"".join(parts) == whole[start:end], (start, end)

    async def test_a_stream_of_many_pages_is_read_in_order(self, stores: Stores) -> None:
        tape = records(*(bytes([number]) * RECORD_BYTES for number in range(40)))
        await stores.tape.append(KEY, tape)
        digest, size = hashlib.sha256(), 0
        async for part in stores.tape.read_stream(KEY, Stream.STDOUT, 5, 1 << 40):
            digest.update(part)
            size += len(part)
        whole = joined(tape, Stream.STDOUT)[5:]
        assert (size, digest.digest()) == (len(whole), hashlib.sha256(whole).digest())

    async def test_whoever_waits_for_the_end_is_told_once_all_is_stored(self, stores: Stores) -> None:
        stores.tape.open_tape(KEY)
        waiter = asyncio.ensure_future(stores.tape.reached(KEY, 3))
        await stores.tape.append(KEY, records("a", "b"))
        assert not waiter.done()
        await stores.tape.append(KEY, records("c", first_seq=3))
        assert await asyncio.wait_for(waiter, 5)
        assert [record.seq for record in await stores.tape.read(KEY, 2, 100)] == [3]

    async def test_whoever_waits_is_told_that_nobody_writes_any_more(self, stores: Stores) -> None:
        stores.tape.open_tape(KEY)
        await stores.tape.append(KEY, records("a"))
        waiters = [asyncio.ensure_future(stores.tape.reached(KEY, seq)) for seq in (2, 3)]
        await asyncio.sleep(0)
        await stores.tape.close_tape(KEY)
        assert await asyncio.wait_for(asyncio.gather(*waiters), 5) == [False, False]

    @pytest.mark.parametrize(("seq", "expected"), [(0, True), (2, True), (3, False)])
    async def test_a_closed_tape_answers_at_once(self, stores: Stores, seq: int, expected: bool) -> None:
        stores.tape.open_tape(KEY)
        await stores.tape.append(KEY, records("a", "b"))
        await stores.tape.close_tape(KEY)
        assert await asyncio.wait_for(stores.tape.reached(KEY, seq), 5) is expected

    async def test_a_hole_is_not_reached(self, stores: Stores) -> None:
        await stores.tape.append(KEY, [*records("a"), *records("c", first_seq=3)])
        assert not await stores.tape.reached(KEY, 3)
        assert await stores.tape.reached(KEY, 1)

    async def test_a_waiter_that_gives_up_disturbs_nobody(self, stores: Stores) -> None:
        stores.tape.open_tape(KEY)
        impatient, patient = (asyncio.ensure_future(stores.tape.reached(KEY, 1)) for _ in range(2))
        await asyncio.sleep(0)
        impatient.cancel()
        await stores.tape.append(KEY, records("a"))
        assert await asyncio.wait_for(patient, 5)

    @pytest.mark.parametrize("opened", [True, False])
    async def test_a_sealed_tape_tells_what_it_holds_from_then_on(self, stores: Stores, opened: bool) -> None:
        if opened:
            stores.tape.open_tape(KEY)
        await stores.tape.append(KEY, records("a", "b"))
        waiting = asyncio.ensure_future(stores.tape.reached(KEY, 3))
        await asyncio.sleep(0)
        summary = await stores.tape.seal(KEY)
        assert (summary.last_seq, summary.stdout_bytes) == (2, 2)
        assert await stores.tape.seal(KEY) == summary
        assert await waiting is False
        assert await stores.tape.reached(KEY, 3) is False
        assert await stores.tape.reached(KEY, 2) is True

    async def test_nobody_writes_on_a_sealed_tape_that_goes_on_with_it(self, stores: Stores) -> None:
        stores.tape.open_tape(KEY)
        before = asyncio.ensure_future(stores.tape.append(KEY, records("a")))
        await asyncio.sleep(0)
        summary = await stores.tape.seal(KEY)
        await before
        assert summary.last_seq == len(await stores.tape.read(KEY, 0, 1 << 20)) == 1, "what was on its way counts"
        with pytest.raises(TapeSealed):
            await stores.tape.append(KEY, records("b", first_seq=2))
        await stores.tape.close_tape(KEY)
        assert len(await stores.tape.read(KEY, 0, 1 << 20)) == 1
        assert await stores.tape.summary(KEY) == summary

    async def test_closing_twice_or_what_was_never_opened_is_nothing(self, stores: Stores) -> None:
        await stores.tape.close_tape(KEY)
        stores.tape.open_tape(KEY)
        stores.tape.open_tape(KEY)
        await stores.tape.close_tape(KEY)
        await stores.tape.close_tape(KEY)

    async def test_the_tape_goes_with_its_execution(self, stores: Stores) -> None:
        await stored(stores, over(requested()))
        await stores.tape.append(KEY, records("a"))
        await stores.executions.delete(EXECUTION, ARCHIVAL)
        assert list(await stores.tape.read(KEY, 0, 100)) == []


class BlobStoreContract(StoresBasic):
    @pytest.mark.parametrize("data", [b"", b"\0\xff", b"x" * 3_000_000])
    async def test_bytes_are_found_under_their_digest(self, data: bytes) -> None:
        async with self.open() as stores:
            sha256 = await stores.blobs.put(data)
            assert sha256 == hashlib.sha256(data).hexdigest() == await stores.blobs.put(data)
            await stored(stores, requested())
        async with self.open() as stores:
            assert await stores.blobs.get(sha256) == data

    async def test_what_is_not_there_is_none(self, stores: Stores) -> None:
        assert await stores.blobs.get("0" * 64) is None

    async def test_a_sweep_takes_what_is_old_and_referred_to_by_nobody(self, stores: Stores) -> None:
        kept, old = [await stores.blobs.put(data) for data in (b"kept", b"old")]
        await stored(stores, requested(an_execution(source=SourceRef(blob_sha256=kept))))
        stores.clock.advance(60)
        young = await stores.blobs.put(b"young")
        assert await stores.blobs.sweep(stores.clock.now() - timedelta(seconds=30)) == 1
        assert [await stores.blobs.get(sha256) for sha256 in (kept, old, young)] == [b"kept", None, b"young"]

    async def test_a_sweep_leaves_the_artifacts_of_every_execution_that_is_there(self, stores: Stores) -> None:
        own, shared, none = [await stores.blobs.put(data) for data in (b"own", b"shared", b"none")]
        left = [Artifacts(kept=tuple(an_artifact(path, sha256) for path, sha256 in (("a", own), ("b", shared))))]
        left.append(Artifacts(kept=(an_artifact("a", shared), an_artifact("c", shared))))
        held = [
            over(ended(started(requested(an_execution(name))), artifacts=artifacts))
            for name, artifacts in zip(("one", "two"), left, strict=True)
        ]
        await stored(stores, *held)
        assert [await stores.executions.get(each.id) for each in held] == held
        stores.clock.advance(60)
        found: list[list[bytes | None]] = []
        for deleted in (None, held[0], held[1]):
            if deleted is not None:
                await stores.executions.delete(deleted.id, ARCHIVAL)
            await stores.blobs.sweep(stores.clock.now() - timedelta(seconds=30))
            found.append([await stores.blobs.get(sha256) for sha256 in (own, shared, none)])
        assert found == [[b"own", b"shared", None], [None, b"shared", None], [None, None, None]]

    async def test_storing_again_makes_it_young_again(self, stores: Stores) -> None:
        sha256 = await stores.blobs.put(b"again")
        stores.clock.advance(60)
        await stores.blobs.put(b"again")
        assert await stores.blobs.sweep(stores.clock.now() - timedelta(seconds=30)) == 0
        assert await stores.blobs.get(sha256) == b"again"

    async def test_it_is_ready(self, stores: Stores) -> None:
        await stores.blobs.ready()
