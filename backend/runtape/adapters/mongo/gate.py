"""The operator's gate in MongoDB: one document, none before it was ever set."""

from runtape.adapters.mongo.connection import Store, transient
from runtape.adapters.mongo.indexes import SETTINGS
from runtape.ports.admission import Gate

_GATE = "admission_gate"


class MongoGateStore:
    """`GateStore` over the collection ``settings``."""

    def __init__(self, store: Store) -> None:
        self._settings = store[SETTINGS]

    async def gate(self) -> Gate:
        with transient():
            row = await self._settings.find_one({"_id": _GATE})
        return Gate(row["value"]) if row else Gate.OPEN

    async def put_gate(self, gate: Gate) -> None:
        with transient():
            await self._settings.replace_one({"_id": _GATE}, {"value": gate}, upsert=True)
