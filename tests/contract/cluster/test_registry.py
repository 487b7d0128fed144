"""The schemas in a real registry: registered once, refused when they do not fit, known while it is gone."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from runtape.adapters.kafka.codec import AvroCodec, schema_of
from runtape.adapters.kafka.headers import SCHEMA, headers_of, of_message
from runtape.adapters.kafka.registry import SchemaRegistryManager
from runtape.domain.events import MESSAGE_TYPES
from runtape.ports.errors import Permanent, Poison, Transient
from tests.contract.suites.log import commands, one_of_each
from tests.rig.choice import our_registry
from tests.rig.registry import Registry

pytestmark = pytest.mark.needs("registry")


Manager = Callable[..., SchemaRegistryManager]


@pytest.fixture
def manager() -> Iterator[Manager]:
    with ExitStack() as stack:
        yield lambda part, prefix="": stack.enter_context(
            closing(SchemaRegistryManager({"url": part.url}, part.scope + prefix))
        )


async def test_every_message_goes_through_the_registry(manager: Manager, registry_part: Registry) -> None:
    writer, reader = manager(registry_part), manager(registry_part)
    await writer.register()
    await reader.register()
    for message in one_of_each():
        body = AvroCodec(writer).encode(message)
        assert await AvroCodec(reader).decode(message.type, body) == message


async def test_who_registers_again_gets_the_same_ids(manager: Manager, registry_part: Registry) -> None:
    first, second = manager(registry_part), manager(registry_part)
    await asyncio.gather(first.register(), second.register())
    names = [message.__name__ for message in MESSAGE_TYPES.values()]
    assert [first.id_of(name) for name in names] == [second.id_of(name) for name in names]
    assert len({first.id_of(name) for name in names}) == len(names)


async def test_a_schema_that_does_not_fit_what_is_there_is_refused_by_name(
    manager: Manager, registry_part: Registry
) -> None:
    foreign = '{"type": "record", "name": "PodCreate", "fields": [{"name": "mood", "type": "string"}]}'
    with SchemaRegistryClient({"url": registry_part.url}) as client:
        await asyncio.to_thread(
            client.register_schema, f"{registry_part.scope}strange.runtape.PodCreate", Schema(foreign, "AVRO")
        )
    with pytest.raises(Permanent, match=r"strange\.runtape\.PodCreate"):
        await manager(registry_part, "strange.").register()


async def test_an_id_that_nobody_has_given_is_poison(manager: Manager, registry_part: Registry) -> None:
    with pytest.raises(Poison, match="no schema has the id 2000000000"):
        await AvroCodec(manager(registry_part)).decode("pod.create", b"\0" + (2_000_000_000).to_bytes(4, "big"))


@pytest.mark.needs("own")
async def test_what_is_known_is_read_without_the_registry_and_what_is_not_waits_for_it(
    manager: Manager, tmp_path: Path
) -> None:
    part = our_registry(tmp_path).start()
    known, stranger = manager(part), manager(part)
    await known.register()
    (message,) = commands("e")
    body = AvroCodec(known).encode(message)
    part.kill()
    assert await AvroCodec(known).decode("pod.create", body) == message
    with pytest.raises(Transient):
        await AvroCodec(stranger).decode("pod.create", body)
    with pytest.raises(Transient):
        await stranger.register()
    part.start()
    assert await AvroCodec(stranger).decode("pod.create", body) == message
    part.stop()


async def test_a_message_stays_what_it_was_when_its_id_is_given_to_another_version_of_its_schema(
    manager: Manager, registry_part: Registry, tmp_path: Path
) -> None:
    writer = manager(registry_part)
    await writer.register()
    wanted = writer.id_of("PodCreate")
    (message,) = commands("e")
    body, written_with = AvroCodec(writer).encode(message), headers_of(of_message(message))[SCHEMA]
    emptied = our_registry(tmp_path).start()
    with SchemaRegistryClient({"url": emptied.url}) as client:
        for number in range(1, wanted + 1):
            fields = [{"name": f"mood_{number}", "type": "string"}, *schema_of("PodCreate")["fields"]]
            other = Schema(json.dumps({"type": "record", "name": "runtape.PodCreate", "fields": fields}), "AVRO")
            assert await asyncio.to_thread(client.register_schema, f"other.{number}", other) == number
    reader = manager(emptied)
    await reader.register()
    assert reader.id_of("PodCreate") != wanted
    with pytest.raises(Poison):
        await AvroCodec(reader).decode(message.type, body)
    assert await AvroCodec(reader).decode(message.type, body, written_with) == message
    emptied.stop()
