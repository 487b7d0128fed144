"""The MongoDB adapters keep the contracts of their ports, on MongoDB's own engine."""

import pytest

from tests.contract.cluster.mongo_basic import MongoStores
from tests.contract.suites import (
    dead_letters,
    events,
    identity,
    notifications,
    operating,
    replay,
    retention,
    stores,
    tape,
)

pytestmark = pytest.mark.needs("mongo")


class TestUnitOfWork(MongoStores, stores.UnitOfWorkContract): ...


class TestIdempotency(MongoStores, stores.IdempotencyContract): ...


class TestLeases(MongoStores, stores.LeaseContract): ...


class TestDue(MongoStores, stores.DueContract): ...


class TestList(MongoStores, stores.ListContract): ...


class TestDelete(MongoStores, stores.DeleteContract): ...


class TestSagaStore(MongoStores, stores.SagaStoreContract): ...


class TestSagaList(MongoStores, operating.SagaListContract): ...


class TestPriorities(MongoStores, operating.PriorityContract): ...


class TestGateStore(MongoStores, operating.GateStoreContract): ...


class TestIdentityStore(MongoStores, identity.IdentityStoreContract): ...


class TestDeadLetterStore(MongoStores, dead_letters.DeadLetterStoreContract): ...


class TestNotificationStore(MongoStores, notifications.NotificationStoreContract): ...


class TestNotificationFirst(MongoStores, notifications.NotificationFirstContract): ...


class TestExpirable(MongoStores, retention.ExpirableContract): ...


class TestEventsOfLiveExecutions(MongoStores, retention.EventsOfLiveExecutionsContract): ...


class TestEventStore(MongoStores, events.EventStoreContract): ...


class TestArchive(MongoStores, events.ArchiveContract): ...


class TestEventSource(MongoStores, replay.EventSourceContract): ...


class TestEventIndex(MongoStores, replay.EventIndexContract): ...


class TestReplayFiles(MongoStores, replay.ReplayFilesContract): ...


class TestTapeStore(MongoStores, tape.TapeStoreContract): ...


class TestBlobStore(MongoStores, tape.BlobStoreContract): ...
