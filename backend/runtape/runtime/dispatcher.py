"""Which messages concern a group, and which handler carries out what is decided about each."""

from collections.abc import Collection, Mapping

from runtape.application.flow import Flow, Handler
from runtape.domain.events import Message
from runtape.ports.log import Delivery


class Dispatcher:
    """The handlers of one group by message type.

    `replays` are the types whose handler is also fit for messages that a replay session has published again.
    """

    def __init__(self, flow: Flow, handlers: Mapping[str, Handler], replays: Collection[str] = ()) -> None:
        self._flow = flow
        self._handlers = handlers
        self._replays = replays

    def concerns(self, delivery: Delivery) -> bool:
        """Whether the group handles it: this one place keeps what is replayed from having effects."""
        name = delivery.message.type
        return name in (self._handlers if delivery.replayed_by is None else self._replays)

    async def dispatch(self, message: Message) -> None:
        """Carry out what the group's handler decides about `message`; nothing when the group has none.

        Raises: what the handler raises.
        """
        handler = self._handlers.get(message.type)
        if handler is not None:
            await self._flow.handle(handler, message)
