"""The committed schemas under ids that no registry has given."""

from runtape.adapters.kafka.codec import Schema, schema_of
from runtape.domain.events import MESSAGE_TYPES
from runtape.ports.errors import Transient


class FixedSchemas:
    """`Schemas` that numbers the message types; ``foreign`` are those of other writers, ``down`` is the registry."""

    def __init__(self) -> None:
        self._ids = {message.__name__: number for number, message in enumerate(MESSAGE_TYPES.values(), 1)}
        self.foreign: dict[int, Schema] = {}
        self.down = False

    async def register(self) -> None: ...

    def id_of(self, name: str) -> int:
        return self._ids[name]

    async def by_id(self, schema_id: int) -> Schema:
        if schema_id in self.foreign:
            return self.foreign[schema_id]
        for name, number in self._ids.items():
            if number == schema_id:
                return schema_of(name)
        if self.down:
            raise Transient("the registry does not answer")
        raise LookupError(schema_id)
