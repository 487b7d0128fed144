"""The embedded adapters keep the contracts of their ports."""

from runtape.domain.events import EXECUTION_EVENTS
from tests.contract.embedded.basic import EmbeddedStores, plant
from tests.contract.suites import (
    dead_letters,
    events,
    identity,
    log,
    notifications,
    operating,
    replay,
    retention,
    stores,
    tape,
)
from tests.contract.suites.stores import Stores


class TestUnitOfWork(EmbeddedStores, stores.UnitOfWorkContract): ...


class TestAtomicCommit(EmbeddedStores, stores.AtomicCommitContract): ...


class TestIdempotency(EmbeddedStores, stores.IdempotencyContract): ...


class TestLeases(EmbeddedStores, stores.LeaseContract): ...


class TestDue(EmbeddedStores, stores.DueContract): ...


class TestList(EmbeddedStores, stores.ListContract): ...


class TestDelete(EmbeddedStores, stores.DeleteContract): ...


class TestSagaStore(EmbeddedStores, stores.SagaStoreContract): ...


class TestSagaList(EmbeddedStores, operating.SagaListContract): ...


class TestPriorities(EmbeddedStores, operating.PriorityContract): ...


class TestGateStore(EmbeddedStores, operating.GateStoreContract): ...


class TestIdentityStore(EmbeddedStores, identity.IdentityStoreContract): ...


class TestTapeStore(EmbeddedStores, tape.TapeStoreContract): ...


class TestBlobStore(EmbeddedStores, tape.BlobStoreContract): ...


class TestExpirable(EmbeddedStores, retention.ExpirableContract): ...


class TestEventsOfLiveExecutions(EmbeddedStores, retention.EventsOfLiveExecutionsContract):
    async def handle(self, stores: Stores, count: int) -> None:
        seen = stores.log.consume("group", (EXECUTION_EVENTS,))
        for _ in range(count):
            stores.log.acknowledge("group", await anext(seen))
        await seen.aclose()  # pyright: ignore[reportAttributeAccessIssue]


class TestExpirableEvents(EmbeddedStores, retention.ExpirableEventsContract):
    def plant(self, topic: str, key: str, type: str, body: bytes | str) -> int:
        return plant(self._path, topic, key, type, body)


class TestEventStore(EmbeddedStores, events.EventStoreContract): ...


class TestArchive(EmbeddedStores, events.ArchiveContract): ...


class TestDeadLetterStore(EmbeddedStores, dead_letters.DeadLetterStoreContract): ...


class TestNotificationStore(EmbeddedStores, notifications.NotificationStoreContract): ...


class TestAtomicNotification(EmbeddedStores, notifications.AtomicNotificationContract): ...


class TestEventLog(EmbeddedStores, log.EventLogContract):
    def plant(self, topic: str, key: str, type: str, body: bytes | str) -> int:
        return plant(self._path, topic, key, type, body)


class TestOneStoreLog(EmbeddedStores, log.OneStoreLogContract): ...


class TestReplaySessionStore(EmbeddedStores, replay.ReplaySessionStoreContract): ...


class TestReplayedCopies(EmbeddedStores, replay.ReplayedCopiesContract): ...


class TestCopiesInOneStore(EmbeddedStores, replay.CopiesInOneStoreContract): ...


class TestEventSource(EmbeddedStores, replay.EventSourceContract): ...


class TestEventIndex(EmbeddedStores, replay.EventIndexContract): ...


class TestDocumentHistories(EmbeddedStores, replay.DocumentHistoriesContract): ...


class TestReplayFiles(EmbeddedStores, replay.ReplayFilesContract): ...
