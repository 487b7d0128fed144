"""The operator's gate in the embedded database: one row, none before it was ever set."""

from runtape.adapters.embedded.database import Database
from runtape.ports.admission import Gate


class SqliteGateStore:
    """`GateStore` over the `admission_gate` table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def gate(self) -> Gate:
        row = await self._database.read(lambda c: c.execute("select gate from admission_gate").fetchone())
        return Gate.OPEN if row is None else Gate(row[0])

    async def put_gate(self, gate: Gate) -> None:
        statement = "insert into admission_gate values (1, ?) on conflict (id) do update set gate = excluded.gate"
        await self._database.write(lambda c: c.execute(statement, (gate,)).rowcount, durable=True)
