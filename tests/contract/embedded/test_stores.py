"""The embedded adapters keep the contracts of their ports."""

from tests.contract.embedded.basic import EmbeddedStores
from tests.contract.suites import log, retention, stores, tape


class TestUnitOfWork(EmbeddedStores, stores.UnitOfWorkContract): ...


class TestIdempotency(EmbeddedStores, stores.IdempotencyContract): ...


class TestLeases(EmbeddedStores, stores.LeaseContract): ...


class TestDue(EmbeddedStores, stores.DueContract): ...


class TestList(EmbeddedStores, stores.ListContract): ...


class TestDelete(EmbeddedStores, stores.DeleteContract): ...


class TestSagaStore(EmbeddedStores, stores.SagaStoreContract): ...


class TestTapeStore(EmbeddedStores, tape.TapeStoreContract): ...


class TestBlobStore(EmbeddedStores, tape.BlobStoreContract): ...


class TestExpirable(EmbeddedStores, retention.ExpirableContract): ...


class TestEventLog(EmbeddedStores, log.EventLogContract): ...
