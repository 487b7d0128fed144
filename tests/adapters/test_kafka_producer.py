"""A producer that has not begun: it publishes nothing, and says what is missing."""

import pytest

from runtape.adapters.kafka.codec import AvroCodec
from runtape.adapters.kafka.producer import Producer
from runtape.ports.errors import Transient, Unavailable
from tests.adapters.fixed_schemas import FixedSchemas
from tests.contract.suites.log import commands
from tests.rig.part import free_port


class Absent(FixedSchemas):
    """A registry that does not answer until it is `there`."""

    def __init__(self) -> None:
        super().__init__()
        self.there = False
        self.registered = 0

    async def register(self) -> None:
        if not self.there:
            raise Transient("the registry is away")
        self.registered += 1


async def refused(producer: Producer) -> str:
    """Return what a producer that has not begun says, whatever is asked of it."""
    (message,) = commands("e")
    with pytest.raises(Unavailable) as of_a_message:
        await producer.publish(message)
    with pytest.raises(Unavailable) as of_readiness:
        await producer.ready()
    assert str(of_a_message.value) == str(of_readiness.value)
    return str(of_readiness.value)


async def test_it_says_what_it_has_not_reached_and_registers_once() -> None:
    schemas = Absent()
    producer = Producer({"bootstrap_servers": f"127.0.0.1:{free_port()}"}, AvroCodec(schemas))
    assert await refused(producer) == "the registry was not reached yet"
    with pytest.raises(Transient):
        await producer.start()
    assert await refused(producer) == "the registry is away"
    schemas.there = True
    for _ in range(2):
        with pytest.raises(Transient):
            await producer.start()
        assert (await refused(producer)).startswith("Kafka does not answer: 127.0.0.1:")
    assert schemas.registered == 1
    await producer.stop()
