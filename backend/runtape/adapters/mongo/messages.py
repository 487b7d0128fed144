"""Messages as they lie in outboxes and among events."""

import msgspec

from runtape.adapters.mongo.connection import Row
from runtape.domain.events import MESSAGE_TYPES, Message

_encode = msgspec.json.Encoder().encode
_decoders = {name: msgspec.json.Decoder(message).decode for name, message in MESSAGE_TYPES.items()}


def told(message: Message) -> Row:
    """Return `message` as it stands in an outbox."""
    return {"id": message.id, "type": message.type, "body": _encode(message)}


def message_of(row: Row) -> Message:
    """Return the message that `told` has made the row of."""
    return decoded(row["type"], row["body"])


def decoded(name: str, body: bytes) -> Message:
    """Return the message of the type `name` in `body`."""
    return _decoders[name](body)
